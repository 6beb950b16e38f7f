"""What the tests of money share: a simulated provider, a gateway before it, one account, and everybody's own count.

Every piece the provider says is one token of ``o200k``, so that the client's count, the gateway's and the provider's
can be compared. Input costs 1 µ$ per token and output 10.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.harness import GatewayProcess
from tests.upstream import Plan, Received, Upstream, Usage
from tests.upstream.exchange import Vendor

PRICE = {"input": 1, "output": 10}
INPUT_PRICE, OUTPUT_PRICE = 1, 10
# "Hello" is one token; a message adds four, a request three.
COUNTED_INPUT = 8
# What the simulated provider says it read, whatever it was.
REPORTED_INPUT = 10
PIECE = " hello"
UNENDING = Plan(text=(PIECE,), endless=True, delay_s=0.01)


def pieces(number: int, **more: Any) -> Plan:
    """An answer of so many tokens."""
    return Plan(text=(PIECE,) * number, **more)


class Ruminating(Upstream):
    """A provider whose every answer uses its bound up, all but a word of it in thoughts that it does not send."""

    def _accept(self, received: Received, vendor: Vendor) -> Plan:
        super()._accept(received, vendor)
        bound = received.body["max_completion_tokens"]
        return pieces(1, usage=Usage(input=COUNTED_INPUT, output=bound, reasoning=bound - 1))


class Entry:
    """One row of the ledger with its usage record. Amounts in µ$."""

    def __init__(self, row: dict[str, Any]) -> None:
        record = row["record"]
        self.kind: str = row["kind"]
        self.outcome: str = row["outcome"]
        self.charged = _microusd(row["charged_usd"])
        self.absorbed = _microusd(row["absorbed_usd"])
        self.record: dict[str, Any] = record
        self.reason: str = record.get("reason", "")
        self.target: str = record.get("target", "")
        self.held: int = record.get("held", 0)
        self.cost: int = record.get("cost", 0)
        self.input: int = record.get("input_tokens", 0)
        self.output: int = record.get("output_tokens", 0)
        self.counted: int = record.get("counted_output", 0)
        self.reported: int = record.get("reported_output", 0)
        self.is_estimated: bool = record.get("estimated", False)

    def __repr__(self) -> str:
        return f"<Entry {self.kind} {self.outcome} charged={self.charged} absorbed={self.absorbed} {self.record}>"

    def is_forwarded(self, received: int) -> bool:
        """Whether it charges our count of the input and of what was forwarded, of which a client got this much."""
        return (
            self.charged == self.cost == self.input * INPUT_PRICE + self.output * OUTPUT_PRICE
            and self.is_estimated
            and self.output == self.counted >= received
            and self.cost <= self.held
            and self.absorbed == 0
        )

    def is_nothing(self) -> bool:
        """Whether it charges nothing at all."""
        return (self.charged, self.absorbed, self.cost, self.input, self.output) == (0, 0, 0, 0, 0)


def _microusd(amount_usd: str) -> int:
    return int(amount_usd.replace(".", ""))


class Shop:
    """The upstream, the gateway, and a client with the account's key. ``received`` counts what the client was sent."""

    def __init__(self, upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.key = key
        self.received = 0
        self.client = httpx.AsyncClient(
            base_url=gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False
        )

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": "up/any", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}

    async def post(self, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=self.body(stream=False, **more))

    @contextlib.asynccontextmanager
    async def streaming(self, **more: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The chunks of one stream; leaving the context before its end hangs up."""
        async with self.client.stream("POST", "/v1/chat/completions", json=self.body(**more)) as response:
            assert response.status_code == 200, await response.aread()
            yield self._chunks(response)

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk: dict[str, Any] = json.loads(line[6:])
                self.received += sum(bool(choice["delta"].get("content")) for choice in chunk.get("choices", ()))
                yield chunk

    async def read(self, **more: Any) -> list[dict[str, Any]]:
        """All chunks of one stream, until it closes."""
        async with self.streaming(**more) as chunks:
            return [chunk async for chunk in chunks]

    async def leave_after(self, wanted: int, **more: Any) -> None:
        """Ask for a stream and hang up once so many tokens came."""
        async with self.streaming(**more) as chunks:
            async for _ in chunks:
                if self.received >= wanted:
                    return

    async def leave_unanswered(self) -> None:
        """Ask, and hang up while the provider says nothing."""
        task = asyncio.get_running_loop().create_task(self.post())
        await self.upstream.until(lambda upstream: upstream.stalled == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def gateway_noticed(self) -> None:
        """Wait until the gateway knows that its client has gone: its loop sees that before it answers a later call."""
        await self.gateway.balance()

    async def entry(self) -> Entry:
        """The one entry of the one exchange, once all is settled; the books agree with it."""
        balance = await self.gateway.settled(records=1)
        rows = await self.gateway.usage()
        assert len(rows) == 1, rows
        entry = Entry(rows[0])
        assert balance["spent"] == entry.charged
        assert balance["absorbed"] == entry.absorbed
        assert balance["granted"] == balance["available"] + balance["spent"]
        await self.upstream.until(lambda upstream: upstream.open_streams == 0)
        return entry

    @property
    def was_hung_up_on(self) -> bool:
        """Whether the provider saw its client go before the end of its answer."""
        return self.upstream.aborted == 1 and not self.upstream.requests[-1].is_complete

    @property
    def was_read_to_its_end(self) -> bool:
        """Whether the provider said all it had to say."""
        return self.upstream.aborted == 0 and self.upstream.requests[-1].is_complete

    def sent_bound(self, number: int = -1) -> dict[str, int]:
        """The bounds on output in a request that the provider got."""
        body = self.upstream.requests[number].body
        return {name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None}


@contextlib.asynccontextmanager
async def selling(
    *,
    usd: str = "1",
    up: dict[str, Any] | None = None,
    providers: dict[str, dict[str, Any]] | None = None,
    tier: dict[str, Any] | None = None,
    upstream: Upstream | None = None,
    **config: Any,
) -> AsyncIterator[Shop]:
    """A gateway whose provider is ``up``; ``up`` and ``tier`` add to what is said of it and of the default tier."""
    async with upstream or Upstream() as upstream:
        common = {"base_url": upstream.openai_url, "api_key": "sk-upstream", "price": PRICE}
        named = {"up": {"type": "openai", **(up or {})}, **(providers or {})}
        whole = {
            "providers": {name: {**common, **provider} for name, provider in named.items()},
            "tiers": {"default": {"requests": {"limit": 1000}, **(tier or {})}},
            **config,
        }
        async with GatewayProcess(whole) as gateway:
            shop = Shop(upstream, gateway, await gateway.account(usd=usd))
            try:
                yield shop
            finally:
                await shop.client.aclose()
