"""Providers of other packages: the one that docs/providers-plugin.md shows, as it stands there, and mistakes."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.config import ConfigError
from gateway.config_file import parse
from gateway.providers.plugins import Overrides, PluginError, build_plugin, offered
from gateway.wiring import validate
from tests.harness import GatewayProcess

PAGE = (Path(__file__).parents[2] / "docs" / "providers-plugin.md").read_text()
PROVIDER = re.search(r"```python\n# gateway_parrot.py\n(.*?)```", PAGE, re.DOTALL)
PROJECT = re.search(r"```toml\n# pyproject.toml\n(.*?)```", PAGE, re.DOTALL)
CONFIG = re.search(r"```yaml\n(providers:.*?)```", PAGE, re.DOTALL)


def install(target: Path, name: str, entries: dict[str, str]) -> None:
    """What an installer leaves of a package beside its modules."""
    folder = target / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = ["[gateway.providers]", *(f"{kind} = {where}" for kind, where in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: the page's, and two whose entry points lead to nothing good."""
    assert PROVIDER is not None and PROJECT is not None
    target = tmp_path_factory.mktemp("site")
    (target / "gateway_parrot.py").write_text(PROVIDER.group(1))
    project = tomllib.loads(PROJECT.group(1))["project"]
    install(target, project["name"], project["entry-points"]["gateway.providers"])
    (target / "broken_parrot.py").write_text("def nothing(name, settings):\n    return object()\n")
    ways = {"absent": "broken_parrot_absent:make", "unnamed": "broken_parrot:make", "nothing": "broken_parrot:nothing"}
    install(target, "broken", {**ways, "other": "broken_parrot:nothing"})
    install(target, "twin", {"other": "broken_parrot:nothing"})
    return target


def documented(port: int) -> dict[str, Any]:
    """The page's configuration, with another port."""
    assert CONFIG is not None
    config: dict[str, Any] = yaml.safe_load(CONFIG.group(1))
    config["providers"]["polly"]["settings"]["port"] = port
    return config


class Parrot:
    """What the page's provider talks to: it repeats what it hears, in words."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.flies_away_after: int | None = None
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question."""
        heard = (await reader.readline()).decode().strip()
        self.heard.append(heard)
        words = heard.split(" ")[1:][: self.flies_away_after]
        writer.write("".join(f"{word}!\n" for word in words).encode())
        if self.flies_away_after is None:
            writer.write(b"END\n")
        writer.close()


@contextlib.asynccontextmanager
async def parrot() -> AsyncIterator[Parrot]:
    bird = Parrot()
    server = await asyncio.start_server(bird.answer, "127.0.0.1", 0)
    bird.port = server.sockets[0].getsockname()[1]
    async with server:
        yield bird


@pytest.mark.asyncio
async def test_the_provider_of_the_page_answers_clients_of_every_format_and_is_paid(site: Path) -> None:
    async with parrot() as bird:
        config = documented(bird.port)
        async with GatewayProcess(config, environment={"PYTHONPATH": str(site)}) as gateway:
            key = await gateway.account(usd="1")
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, trust_env=False) as client:
                body: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hello my dear"}]}
                chat = (await client.post("/v1/chat/completions", json=body)).json()
                assert chat["choices"][0]["message"]["content"] == "hello!my!dear!"
                assert chat["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6} | {
                    name: chat["usage"][name] for name in chat["usage"] if name.endswith("details")
                }
                said = (await client.post("/v1/messages", json={**body, "max_tokens": 50})).json()
                assert said["content"][0]["text"] == "hello!my!dear!"
                assert bird.heard == ["grey hello my dear"] * 2
                listed = (await client.get("/v1/models")).json()["data"]
                assert {"talker", "polly/grey", "polly/green"} <= {model["id"] for model in listed}
                bird.flies_away_after = 2
                broken = await client.post("/v1/chat/completions", json={**body, "stream": True})
                assert '"code":"stream_truncated"' in broken.text
                bird.flies_away_after = 0
                gone = await client.post("/v1/chat/completions", json=body)
                assert (gone.status_code, gone.json()["error"]["code"]) == (502, "stream_truncated")
            await gateway.settled(records=4)
            newest, *_, first = await gateway.usage()
            assert newest["record"]["attempts"] == 2, "it failed before a word and was asked once more"
            assert first["record"]["target"] == "polly/grey" and first["record"]["cost"] == 2  # 3 × $0.1 + 3 × $0.5


def checked(tmp_path: Path, site: Path, provider: dict[str, Any]) -> tuple[int, str]:
    """The exit code and the words of ``gateway config check``."""
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"providers": {"polly": provider}}))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "gateway", "config", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a type of nobody": (
        {"type": "crow"},
        "providers.polly.type: there is no type 'crow'; there are openai, openai_re",
    ),
    "settings it does not know": (
        {"type": "parrot", "settings": {"port": 1, "colour": "red"}},
        "providers.polly: settings: ValueError: there is no colour; there are host and port",
    ),
    "settings that lack something": ({"type": "parrot"}, "providers.polly: settings: KeyError: 'port'"),
    "settings of a wrong type": ({"type": "parrot", "settings": {"port": "x"}}, "invalid literal for int()"),
    "a key of built-in types": (
        {"type": "parrot", "settings": {"port": 1}, "api_key": "x"},
        "providers.polly.api_key is for built-in types",
    ),
    "settings for a built-in type": (
        {"type": "openai", "base_url": "http://x/v1", "settings": {"port": 1}},
        "providers.polly.settings is for types that installed packages bring: ",
    ),
    "a module that is not there": ({"type": "absent"}, "the type 'absent' cannot be loaded from broken_parrot_absent:"),
    "a factory that is not there": ({"type": "unnamed"}, "cannot be loaded from broken_parrot:make"),
    "something that is no provider": (
        {"type": "nothing"},
        "made something that is no provider: it has no wire, vendor",
    ),
    "two packages with one name": ({"type": "other"}, "one installed package should offer the type 'other'"),
}


@pytest.mark.parametrize(("provider", "hint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told(site: Path, monkeypatch: pytest.MonkeyPatch, provider: dict[str, Any], hint: str) -> None:
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(ConfigError) as caught:
        validate(parse(yaml.safe_dump({"providers": {"polly": provider}})))
    assert hint in str(caught.value)


def test_config_check_names_what_is_wrong(tmp_path: Path, site: Path) -> None:
    code, words = checked(tmp_path, site, {"type": "absent"})
    assert code == 1 and "providers.polly: the type 'absent' cannot be loaded" in words and "Traceback" not in words


def test_a_plugin_that_nobody_names_is_not_imported(tmp_path: Path, site: Path) -> None:
    code, words = checked(tmp_path, site, {"type": "openai", "base_url": "http://127.0.0.1:1/v1"})
    assert (code, words) == (0, "The configuration is valid.\n")  # those that cannot be imported are installed too


def test_the_configuration_stands_in_place_of_what_a_plugin_says(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    assert {"parrot", "absent"} <= set(offered())
    plain = build_plugin("polly", "parrot", {"port": 1}, Overrides())
    assert (plain.name, plain.vendor, plain.models) == ("polly", "parrot", ("grey", "green"))
    assert plain.holds_full("grey", reasons=False) is False
    changed = build_plugin("polly", "parrot", {"port": 1}, Overrides(vendor="x", models=("a",), is_held_full=True))
    assert (changed.vendor, changed.models, changed.holds_full("grey", reasons=False)) == ("x", ("a",), True)
    with pytest.raises(PluginError, match="not: none"):
        build_plugin("polly", "crow", {}, Overrides())
