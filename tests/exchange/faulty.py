"""What the tests of faulty providers share: the ways in which one fails, and a bench on which to see what comes of it.

Every way is a model's name at the simulated provider, so that no test disturbs another's deployment. The clients are
OpenAI's before a provider of OpenAI's format, and Anthropic's before one of Anthropic's.
"""

import asyncio
import contextlib
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from tests.harness import GatewayProcess, free_port
from tests.limits.test_redis_tls import Certificates
from tests.upstream import Plan, Upstream

ClientFormat = Literal["openai", "anthropic"]
PATHS: dict[ClientFormat, str] = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
TYPES: dict[ClientFormat, str] = {"openai": "", "anthropic": "_claude"}

WORDS = (" one", " two", " three", " four")
WELL = "well"
# By the gateway's count of "Hello" in one message.
INPUT_TOKENS = 8
INPUT_PRICE, OUTPUT_PRICE = 1, 10


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that fails before its first word, and the HTTP error that a client of each format gets.

    ``openai`` is status, type and code, ``anthropic`` status and type. ``wait`` is the ``retry-after`` that both get,
    ``is_hopeless`` that they are told not to try again. ``tries`` counts requests with one further round, and
    ``fails_over`` says whether the next target of an alias is asked.
    """

    name: str
    openai: tuple[int, str, str]
    anthropic: tuple[int, str]
    plan: Plan | None = None
    at: str = "up"
    wait: str | None = None
    is_hopeless: bool = False
    tries: int = 2
    fails_over: bool = True


class Within(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that fails after ``words`` words, the error that the stream ends in, and the record's outcome."""

    name: str
    code: str
    openai_type: str
    anthropic_type: str
    plan: Plan
    at: str = "up"
    words: int = 2
    outcome: str = "failed"
    anthropic_code: str | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a client was told. ``error`` is the envelope's inner object, of an HTTP answer or within a stream."""

    status: int
    headers: dict[str, str]
    text: str = ""
    error: dict[str, Any] | None = None
    is_ended: bool = False


class Billed(msgspec.Struct, frozen=True, kw_only=True):
    """The one record of a request, and what the account paid."""

    record: dict[str, Any]
    spent: int


class Bench:
    """The provider, and two gateways before it: ``once`` asks further rounds as by default, ``never`` none."""

    def __init__(self, upstream: Upstream, once: GatewayProcess, never: GatewayProcess) -> None:
        self.upstream = upstream
        self.gateways = {"once": once, "never": never}
        self.client = httpx.AsyncClient(timeout=50, trust_env=False)

    async def ask(
        self, gateway: str, client: ClientFormat, model: str, *, stream: bool = True, usd: str = "1"
    ) -> tuple[Told, Billed]:
        """One request of a new account; returns what came of it and what it cost."""
        running = self.gateways[gateway]
        account = f"a{uuid.uuid4().hex[:12]}"
        key = await running.account(account, usd=usd)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4000,
            "stream": stream,
        }
        headers = {"Authorization": f"Bearer {key}"}
        answer = await self.client.post(running.base_url + PATHS[client], json=body, headers=headers)
        balance = await running.settled(account, records=1)
        rows = await running.usage(account)
        assert len(rows) == 1, rows
        assert balance["spent"] == rows[0]["record"].get("cost", 0)
        assert balance["granted"] == balance["available"] + balance["spent"] and balance["absorbed"] == 0
        record = {**rows[0]["record"], "outcome": rows[0]["outcome"]}
        return told(client, answer), Billed(record=record, spent=balance["spent"])

    def causes(self, gateway: str, target: str) -> set[str | None]:
        """What a gateway's log says of why calls to a target broke."""
        lines = (json.loads(line) for line in self.gateways[gateway].log.read_text().splitlines() if line[:1] == "{")
        events = ("attempt_failed", "stream_broke")
        return {it.get("cause") for it in lines if it["event"] in events and it["target"] == target}

    def asked(self, model: str) -> int:
        """How many requests for a model arrived at the provider."""
        return sum(request.body["model"] == model for request in self.upstream.requests)


