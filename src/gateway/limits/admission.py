"""Whether a request may start: one atomic decision over its request bucket, its concurrency slot and its credit.

What a refusal means is told in our own errors; nothing is taken by a request that is refused.
"""

import asyncio
import os
import time

import msgspec

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    PermissionDenied,
    ServiceUnavailable,
)
from gateway.limits import keys, scripts
from gateway.limits.journal import JournalFull
from gateway.limits.redis import StoreUnavailable, retrying
from gateway.limits.reservation import Books, Reservation
from gateway.limits.scripts import (
    REQUESTS,
    STREAMS,
    Allowances,
    Bucket,
    HoldRange,
    Posting,
    ReserveReply,
    Retention,
    Slots,
    Stream,
)
from gateway.limits.settlements import Settlement

_ADMITTED = (1, 2)
_DEAD_HOLDS = -8
_RESERVE_BUDGET_S = 2.0
_REAP_MAX = 64
_REAP_ACCOUNTS_MAX = 10_000


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """What the accounts of one tier may do at once and per period."""

    requests: int
    period_ms: int
    burst: int
    streams: int

    @property
    def allowances(self) -> Allowances:
        """The tier's limits as the scripts take them."""
        return Allowances(
            (Bucket(REQUESTS, self.requests, self.period_ms, self.burst),), (Slots(STREAMS, self.streams),)
        )


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request needs to start. Amounts in µ$.

    ``hold_min`` covers its input and its first tokens, ``slice`` is what it is given beyond the input while the
    balance is ample. ``facts`` is the usage record as far as it is known, as JSON, for a stream nobody could finish.
    """

    account: str
    tier: Tier
    model: str
    request_id: str
    hold_min: int
    slice: int
    facts: bytes


class Admission:
    """Decides which requests start, and gives each that does its ``Reservation``."""

    def __init__(self, books: Books, retention: Retention) -> None:
        self._books = books
        self._redis = books.redis
        self._policy = books.policy
        self._retention = retention
        self._nonce = os.urandom(16).hex()
        self._announced: dict[str, float] = {}

    async def reserve(self, ask: Ask) -> Reservation:
        """Admit one request.

        Raises ``CreditsExhausted``, ``LimitExceeded``, ``PermissionDenied`` (unknown or suspended account) or
        ``ServiceUnavailable`` (Redis does not answer, or no more streams fit into the journal).
        """
        stream = Stream(
            sid=os.urandom(16).hex(),
            account=ask.account,
            created_ms=int(time.time() * 1000),
            allowances=ask.tier.allowances,
        )
        slot = self._open_slot(stream, ask)
        leased_at = time.monotonic()
        try:
            reply = await self._ask_redis(stream, ask)
        except StoreUnavailable:
            self._withdraw(stream, slot, ask)
            raise ServiceUnavailable(
                "Credits cannot be checked at the moment; nothing was charged. Try again shortly.", retry_after_s=1
            ) from None
        except BaseException:
            self._withdraw(stream, slot, ask)
            raise
        if reply.code not in _ADMITTED:
            self._books.journal.free(slot)
            raise _refusal(reply, ask)
        return Reservation(self._books, stream, slot=slot, held=reply.held, slice_min=ask.slice, leased_at=leased_at)

    def _open_slot(self, stream: Stream, ask: Ask) -> int:
        try:
            return self._books.journal.open(
                sid=stream.sid,
                account=ask.account,
                created_ms=stream.created_ms,
                model=ask.model,
                request_id=ask.request_id,
            )
        except JournalFull:
            raise ServiceUnavailable("This gateway runs as many streams as it can.", retry_after_s=1) from None

    async def _ask_redis(self, stream: Stream, ask: Ask) -> ReserveReply:
        self._announce(ask.account)
        reply = await retrying(lambda: self._reserve_once(stream, ask), _RESERVE_BUDGET_S)
        if reply.code == _DEAD_HOLDS:
            await self.reap(ask.account, grace_s=0)
            reply = await retrying(lambda: self._reserve_once(stream, ask), _RESERVE_BUDGET_S)
        return reply

    async def _reserve_once(self, stream: Stream, ask: Ask) -> ReserveReply:
        return await scripts.reserve(
            self._redis,
            stream,
            nonce=self._nonce,
            hold=HoldRange(ask.hold_min, ask.hold_min + ask.slice),
            lease_ms=int(self._policy.lease_s * 1000),
            facts=ask.facts,
        )

    def _announce(self, account: str) -> None:
        """Tell reapers where to look: sent before the stream's own call, once per account and lease."""
        now = time.monotonic()
        if now < self._announced.get(account, 0):
            return
        if len(self._announced) > 10_000:
            self._announced = {name: until for name, until in self._announced.items() if until > now}
        self._announced[account] = now + self._policy.lease_s
        until_ms = int((time.time() + 2 * self._policy.lease_s) * 1000)
        self._redis.call("ZADD", keys.ACTIVE, "GT", until_ms, account).add_done_callback(_ignore)

    def _withdraw(self, stream: Stream, slot: int, ask: Ask) -> None:
        """Nobody knows whether Redis admitted the stream: settle it with nothing, whichever is true."""
        posting = Posting(actual=0, outcome="failed", refund=True, usage=ask.facts)
        self._books.settlements.post(Settlement(stream, posting, slot))

    async def reap(self, account: str, *, grace_s: float | None = None) -> int:
        """Finish the account's streams of which the lease ran out; returns how many. Safe to run anywhere."""
        grace_ms = int((self._policy.grace_s if grace_s is None else grace_s) * 1000)
        due = await self._due(account, await self._server_time_ms() - grace_ms)
        return await self._reap(account, due, grace_ms)

    def _due(self, account: str, until_ms: int) -> asyncio.Future[list[bytes]]:
        return self._redis.call("ZRANGEBYSCORE", keys.leases(account), "-inf", until_ms, "LIMIT", 0, _REAP_MAX)

    async def _reap(self, account: str, due: list[bytes], grace_ms: int) -> int:
        if not due:
            return 0
        sids = tuple(sid.decode() for sid in due)
        reply = await scripts.reap(
            self._redis, account, sids, slots=STREAMS, grace_ms=grace_ms, retention=self._retention
        )
        return max(reply.reaped, 0)

    async def reap_abandoned(self) -> int:
        """Look at every account that may have streams; the body of the reaper's loop. Returns how many it finished."""
        grace_ms = int(self._policy.grace_s * 1000)
        now_ms = await self._server_time_ms()
        flat = await self._redis.call(
            "ZRANGEBYSCORE", keys.ACTIVE, "-inf", "+inf", "WITHSCORES", "LIMIT", 0, _REAP_ACCOUNTS_MAX
        )
        announced = {name.decode(): float(until) for name, until in zip(flat[::2], flat[1::2], strict=True)}
        answers = await asyncio.gather(*(self._due(name, now_ms - grace_ms) for name in announced))
        reaped = 0
        for name, due in zip(announced, answers, strict=True):
            if due:
                reaped += await self._reap(name, due, grace_ms)
            elif announced[name] < now_ms and not await self._redis.call("ZCARD", keys.leases(name)):
                await self._redis.call("ZREM", keys.ACTIVE, name)
        return reaped

    async def _server_time_ms(self) -> int:
        seconds, micros = await self._redis.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _ignore(done: object) -> None:
    """An announcement that got lost is repeated with the next stream."""
    exception = getattr(done, "exception", None)
    if exception is not None:
        exception()


def _refusal(reply: ReserveReply, ask: Ask) -> GatewayError:
    match reply.code:
        case -1:
            return PermissionDenied(
                "The account of this credential does not exist here. Ask the operator to create it.",
                code=ErrorCode.PERMISSION_DENIED,
            )
        case -2 | -8:
            return CreditsExhausted(
                f"The account has ${max(reply.available, 0) / 1e6:.6f} available; this request needs at least "
                f"${ask.hold_min / 1e6:.6f} to start. Add credit and try again."
            )
        case -4:
            return LimitExceeded(
                f"This account may make {ask.tier.requests} requests in {ask.tier.period_ms / 1000:g} s, "
                f"{ask.tier.burst} of them at once.",
                limit=REQUESTS,
                scope="account",
                retry_after_s=reply.retry_after_ms / 1000,
            )
        case -5:
            return LimitExceeded(
                f"This account runs as many requests at once as it may: {ask.tier.streams}.",
                limit=STREAMS,
                scope="account",
                code=ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
                retry_after_s=1,
            )
        case -6:
            return PermissionDenied("The account is suspended.", code=ErrorCode.ACCOUNT_SUSPENDED)
        case code:
            raise AssertionError(f"reserve answered {code}")
