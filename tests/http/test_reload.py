"""The configuration is changed while it runs: real processes, a real file, and streams that are open meanwhile."""

import asyncio
import contextlib
import copy
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import yaml

from gateway.config import Config, Environment
from gateway.config_file import parse
from gateway.live import LiveExchanges
from gateway.reload import FIXED_SECTIONS, LIVE_SECTIONS, ConfigFile, differences, redacted
from gateway.routing.breaker import BreakerRules
from gateway.routing.deployments import DeploymentRules, Deployments
from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

Json: TypeAlias = dict[str, Any]

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0
TRIGGERS = ("admin", "signal", "watch")


class Site:
    """A gateway, its file, and a client with a funded account."""

    def __init__(self, gateway: GatewayProcess, path: Path, key: str) -> None:
        self.gateway = gateway
        self.path = path
        self.client = httpx.AsyncClient(
            base_url=gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False
        )

    def write(self, config: Json | str) -> None:
        """Put another file in the place of the old one, at once."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        draft.replace(self.path)

    async def reload(self) -> Json:
        answer = await self.gateway.admin.post("/config/reload")
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def change(self, config: Json | str) -> Json:
        self.write(config)
        return await self.reload()

    async def ask(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **more}
        return await self.client.post(CHAT, json=body)

    @contextlib.asynccontextmanager
    async def streaming(self, model: str) -> AsyncIterator[AsyncIterator[str]]:
        """The words of an answer, as they come."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "stream": True}
        async with self.client.stream("POST", CHAT, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield words_of(answer)

    def has_refused(self, count: int) -> bool:
        return len(self.lines("config_refused")) == count

    def lines(self, event: str) -> list[Json]:
        """What the log has of an event."""
        lines = (json.loads(line) for line in self.gateway.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]


async def words_of(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    yield choice["delta"]["content"]
        elif line == "data: [DONE]":
            yield "[DONE]"


async def until(condition: Callable[[], Awaitable[Any] | Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site_of(folder: Path, config: Json | str, **environment: str) -> AsyncIterator[Site]:
    """A gateway whose file is in ``folder``, which watches it only where the test says so."""
    path = folder / "gateway.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    gateway = GatewayProcess(environment={"GATEWAY_CONFIG": str(path), **environment})
    async with gateway:
        site = Site(gateway, path, await gateway.account(usd="50"))
        async with site.client:
            yield site


def config_for(upstream: Upstream, *, output: int = 1000) -> Json:
    """An alias of a provider whose output costs so many µ$ per token, and a tier that allows anything."""
    return {
        "reload": {"watch": False},
        "providers": {"up": {"type": "openai", "base_url": upstream.openai_url, "api_key": "k"}},
        "models": {"fast": {"targets": ["up/gpt-upstream"], "price": {"input": 0, "output": output}}},
        "tiers": {"default": {"requests": {"limit": 100_000}, "concurrent_streams": 1000}},
    }


def stalled() -> Plan:
    return Plan(fault="stall", fault_at=2)


async def test_the_next_request_sees_a_change_and_a_running_stream_keeps_its_terms(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        config = config_for(upstream)
        async with site_of(tmp_path, config) as site:
            upstream.queue(stalled())
            async with site.streaming("fast") as words:
                said = [await anext(words), await anext(words)]
                new = copy.deepcopy(config)
                new["models"]["fast"]["price"]["output"] = 7000
                new["models"]["slow"] = {"targets": ["up/gpt-upstream"], "price": {"input": 0, "output": 1}}
                new["tiers"]["default"] |= {"concurrent_streams": 1, "tokens_per_request": 30}
                new["tiers"]["gold"] = {"concurrent_streams": 5}
                report = await site.change(new)
                assert report["changed"] == ["models.fast", "models.slow", "tiers.default", "tiers.gold"]
                assert report["needs_restart"] == []
                crowded = await site.ask("fast")
                assert (crowded.status_code, crowded.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
                upstream.release()
                said += [word async for word in words]
            assert said == ["Hello", ", ", "world", "!", "[DONE]"]
            await site.gateway.settled(records=1)
            assert (await site.ask("fast")).status_code == 200
            assert (await site.ask("slow")).status_code == 200
            long = await site.ask("fast", messages=[{"role": "user", "content": "word " * 40}])
            assert (long.status_code, long.json()["error"]["code"]) == (400, "tokens_per_request_exceeded")
            await site.gateway.settled(records=3)
            charged = [row["charged_usd"] for row in await site.gateway.usage()]
            assert charged == ["0.000004", "0.028000", "0.004000"]
            models = (await site.client.get("/v1/models")).json()["data"]
            assert {"fast", "slow"} <= {model["id"] for model in models}
            assert (await site.gateway.admin.patch("/accounts/acme", json={"tier": "gold"})).status_code == 200
            limits = (await site.gateway.admin.get("/accounts/acme/limits")).json()
            assert limits["tier"] == "gold"
            assert next(it for it in limits["limits"] if it["unit"] == "streams")["base"]["limit"] == 5


BAD = {
    "models.fast.target": (
        "models:\n  fast: {target: [demo/fast]}\ntiers: {default: {requests: many}}\n",
        ["gateway.yaml:2: models.fast.target: there is no such key here", "gateway.yaml:3: tiers.default.requests: "],
    ),
    "no such provider": ("models:\n  m:\n    targets: [nope/x]\n", ["gateway.yaml:2: models.m: the target 'nope/x'"]),
    "a limit": (
        "tiers:\n  gold:\n    limits:\n      - {per: key, requests: 1}\n      - {tokens: 5, requests: 5}\n",
        ["gateway.yaml:5: tiers.gold.limits.1: exactly one of"],
    ),
    "no YAML": ("models: {\n", ["gateway.yaml:2: "]),
    "a variable": ("providers: {p: {api_key: '${NO_SUCH_KEY}'}}\n", ["gateway.yaml:1: the environment has no "]),
    "empty": ("", ["gateway.yaml:1: the file is empty"]),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path, trigger: str) -> None:
    good = {"models": {"fast": {"targets": ["demo/fast"]}}, "reload": {"watch": trigger == "watch"}}
    async with site_of(tmp_path, good) as site:
        before = (await site.gateway.admin.get("/config")).json()
        for number, (text, starts) in enumerate(BAD.values(), start=1):
            site.write(text)
            if trigger == "admin":
                answer = await site.gateway.admin.post("/config/reload")
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "invalid_value")
                told = error["message"].splitlines()
            else:
                if trigger == "signal":
                    site.gateway.signal(signal.SIGHUP)
                await until(partial(site.has_refused, number))
                line = site.lines("config_refused")[-1]
                assert (line["trigger"], line["level"]) == (trigger, "warning")
                told = line["problems"]
            assert len(told) == len(starts)
            assert all(f"{tmp_path}/{start}" in text for start, text in zip(starts, told, strict=True)), told
            assert (await site.ask("fast")).status_code == 200
        assert (await site.gateway.admin.get("/config")).json() == before
        assert site.lines("config_reloaded") == []
        assert await site.gateway.metric("gateway_config_reloads_total") == len(BAD)
        good["models"]["other"] = {"targets": ["demo/fast"]}  # type: ignore[index]
        assert (await site.change(good))["changed"] in (["models.other"], [])
        assert (await site.ask("other")).status_code == 200


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    async with site_of(tmp_path, {"models": {"fast": {"targets": ["demo/fast"]}}}) as site:
        site.path.unlink()
        await until(lambda: site.lines("config_refused"))
        assert site.lines("config_refused")[0]["problems"] == [f"{site.path}: there is no such file"]
        assert (await site.ask("fast")).status_code == 200


async def test_what_needs_a_restart_is_named_and_the_rest_applies(tmp_path: Path) -> None:
    async with site_of(tmp_path, "reload: {watch: false}\n") as site:
        new: Json = {
            "reload": {"watch": False},
            "models": {"fast": {"targets": ["demo/fast"]}},
            "server": {"heartbeat_s": 3, "drain_s": 4},
            "credits": "off",
            "jwt": {"issuer": "i", "audience": ["a"], "secret": "s" * 32, "algorithms": ["HS256"]},
        }
        report = await site.change(new)
        waiting = ["jwt", "credits", "server.drain_s", "server.heartbeat_s"]
        assert (report["changed"], report["needs_restart"]) == (["models.fast"], waiting)
        assert (await site.ask("fast")).status_code == 200
        again = await site.reload()
        assert (again["changed"], again["needs_restart"]) == ([], waiting)
        shown = (await site.gateway.admin.get("/config")).json()
        assert shown["needs_restart"] == waiting
        assert (shown["config"]["server"]["drain_s"], shown["config"]["credits"]) == (30, "on")
        (balance, row) = (await site.gateway.settled(records=1), (await site.gateway.usage())[0])
        assert balance["spent"] > 0 and row["charged_usd"] != "0", "there is money in it until the restart"
        assert [line["needs_restart"] for line in site.lines("config_reloaded")] == [waiting, waiting]


async def test_a_provider_may_go_while_a_stream_of_it_runs(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        config = config_for(upstream)
        async with site_of(tmp_path, config) as site:
            upstream.queue(stalled())
            async with site.streaming("fast") as words:
                said = [await anext(words), await anext(words)]
                report = await site.change({"reload": {"watch": False}})
                assert report["changed"] == ["providers.up", "models.fast", "tiers.default"]
                for model in ("fast", "up/gpt-upstream"):
                    gone = await site.ask(model)
                    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
                upstream.release()
                said += [word async for word in words]
            assert said[-2:] == ["!", "[DONE]"]
            await site.gateway.settled(records=1)
            assert (await site.gateway.usage())[0]["charged_usd"] == "0.004000"
            await site.change(config)
            assert (await site.ask("fast")).status_code == 200


async def test_what_a_target_may_be_asked_follows(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        config = config_for(upstream)
        async with site_of(tmp_path, config) as site:
            narrow = copy.deepcopy(config)
            narrow["models"]["fast"]["targets"] = [{"model": "up/gpt-upstream", "capacity": {"requests_per_minute": 1}}]
            assert (await site.change(narrow))["changed"] == ["models.fast"]
            assert [(await site.ask("fast")).status_code == 200 for _ in range(2)] == [True, False]
            await site.change(config)
            assert (await site.ask("fast")).status_code == 200


async def test_a_provider_that_moved_is_asked_at_its_new_place(tmp_path: Path) -> None:
    async with Upstream() as old, Upstream() as new:
        async with site_of(tmp_path, config_for(old)) as site:
            old.plan = Plan(status=500)
            for _ in range(3):
                assert (await site.ask("fast")).status_code >= 500
            report = await site.change(config_for(new))
            assert report["changed"] == ["providers.up"]
            assert (await site.ask("fast")).status_code == 200, "what was known of the old place says nothing of it"
            assert len(new.requests) == 1


@pytest.mark.timeout(180)
async def test_twenty_reloads_under_two_hundred_requests_fail_none(tmp_path: Path) -> None:
    def config(number: int) -> Json:
        price = {"input": 1, "output": 1 + number}
        return {
            "reload": {"watch": False},
            "models": {"fast": {"targets": ["demo/fast"], "price": price}, f"m{number}": {"targets": ["demo/fast"]}},
            "tiers": {"default": {"requests": {"limit": 1_000_000 + number}, "concurrent_streams": 1000 + number}},
            "routing": {"retries": number % 3},
            "alerts": {"repeat_s": 100 + number},
            "chat": {"default_model": f"m{number}"},
        }

    async with site_of(tmp_path, config(0)) as site:
        is_over = False
        wholes: list[bool] = []

        async def visitor() -> None:
            while not is_over:
                answer = await site.ask("fast", stream=True, max_tokens=20)
                is_whole = answer.content.endswith(b"data: [DONE]\n\n") and b'"error"' not in answer.content
                wholes.append(answer.status_code == 200 and is_whole)

        visitors = [asyncio.get_running_loop().create_task(visitor()) for _ in range(200)]
        await until(lambda: len(wholes) >= 20)
        for number in range(1, 21):
            report = await site.change(config(number))
            assert f"models.m{number}" in report["changed"]
        is_over = True
        await asyncio.wait_for(asyncio.gather(*visitors), 100)
        assert all(wholes) and len(wholes) > 200
        assert (await site.ask("m20")).status_code == 200
        assert (await site.ask("m19")).status_code == 404
        assert site.gateway.errors() == set()


async def test_a_storm_of_signals_ends_with_the_last_file(tmp_path: Path) -> None:
    async with site_of(tmp_path, {"reload": {"watch": False}}) as site:
        async with site.streaming("demo/slow") as words:
            await anext(words)
            for number in range(50):
                site.write({"reload": {"watch": False}, "models": {f"m{number}": {"targets": ["demo/fast"]}}})
                site.gateway.signal(signal.SIGHUP)
            await until(lambda: any("models.m49" in line["changed"] for line in site.lines("config_reloaded")))
            assert len(site.lines("config_reloaded")) <= 50
            assert [word async for word in words][-1] == "[DONE]"
        assert (await site.ask("m49")).status_code == 200
        assert site.gateway.is_running


async def test_a_file_is_seen_to_be_replaced(tmp_path: Path) -> None:
    async with site_of(tmp_path, {}) as site:
        site.write({"models": {"fast": {"targets": ["demo/fast"]}}})
        await until(lambda: site.lines("config_reloaded"))
        (line,) = site.lines("config_reloaded")
        assert (line["trigger"], line["changed"]) == ("watch", ["models.fast"])
        assert (await site.ask("fast")).status_code == 200


async def test_a_link_is_followed_to_the_folder_it_is_swapped_for(tmp_path: Path) -> None:
    """As Kubernetes does with a ConfigMap: gateway.yaml -> ..data/gateway.yaml, and ..data -> a folder."""
    for name, model in (("..1", "old"), ("..2", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gateway.yaml").write_text(yaml.safe_dump({"models": {model: {"targets": ["demo/fast"]}}}))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "mapped.yaml").symlink_to("..data/gateway.yaml")
    async with site_of(tmp_path, {}, GATEWAY_CONFIG=str(tmp_path / "mapped.yaml")) as site:
        assert (await site.ask("old")).status_code == 200
        (tmp_path / "..draft").symlink_to("..2")
        (tmp_path / "..draft").replace(tmp_path / "..data")
        await until(lambda: site.lines("config_reloaded"))
        assert site.lines("config_reloaded")[0]["changed"] == ["models.old", "models.new"]
        assert (await site.ask("new")).status_code == 200


async def test_defaults_of_chats_and_the_log_level_follow(tmp_path: Path) -> None:
    said = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]
    async with site_of(tmp_path, {"reload": {"watch": False}, "log": {"level": "warning"}}) as site:
        assert (await site.client.post("/api/chat", json={"messages": said})).status_code == 400
        fixed = {"reload": {"watch": False}, "resume": {"kept_s": 20}}
        chat = {"default_model": "demo/fast", "resumable": True}
        changed = (await site.change({**fixed, "chat": chat}))["changed"]
        assert changed == ["chat.default_model", "chat.resumable", "resume.kept_s", "log.level"]
        answer = await site.client.post("/api/chat", json={"id": "c", "messages": said})
        assert answer.status_code == 200 and '"type":"finish"' in answer.text
        await until(lambda: len(site.lines("request")) == 1)
        await site.change({**fixed, "chat": chat, "log": {"level": "error"}})
        assert (await site.client.post("/api/chat", json={"messages": said})).status_code == 200
        assert (await site.client.post("/api/chat", json={})).status_code == 400
        await site.gateway.settled(records=2)
        assert len(site.lines("request")) == 1 and len(site.lines("refused")) == 0


async def test_the_configuration_is_shown_to_the_operator_without_its_secrets(tmp_path: Path) -> None:
    config = {
        "providers": {"p": {"base_url": "https://user:hunter2@llm.example/v1?k=hunter2", "api_key": "hunter2"}},
        "alerts": {"webhook": {"url": "https://hooks.example/hunter2", "secret": "hunter2"}},
    }
    async with site_of(tmp_path, config) as site:
        assert (await site.client.get("/admin/v1/config")).status_code == 401
        assert (await site.client.post("/admin/v1/config/reload")).status_code == 401
        shown = await site.gateway.admin.get("/config")
        assert shown.json()["config"]["providers"]["p"]["base_url"] == "https://llm.example/v1"
        assert shown.json()["config"]["providers"]["p"]["api_key"] == "***"
        assert "hunter2" not in shown.text


# Without a process.


def test_every_secret_is_hidden() -> None:
    text = """
    providers:
      p: {type: bedrock, api_key: hush, aws: {access_key_id: hush, secret_access_key: hush, session_token: hush}}
      q: {type: azure, azure: {client_secret: hush}, settings: {token: hush}}
    jwt: {issuer: i, audience: [a], secret: hush}
    alerts: {webhook: {url: "https://hush.example/hush", secret: hush}}
    """
    assert "hush" not in json.dumps(redacted(parse(text)))


def test_differences_are_named_by_section_and_key() -> None:
    one = parse("{models: {a.b: {targets: [demo/fast]}, c: {targets: [demo/fast]}}, unpriced: free}")
    other = parse("{models: {a.b: {targets: [demo/slow]}, d: {targets: [demo/fast]}}, alerts: {repeat_s: 5}}")
    assert list(differences(one, one)) == []
    assert list(differences(one, other)) == ["models.a.b", "models.c", "models.d", "unpriced", "alerts.repeat_s"]


def test_every_section_either_follows_the_file_or_waits_for_a_restart() -> None:
    assert LIVE_SECTIONS | FIXED_SECTIONS == set(Config.model_fields)
    assert {"server", "redis", "credits", "jwt", "holds"} <= FIXED_SECTIONS


def test_a_file_that_is_being_written_is_left_alone_until_it_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("{}")
    file = ConfigFile(Environment(config=path))
    assert not file.has_changed()
    for text in ("models:", "models:\n  fast:", "models:\n  fast: {targets: [demo/fast]}"):
        path.write_text(text)
        assert not file.has_changed()
    assert file.has_changed()
    assert list(file.read().models) == ["fast"]
    assert not file.has_changed()


def test_a_file_that_came_later_is_seen_and_may_not_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    file = ConfigFile(Environment())
    assert file.read() == Config()
    Path("gateway.yaml").write_text("unpriced: free")
    assert [file.has_changed(), file.has_changed()] == [False, True]
    assert file.read().unpriced == "free"
    os.unlink("gateway.yaml")
    with pytest.raises(Exception, match="there is no such file"):
        file.read()


def test_what_is_known_of_deployments_stays_but_for_those_of_providers_that_went() -> None:
    known = Deployments()
    stays, goes = known.of("a/x"), known.of("b/x")
    stays.begin(0.0)
    rules = DeploymentRules(breaker=BreakerRules(in_a_row=1))
    known.follow(rules, gone={"b"})
    assert known.of("a/x") is stays and stays.in_flight == 1
    assert known.of("b/x") is not goes
    stays.breaker.failed(1.0)
    assert stays.breaker.state == "open", "the new rule holds for it"


async def test_what_was_retired_is_waited_for_by_those_only_who_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.live._GONE_LOOK_S", 0.001)
    live = LiveExchanges()
    with live.arriving():
        with live.arriving():
            waiting = asyncio.get_running_loop().create_task(live.outlast_those_here())
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        later = live.arriving()
        later.__enter__()
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    later.__exit__(None, None, None)