def told(client: ClientFormat, answer: httpx.Response) -> Told:
    """An answer as its client understands it."""
    headers = dict(answer.headers)
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if answer.status_code != 200:
            assert client == "openai" or body["type"] == "error"
            return Told(status=answer.status_code, headers=headers, error=body["error"])
        whole = body["choices"][0]["message"]["content"] if client == "openai" else body["content"][0]["text"]
        return Told(status=200, headers=headers, text=whole, is_ended=True)
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in data if line != "[DONE]"]
    errors = [event["error"] for event in events if event.get("error")]
    assert len(errors) <= 1 and (not errors or "error" in events[-1]), "nothing follows an error"
    if client == "openai":
        deltas = [choice["delta"] for event in events for choice in event.get("choices", ())]
        text, is_ended = "".join(delta.get("content") or "" for delta in deltas), data[-1] == "[DONE]" and not errors
    else:
        text = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
        is_ended = events[-1]["type"] == "message_stop"
    error = errors[0] if errors else None
    return Told(status=answer.status_code, headers=headers, text=text, error=error, is_ended=is_ended)


def providers(addresses: dict[str, str]) -> dict[str, Any]:
    """Each address twice, as a provider of either format; those that stall have little time, the others plenty."""
    found = {}
    for name, address in addresses.items():
        short = {"connect_s": 5, "first_event_s": 1, "idle_s": 1, "total_s": 2.5}
        patient = {"connect_s": 5, "first_event_s": 30, "idle_s": 30, "total_s": 60}
        for client, suffix in TYPES.items():
            found[name + suffix] = {
                "type": client,
                "base_url": address,
                "api_key": "sk-upstream",
                "price": {"input": INPUT_PRICE, "output": OUTPUT_PRICE},
                "timeouts": short if name in ("hasty", "murmuring") else patient,
            }
    return found


def pairs(rows: list[tuple[str, str]]) -> dict[str, Any]:
    """For each row (its provider and name) an alias that has a healthy target after it."""
    return {
        f"pair{suffix}-{name}": {"targets": [f"{at}{suffix}/{name}", f"up{suffix}/{WELL}"]}
        for at, name in rows
        for suffix in TYPES.values()
    }


async def _murmur(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that thinks for ever, and says so."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while not reader.at_eof():
            writer.write(b": keep-alive\n\n")
            await writer.drain()
            await asyncio.sleep(0.05)
    writer.close()


@contextlib.asynccontextmanager
async def bench(folder: Path, rows: list[tuple[str, str]]) -> AsyncIterator[Bench]:
    """Start everything: the provider, addresses at which something else is wrong, and both gateways."""
    certificates = Certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        upstream.for_model(WELL, Plan(text=(" well",)))
        murmuring = await asyncio.start_server(_murmur, "127.0.0.1", 0)
        untrusted = await asyncio.start_server(_murmur, "127.0.0.1", 0, ssl=context)
        await stack.enter_async_context(murmuring)
        await stack.enter_async_context(untrusted)
        addresses = {
            "up": upstream.openai_url,
            "hasty": upstream.openai_url,
            "closed": f"http://127.0.0.1:{free_port()}/v1",
            "nowhere": "http://no-such-host.invalid/v1",
            "untrusted": f"https://127.0.0.1:{untrusted.sockets[0].getsockname()[1]}/v1",
            "murmuring": f"http://127.0.0.1:{murmuring.sockets[0].getsockname()[1]}/v1",
        }
        config = {
            "providers": providers(addresses),
            "models": pairs(rows),
            "tiers": {"default": {"requests": {"limit": 100_000}}},
        }
        once, never = GatewayProcess(config), GatewayProcess({**config, "routing": {"retries": 0}})
        stack.push_async_callback(once.stop)
        stack.push_async_callback(never.stop)
        await asyncio.gather(once.start(), never.start())
        running = Bench(upstream, once, never)
        stack.push_async_callback(running.client.aclose)
        yield running
