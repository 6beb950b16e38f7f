"""A mistake in the configuration is told with its file, its line and the way out."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from gateway.config import Config, ConfigError, Environment
from gateway.config_file import load, parse
from gateway.config_reference import reference

MISTAKES = {
    "an unknown key": ("modls: {}", 1, "models"),
    "an unknown key in a section": ("server:\n  prot: 80\n", 2, "drain_s"),
    "an unknown key of a provider": ("providers:\n  up:\n    base_url: http://x\n    api-key: x\n", 4, "api_key"),
    "an unknown key of a price": ("providers:\n  up:\n    price: {input: 1, outptu: 2}\n", 3, "cache_read"),
    "an unknown key of a model": ("models:\n  m:\n    targts: [a/b]\n", 3, "targets"),
    "an unknown key of jwt": ("jwt:\n  issuer: i\n  audience: [a]\n  jkws_url: x\n", 4, "jwks_url"),
    "a word for a number": ("server:\n\n  drain_s: soon\n", 3, "number"),
    "a number that is too small": ("tiers:\n  gold:\n    requests:\n      limit: 0\n", 4, "greater than or equal to 1"),
    "a list for a section": ("server:\n- a\n", 1, "dictionary"),
    "a number for the file": ("5", 1, "dictionary"),
    "a list for the file": ("# comment\n- a", 2, "dictionary"),
    "a missing value": ("tiers:\n  gold:\n    requests: {period_s: 5}\n", 3, "required"),
    "a word that is none of the choices": ("log:\n  level: loud\n", 2, "'debug', 'info', 'warning' or 'error'"),
    "an address that is none": ("providers:\n  up:\n    base_url: example.com\n", 3, "https?://"),
    "a provider's name": ("providers:\n  Up Stream: {}\n", 2, "a-z0-9"),
    "a negative price": ("models:\n  a/b:\n    price: {input: -1, output: 1}\n", 3, "greater than or equal to 0"),
    "an alias without targets": ("models:\n  good: {targets: [a/b]}\n  mine: {}\n", 3, "targets: [openai/"),
    "a target without a provider": ("models:\n  mine:\n    targets:\n    - a/b\n    - gpt\n", 5, "provider/model"),
    "a variable that is not set": ("providers:\n  up:\n    api_key: ${GW_TEST_UNSET}\n", 3, "GW_TEST_UNSET"),
    "a variable in a list": ("server:\n  cors_origins:\n  - ${GW_TEST_UNSET}\n", 3, "GW_TEST_UNSET"),
    "a key twice": ("server: {}\nlog: {}\nserver: {}\n", 3, "twice"),
    "a section in itself": ("models: &m\n  a/b: *m\n", 1, "contains itself"),
    "a bracket that stays open": ("server:\n  cors_origins: [a\nlog: {}\n", 3, "expected"),
    "a tab": ("server:\n\tdrain_s: 5\n", 2, "token"),
    "two documents": ("log: {}\n---\nlog: {}\n", 2, "document"),
    "a tag": ("log: !!python/object:os.system x\n", 1, "tag"),
    "a list as a key": ("? [a]\n: b\n", 1, "key"),
}


@pytest.mark.parametrize(("text", "line", "hint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_with_its_line_and_what_is_right(text: str, line: int, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "my.yaml")
    message = str(caught.value)
    assert message.startswith(f"my.yaml:{line}: "), message
    assert hint in message


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("server:\n  drain_s: x\nlog:\n  level: loud\nnope: 1\n", "my.yaml")
    assert re.findall(r"^my.yaml:(\d+):", str(caught.value), re.MULTILINE) == ["2", "4", "5"]


@pytest.mark.parametrize("text", ["\0", "log: 2024-13-45", "a: \x01"])
def test_what_is_no_yaml_is_told_with_its_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml:"):
        parse(text, "my.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "{}", "---\n"])
def test_an_empty_file_is_the_default(text: str) -> None:
    assert parse(text) == Config()


def test_a_variable_stands_for_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GW_TEST_KEY", "sk-1")
    monkeypatch.setenv("GW_TEST_EMPTY", "")
    config = parse("providers:\n  up:\n    api_key: x${GW_TEST_KEY}y${GW_TEST_EMPTY}\n    models: ['${GW_TEST_KEY}']\n")
    assert config.providers["up"].api_key == "xsk-1y"
    assert config.providers["up"].models == ("sk-1",)


def test_a_mistake_does_not_repeat_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GW_TEST_KEY", "sk-canary")
    with pytest.raises(ConfigError) as caught:
        parse("providers:\n  up:\n    base_url: ${GW_TEST_KEY}\n    type: ${GW_TEST_KEY}\nlog: ${GW_TEST_KEY}\n")
    assert "canary" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load(Environment(config=tmp_path / "none.yaml"))


def test_without_a_file_the_defaults_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    assert load(Environment()) == Config()


def gateway(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_accepts_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text("log: {level: debug}\n")
    for arguments in (("gateway.yaml",), ()):
        done = gateway(tmp_path, "config", "check", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "valid" in done.stdout


BAD_FILES = {
    "an unknown key": (b"log:\n  levle: debug\n", "bad.yaml:2: log.levle: there is no such key here; there are level"),
    "bytes that are no text": (b"\xff\xfe\0\0", "bad.yaml: not a text file"),
    "a date that is none": (b"log: 2024-13-45", "bad.yaml: "),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("command", ["config check bad.yaml", "config check", "serve"])
def test_a_command_tells_what_is_wrong_without_a_traceback(
    tmp_path: Path, command: str, content: bytes, message: str
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    environment = {} if command.endswith(".yaml") else {"GATEWAY_CONFIG": "bad.yaml"}
    done = gateway(tmp_path, *command.split(), **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_check_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = gateway(tmp_path, "config", "check", "none.yaml")
    assert done.returncode == 1 and "none.yaml" in done.stderr and "Traceback" not in done.stderr


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section that is reached from one, found in another way than the reference does."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate
            for field in candidate.model_fields.values():
                yield from sections(field.annotation)
        elif candidate is not annotation:
            yield from sections(candidate)


def test_the_reference_names_every_key_and_says_what_it_is() -> None:
    text = reference()
    for section in {*sections(Config)}:
        assert (section.__doc__ or "") in text
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no description"
            assert re.search(rf"^\| `{name}` \| .* \| {re.escape(field.description)} \|$", text, re.MULTILINE)
    for name, field in Environment.model_fields.items():
        assert f"| `GATEWAY_{name.upper()}` |" in text and (field.description or "-") in text
    assert len({*sections(Config)}) >= 10


def test_the_command_prints_the_reference(tmp_path: Path) -> None:
    done = gateway(tmp_path, "config", "reference")
    assert (done.returncode, done.stdout, done.stderr) == (0, reference(), "")
