"""One stream's hold on its account: what it may spend, how that grows ahead of need, and its one end.

The rule of the whole project: a token is forwarded only while ``covers`` says that its cost is held. The hold grows
in the background while there is still enough of it; only when the account runs dry does a stream wait, and then it is
cut. The deadline of the lease is taken from before each call, so a process that was frozen longer than its lease
forwards nothing more.
"""

import asyncio
import time
from enum import StrEnum

import msgspec

from gateway.limits import scripts
from gateway.limits.journal import Journal
from gateway.limits.redis import RedisOwner, StoreUnavailable
from gateway.limits.scripts import ExtendReply, Posting, Stream
from gateway.limits.settlements import Settlement, Settlements

_DONE, _SUSPENDED, _GONE, _UNKNOWN, _NO_WALLET = 1, -6, -10, -11, -1
_RETRY_PAUSE_S = 0.05


class Shortfall(StrEnum):
    """Why a running stream may not go on."""

    CREDITS_EXHAUSTED = "credits_exhausted"
    CREDIT_STORE_UNAVAILABLE = "credit_store_unavailable"
    ACCOUNT_SUSPENDED = "account_suspended"
    LEASE_LOST = "lease_lost"


class HoldPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How holds are sized and leased.

    A slice covers ``slice_s`` of the stream's own rate. A lease is renewed every ``lease_s / 3`` and trusted
    ``margin_s`` less than Redis grants it. ``extend_budget_s`` bounds how long a stream waits for Redis when its hold
    is used up.
    """

    slice_s: float = 4.0
    lease_s: float = 9.0
    margin_s: float = 1.0
    grace_s: float = 1.0
    extend_budget_s: float = 2.0


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """Where the holds of this process are kept, and how they are sized."""

    redis: RedisOwner
    journal: Journal
    settlements: Settlements
    policy: HoldPolicy


class Reservation:
    """A stream's hold. All amounts are totals of the stream, in µ$."""

    def __init__(self, books: Books, stream: Stream, *, slot: int, held: int, slice_min: int, leased_at: float) -> None:
        """``slot`` is the stream's place in the journal, ``leased_at`` the monotonic time before the call that held."""
        self.stream = stream
        self.held = held
        self.used = 0
        self.is_settled = False
        self._books = books
        self._policy = books.policy
        self._slot = slot
        self._slice_min = slice_min
        self._slice = slice_min
        self._shortfall: Shortfall | None = None
        self._extending: asyncio.Future[ExtendReply] | None = None
        self._measured = (leased_at, 0)
        self._renewed(leased_at)

    def _renewed(self, leased_at: float) -> None:
        self._lease_deadline = leased_at + self._policy.lease_s - self._policy.margin_s
        self._beat_at = leased_at + self._policy.lease_s / 3

    def covers(self, cost: int) -> bool:
        """Whether a total of ``cost`` may be reached now."""
        return cost <= self.held and time.monotonic() < self._lease_deadline and self._shortfall is None

    def use(self, cost: int) -> None:
        """Note the new total before the bytes that cost it are sent."""
        self.used = cost
        self._books.journal.write_used(self._slot, cost)

    def keep_ahead(self) -> None:
        """Ask for more in the background once half a slice is left; costs nothing otherwise."""
        if self.held - self.used < self._slice // 2 and self._extending is None and self._shortfall is None:
            self._start_extend(self.used)

    def beat(self, now: float) -> None:
        """Renew the lease where it is due; ``now`` is monotonic."""
        if now >= self._beat_at and self._extending is None:
            self._start_extend(self.used)

    async def cover(self, cost: int) -> Shortfall | None:
        """Wait until a total of ``cost`` is held; returns why not where it cannot be."""
        deadline = time.monotonic() + self._policy.extend_budget_s
        while not self.covers(cost):
            reply = await self._extend_now(cost)
            if self._shortfall is not None:
                return self._shortfall
            if reply is not None and cost > self.held:
                return Shortfall.CREDITS_EXHAUSTED
            if not self.covers(cost) and time.monotonic() >= deadline:
                return Shortfall.CREDIT_STORE_UNAVAILABLE
            if reply is None:
                await asyncio.sleep(_RETRY_PAUSE_S)
        return None

    async def _extend_now(self, cost: int) -> ExtendReply | None:
        if self._extending is not None:
            # A background call is on its way and asked for what was needed then; its answer is taken in first.
            await asyncio.wait([self._extending])
            if self.covers(cost):
                return None
        future = self._start_extend(cost)
        await asyncio.wait([future])
        return None if future.cancelled() or future.exception() is not None else future.result()

    def _start_extend(self, need: int) -> asyncio.Future[ExtendReply]:
        now = time.monotonic()
        self._measure(now)
        future = scripts.extend(
            self._books.redis,
            self.stream,
            used=self.used,
            need=need,
            target=max(need, self.used) + self._slice,
            lease_ms=int(self._policy.lease_s * 1000),
        )
        self._extending = future
        self._beat_at = now + self._policy.lease_s / 3
        future.add_done_callback(lambda done: self._extended(done, now))
        return future

    def _measure(self, now: float) -> None:
        since, used = self._measured
        if now - since >= 0.5:
            rate = (self.used - used) / (now - since)
            self._slice = max(self._slice_min, (self._slice + int(rate * self._policy.slice_s)) // 2)
            self._measured = (now, self.used)

    def _extended(self, done: asyncio.Future[ExtendReply], asked_at: float) -> None:
        if self._extending is done:
            self._extending = None
        if done.cancelled() or isinstance(done.exception(), StoreUnavailable):
            self._beat_at = min(self._beat_at, time.monotonic() + 0.5)
            return
        reply = done.result()
        if reply.code in (_DONE, _SUSPENDED):
            self.held = reply.held
            if not self.is_settled:
                self._renewed(asked_at)
        self._shortfall = _SHORTFALLS.get(reply.code)

    def settle(self, posting: Posting) -> None:
        """End the stream, exactly once: a second call changes nothing. Nothing is awaited."""
        if self.is_settled:
            return
        self.is_settled = True
        self._lease_deadline = 0.0
        self._books.settlements.post(Settlement(self.stream, posting, self._slot))


_SHORTFALLS = {
    _SUSPENDED: Shortfall.ACCOUNT_SUSPENDED,
    _GONE: Shortfall.LEASE_LOST,
    _UNKNOWN: Shortfall.LEASE_LOST,
    _NO_WALLET: Shortfall.CREDITS_EXHAUSTED,
}
