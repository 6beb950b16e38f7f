"""Whether the money is right, seen from outside of the gateway.

What was owed comes from what clients received and what providers sent, both counted in tests; what was charged is
read from Redis, not asked of a gateway. While a run lasts, the balance is sampled; after it, everything that was held
has to come back by itself.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.limits import keys
from tests.harness import GatewayProcess
from tests.reliability.crowd import Visit
from tests.upstream import Upstream

PRICE = 10
# The promise is 10 s; a machine that is busy with other things gets more before the run counts as failed.
_REST_S = 40.0
_SAMPLE_S = 0.05


class Movement(msgspec.Struct, frozen=True):
    """One row of the ledger; amounts in µ$."""

    kind: str
    sid: str
    amount: int
    absorbed: int
    record: dict[str, Any]


class Verdict(msgspec.Struct, kw_only=True):
    """The figures of a run, in µ$, and everything that was wrong.

    ``in_flight`` was charged and sent, and not read by clients that left or whose gateway died. ``undercharged`` was
    received and not charged. ``leaked`` is what was still held, taken or open when everything should be at rest.
    """

    granted: int = 0
    charged: int = 0
    delivered: int = 0
    absorbed: int = 0
    leaked: int = 0
    in_flight: int = 0
    undercharged: int = 0
    rest_s: float = 0.0
    wrongs: list[str] = msgspec.field(default_factory=list)

    def blame(self, is_right: bool, wrong: str) -> None:
        """Note something that must not be."""
        if not is_right:
            self.wrongs.append(wrong)


def open_store(redis_url: str) -> Any:
    """Redis seen from outside of our code, one server or a cluster; a call that fails is not made again."""
    options: dict[str, Any] = {"socket_timeout": 2, "socket_connect_timeout": 1, "protocol": 2}
    scheme, _, addresses = redis_url.partition("://")
    if scheme == "redis+cluster":
        nodes = [address.split(":") for address in addresses.split(",")]
        return RedisCluster(startup_nodes=[ClusterNode(host, int(port)) for host, port in nodes], **options)
    return Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **options)


class Judge:
    """Watches one account. ``allowed`` is how much each request may be undercharged, by request id, in µ$."""

    def __init__(self, store: Any, account: str, upstream: Upstream) -> None:
        self.store = store
        self.allowed: dict[str, int] = {}
        self._account = account
        self._upstream = upstream
        self._wrongs: list[str] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Sample the balance while the block runs."""
        async with asyncio.TaskGroup() as group:
            is_over = asyncio.Event()
            group.create_task(self._sample(is_over))
            try:
                yield
            finally:
                is_over.set()

    async def _sample(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():  # a cancellation could get lost in a call that times out
            with contextlib.suppress(RedisError, OSError, asyncio.TimeoutError):
                if wallet := await self.wallet():
                    available = wallet["g"] - wallet["s"] - wallet["h"]
                    if min(available, wallet["h"], wallet["s"]) < 0:
                        self._wrongs.append(f"negative: {wallet}")
            await asyncio.sleep(_SAMPLE_S)

    async def wallet(self) -> dict[str, int]:
        """g granted, s spent, h held, o absorbed; empty where there is no wallet."""
        values = await self.store.hmget(keys.wallet(self._account), "g", "s", "h", "o")
        return {} if values[0] is None else dict(zip("gsho", (int(value or 0) for value in values), strict=True))

    async def records(self) -> dict[str, dict[str, str]]:
        """The account's streams as Redis keeps them, by stream id."""
        prefix = keys.record(self._account, "")
        found = {}
        async for name in self.store.scan_iter(match=f"{prefix}*", count=1000):
            fields = await self.store.hgetall(name)
            found[name.decode().removeprefix(prefix)] = {k.decode(): v.decode() for k, v in fields.items()}
        return found

    async def movements(self) -> list[Movement]:
        """The account's ledger."""
        rows = await self.store.xrange(keys.ledger(self._account))
        return [
            Movement(
                fields[b"op"].decode(),
                fields.get(b"sid", b"").decode(),
                int(fields.get(b"d", 0)),
                int(fields.get(b"o", 0)),
                msgspec.json.decode(fields.get(b"rec", b"{}") or b"{}"),
            )
            for _, fields in rows
        ]

    async def left_over(self, gateways: Sequence[GatewayProcess]) -> Counter[str]:
        """What is not at rest: µ$ held, leases, slots taken, provider streams open, and what living gateways run."""
        left: Counter[str] = Counter()
        left["held"] = (await self.wallet()).get("h", 0)
        left["leases"] = await self.store.zcard(keys.leases(self._account))
        async for name in self.store.scan_iter(match=keys.limits_of(self._account).slots("*"), count=1000):
            left["slots"] += await self.store.zcard(name)
        left["upstream"] = self._upstream.open_streams
        for gateway in gateways:
            if gateway.is_running:
                left["in flight"] += int(await gateway.metric("gateway_streams_in_flight"))
                left["outbox"] += int(await gateway.metric("gateway_settlements_pending"))
        return +left

    async def until_rest(self, gateways: Sequence[GatewayProcess], verdict: Verdict) -> None:
        """Wait until everything that was held is back: the system's own work, nobody helps."""
        began = time.monotonic()
        left = await self.left_over(gateways)
        while left and time.monotonic() - began < _REST_S:
            await asyncio.sleep(0.1)
            left = await self.left_over(gateways)
        verdict.rest_s = round(time.monotonic() - began, 1)
        verdict.leaked = sum(left.values())
        verdict.blame(not left, f"left over: {dict(left)}")

    async def verdict(self, visits: Sequence[Visit], gateways: Sequence[GatewayProcess]) -> Verdict:
        """The judgement, once every client has its end."""
        verdict = Verdict(wrongs=list(self._wrongs))
        await self.until_rest(gateways, verdict)
        wallet, records, ledger = await self.wallet(), await self.records(), await self.movements()
        verdict.granted, verdict.charged, verdict.absorbed = wallet["g"], wallet["s"], wallet["o"]
        verdict.delivered = PRICE * sum(visit.received for visit in visits)
        verdict.blame(wallet["s"] <= wallet["g"], "charged more than was granted")
        self._compare_books(verdict, records, ledger)
        self._compare_clients(verdict, visits, ledger)
        return verdict

    def _compare_books(self, verdict: Verdict, records: dict[str, dict[str, str]], ledger: list[Movement]) -> None:
        """Wallet, records and ledger say the same, and nothing was posted twice."""
        totals: Counter[str] = Counter()
        times: Counter[tuple[str, str]] = Counter()
        charged: Counter[str] = Counter()
        for row in ledger:
            totals["granted" if row.kind == "grant" else "charged"] += row.amount
            if row.sid:
                times[row.kind, row.sid] += 1
                charged[row.sid] += row.amount
        verdict.blame(totals["granted"] == verdict.granted, "wallet and ledger differ in what was granted")
        verdict.blame(totals["charged"] == verdict.charged, "wallet and ledger differ in what was charged")
        verdict.blame(max(times.values(), default=0) <= 1, f"posted twice: {times.most_common(3)}")
        verdict.blame(
            sum(int(record.get("c", 0)) for record in records.values()) == verdict.charged,
            "wallet and records differ in what was charged",
        )
        verdict.blame(
            sum(int(record.get("o", 0)) for record in records.values()) == verdict.absorbed,
            "wallet and records differ in what was absorbed",
        )
        open_still = [sid for sid, record in records.items() if record["st"] == "open"]
        verdict.blame(not open_still, f"still open: {open_still[:3]}")
        last = {row.sid: row for row in ledger if row.kind in ("post", "trueup")}
        for sid, row in last.items():
            owed = row.record.get("cost")
            settled = charged[sid] + row.absorbed
            verdict.blame(owed is None or settled == owed, f"{sid}: charged and absorbed {settled}, owed {owed}")

    def _compare_clients(self, verdict: Verdict, visits: Sequence[Visit], ledger: list[Movement]) -> None:
        """Each request by itself: received, charged, and sent by the provider."""
        settled: defaultdict[str, int] = defaultdict(int)
        for row in ledger:
            if row.kind != "grant" and "request_id" in row.record:
                settled[row.record["request_id"]] += row.amount + row.absorbed
        sent: Counter[str] = Counter()
        for request in self._upstream.requests:
            sent[request.body["messages"][0]["content"]] += len(request.delivered)
        for visit in visits:
            paid, received, most = settled[visit.request_id], visit.received * PRICE, sent[visit.request_id] * PRICE
            says = f"{visit.request_id} ({visit.end}): received {received}, charged {paid}, sent by provider {most}"
            if visit.end.startswith("refused"):
                verdict.blame(paid == 0, says)
            elif paid < received:
                verdict.undercharged += received - paid
                verdict.blame(received - paid <= self.allowed.get(visit.request_id, 0), says)
            else:
                verdict.in_flight += paid - received
                verdict.blame(paid <= (received if visit.is_told else most), says)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.store.aclose()
