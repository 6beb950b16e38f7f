"""Replicas over one Redis, in front of one simulated provider, and clients that talk to all of them in turn.

Redis is a real server, seen from outside of our code as ``store``; the gateways are real processes.
"""

import asyncio
import contextlib
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import httpx
from redis import Redis

from gateway.limits import keys
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

Json: TypeAlias = dict[str, Any]

CHAT = "/v1/chat/completions"
AI_SDK = "/api/ai/chat-stream"
# "Hello" as the only message is 8 input tokens by our count.
INPUT_TOKENS = 8


def ask(**more: Any) -> Json:
    """A Chat Completions body; 8 + 2 tokens of token limits unless it says otherwise."""
    return {"model": "up/any", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}], **more}


class Party:
    """An account with a key, asking whichever replica is next."""

    def __init__(self, fleet: "Fleet", account: str, key: str) -> None:
        self.fleet = fleet
        self.account = account
        self.key = key

    def headers(self, **more: str) -> dict[str, str]:
        """The credential, and whatever else (underscores become hyphens)."""
        return {"Authorization": f"Bearer {self.key}", **{name.replace("_", "-"): more[name] for name in more}}

    async def post(self, *, replica: int | None = None, headers: dict[str, str] | None = None, **more: Any) -> Any:
        """One request that is answered as a whole."""
        url = self.fleet.url(replica) + CHAT
        return await self.fleet.client.post(url, json=ask(**more), headers=self.headers(**(headers or {})))

    async def codes(self, count: int, **more: Any) -> list[str]:
        """The error codes of so many requests, one after the other; "" for one that was answered."""
        return [code_of(await self.post(**more)) for _ in range(count)]

    @contextlib.asynccontextmanager
    async def streaming(self, *, replica: int | None = None, **more: Any) -> AsyncIterator[httpx.Response]:
        """A stream that was admitted and is open."""
        body = ask(stream=True, **more)
        async with self.fleet.client.stream(
            "POST", self.fleet.url(replica) + CHAT, json=body, headers=self.headers()
        ) as response:
            assert response.status_code == 200, await response.aread()
            yield response

    async def frames(self, *, headers: dict[str, str] | None = None, **more: Any) -> list[Any]:
        """The events of one stream until it closes, ``"[DONE]"`` included."""
        body = ask(stream=True, **more)
        answer = await self.fleet.client.post(
            self.fleet.url() + CHAT, json=body, headers=self.headers(**(headers or {}))
        )
        assert answer.status_code == 200, answer.text
        return parsed(answer.text)

    async def lines(self, **more: Any) -> list[str]:
        """The lines of one AI SDK 4 stream until it closes."""
        body = {"model": "up/any", "messages": [{"role": "user", "content": "Hello"}], **more}
        answer = await self.fleet.client.post(self.fleet.url() + AI_SDK, json=body, headers=self.headers())
        assert answer.status_code == 200, answer.text
        return answer.text.splitlines()

    async def settled(self, **more: Any) -> dict[str, int]:
        """The balance once nothing is held."""
        return await self.fleet.gateways[0].settled(self.account, **more)

    async def usage(self) -> list[Json]:
        """Usage records, newest first."""
        return await self.fleet.gateways[0].usage(self.account)

    async def record(self, number: int = 1) -> Json:
        """The newest usage record, once there are so many."""
        await self.settled(records=number)
        record: Json = (await self.usage())[0]["record"]
        return record

    async def change(self, *, replica: int = 0, **change: Any) -> None:
        """PATCH the account."""
        answer = await self.fleet.gateways[replica].admin.patch(f"/accounts/{self.account}", json=change)
        assert answer.status_code == 200, answer.text

    def bucket(self, limit: str, period_ms: int) -> int | None:
        """What Redis has stored of a token bucket, in its unit; ``None`` where it is full."""
        stored = self.fleet.store.get(keys.limits_of(self.account).bucket(limit))
        return None if stored is None else int(stored.split()[0]) // period_ms

    def traces(self) -> Json:
        """Every bucket, window and slot of the account as it is stored."""
        found = {}
        for kind in "rbc":
            for name in self.fleet.store.scan_iter(f"cr:{{{self.account}}}:{kind}:*", count=1000):
                read = {"r": self.fleet.store.get, "b": self.fleet.store.hgetall}.get(
                    kind, lambda key: self.fleet.store.zrange(key, 0, -1, withscores=True)
                )
                found[name.decode()] = read(name)
        return found

    def slots(self) -> int:
        """How many slots of the account are taken."""
        names = self.fleet.store.scan_iter(f"cr:{{{self.account}}}:c:*", count=1000)
        return sum(self.fleet.store.zcard(name) for name in names)


class Fleet:
    """So many gateways over one Redis."""

    def __init__(self, upstream: Upstream, store: Redis, gateways: list[GatewayProcess]) -> None:
        self.upstream = upstream
        self.store = store
        self.gateways = gateways
        self._turns = itertools.cycle(range(len(gateways)))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        self.client = httpx.AsyncClient(timeout=50, trust_env=False, limits=limits)

    def url(self, replica: int | None = None) -> str:
        """A replica's address; the next one's where none is named."""
        return self.gateways[next(self._turns) if replica is None else replica].base_url

    async def party(self, tier: str | None = None, *, usd: str = "1", models: list[str] | None = None) -> Party:
        """A new account of a tier, with credit and a key."""
        account = f"a{uuid.uuid4().hex[:12]}"
        key = await self.gateways[0].account(account, usd=usd, tier=tier, models=models)
        return Party(self, account, key)

    async def another_key(self, party: Party) -> Party:
        """The same account with another key."""
        return Party(self, party.account, await self.gateways[0].account(party.account, usd="0"))

    async def until(self, condition: Callable[[], Any], timeout_s: float = 15) -> None:
        """Wait for something that can be seen in Redis."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)


def provider(upstream: Upstream, price: Json | None = None, **more: Any) -> Json:
    """The simulated provider as the configuration names it."""
    price = price or {"input": 1, "output": 10}
    return {"type": "openai", "base_url": upstream.openai_url, "api_key": "sk-upstream", "price": price, **more}


@contextlib.asynccontextmanager
async def fleet(config: Json, *, replicas: int = 1, price: Json | None = None) -> AsyncIterator[Fleet]:
    """Start everything; ``config`` lacks only its provider, ``up``."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        upstream.plan = Plan(text=("one", " two"))
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(Redis.from_url(redis.url))
        providers = {"up": provider(upstream, price), **config.get("providers", {})}
        whole = {"routing": {"retry_share": 1}, **config, "providers": providers}
        gateways = [GatewayProcess(whole, redis_url=redis.url) for _ in range(replicas)]
        for gateway in gateways:
            stack.push_async_callback(gateway.stop)
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        running = Fleet(upstream, store, gateways)
        stack.push_async_callback(running.client.aclose)
        yield running


def code_of(answer: httpx.Response) -> str:
    """An answer's error code, or "" where there is none."""
    return "" if answer.status_code == 200 else answer.json()["error"]["code"]


def parsed(text: str) -> list[Any]:
    """The events of a Chat Completions stream."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def said(frames: list[Any]) -> list[str]:
    """The pieces of text in events."""
    choices = [choice for frame in frames if frame != "[DONE]" for choice in frame.get("choices", ())]
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


def notes(frames: list[Any]) -> list[Json]:
    """What the gateway itself said in events."""
    return [frame["x_gateway"] for frame in frames if frame != "[DONE]" and "x_gateway" in frame]
