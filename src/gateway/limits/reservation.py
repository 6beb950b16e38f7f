"""One stream's hold on its account: what it may spend, how that grows ahead of need, and its one end.

The rule of the whole project: a token is forwarded only while ``covers`` says that its cost is held. The hold grows
in the background while there is still enough of it; only when the account runs dry does a stream wait, and then it is
cut. The deadline of the lease is taken from before each call, so a process that was frozen longer than its lease
forwards nothing more.
"""

import asyncio
import math
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from gateway.limits.journal import Journal
from gateway.limits.reaper import Reaper
from gateway.limits.redis import StoreUnavailable
from gateway.limits.scripts import ExtendReply, Growth, Posting, ReserveReply, Scripts, Share, Stream
from gateway.limits.settlements import Settlement, Settlements, forget

_DONE, _RECOVERING, _SUSPENDED, _DEAD_HOLDS, _GONE, _UNKNOWN, _NO_WALLET = 1, 20, -6, -8, -10, -11, -1
_RETRY_PAUSE_S = 0.05
# A stream that asked for more and got less asks again after this, unless it cannot go on without.
_DRY_PAUSE_S = 0.25
# How often Redis is told again what it has lost, while it recovers (1.5 s).
_SAY_AGAIN_S = 0.5
# How often shared capacity is renewed; its leases are three times as long.
TOUCH_S = 10.0


class Shortfall(StrEnum):
    """Why a running stream may not go on."""

    CREDITS_EXHAUSTED = "credits_exhausted"
    BUDGET_EXCEEDED = "budget_exceeded"
    CREDIT_STORE_UNAVAILABLE = "credit_store_unavailable"
    ACCOUNT_SUSPENDED = "account_suspended"
    LEASE_LOST = "lease_lost"


class HoldPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How holds are sized and leased.

    A slice covers ``slice_s`` of the stream's own rate. A lease is renewed every ``lease_s / 3`` and trusted
    ``margin_s`` less than Redis grants it. ``extend_budget_s`` bounds how long a stream waits for Redis when its hold
    is used up. Without ``keeps_money`` nothing is held, and no stream depends on its lease.
    """

    slice_s: float = 4.0
    lease_s: float = 9.0
    margin_s: float = 1.0
    grace_s: float = 1.0
    extend_budget_s: float = 2.0
    keeps_money: bool = True


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """Where the holds of this process are kept, and how they are sized. ``open`` are its streams by account."""

    scripts: Scripts
    journal: Journal
    settlements: Settlements
    policy: HoldPolicy
    reaper: Reaper
    open: dict[str, set["Reservation"]] = msgspec.field(default_factory=dict)
    said_until: dict[str, float] = msgspec.field(default_factory=dict)

    def say_again(self, account: str) -> None:
        """Redis has lost what it acknowledged: tell it what this process holds and what it has settled.

        Each answer asks for it anew while Redis recovers, so it is done every ``_SAY_AGAIN_S`` at most.
        """
        now = time.monotonic()
        if now < self.said_until.get(account, 0.0):
            return
        if len(self.said_until) > 10_000:
            self.said_until.clear()
        self.said_until[account] = now + _SAY_AGAIN_S
        for reservation in tuple(self.open.get(account, ())):
            reservation.say_again()
        self.settlements.say_again(account)


class Reservation:
    """A stream's hold. All amounts are totals of the stream, in µ$."""

    def __init__(self, books: Books, stream: Stream, reply: ReserveReply, *, slot: int, leased_at: float) -> None:
        """``slot`` is the stream's place in the journal, ``leased_at`` the monotonic time before the call that held."""
        self.stream = stream
        self.held = reply.held
        self.available = reply.available
        self.used = 0
        self.tokens = self.tokens_taken = 0
        self.used_permille = reply.used_permille
        self.used_index = reply.used_index
        self.left = reply.left
        self.shadowed = reply.shadowed
        self.debt_ms = 0
        self.is_settled = False
        self.shares: tuple[Share, ...] = ()
        self.shared_shadowed: tuple[str, ...] = ()
        self.cost_max: int | None = None
        self.on_settled: Callable[[], None] | None = None
        self._books = books
        self._policy = books.policy
        self._slot = slot
        self._slice_min = self._slice = 0
        self._shortfall: Shortfall | None = None
        self._extending: asyncio.Future[ExtendReply] | None = None
        self._dry_until = 0.0
        self._measured = (leased_at, 0)
        self._touch_at = leased_at + TOUCH_S
        self._renewed(leased_at)
        books.open.setdefault(stream.account, set()).add(self)

    def grow_by(self, slice_min: int, *, tokens: int = 0) -> None:
        """Ask for at least this much at a time, in µ$; the admission took ``tokens`` from the token limits."""
        self._slice_min = self._slice = slice_min
        self.tokens = self.tokens_taken = tokens

    def _renewed(self, leased_at: float) -> None:
        self._lease_deadline = math.inf
        if self._policy.keeps_money:
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
        if self.held - self.used >= self._slice // 2 or self._extending is not None or self._shortfall is not None:
            return
        if self.cost_max is not None and self.held >= self.cost_max:
            return
        if time.monotonic() >= self._dry_until:
            self._start_extend(self.used)

    def beat(self, now: float) -> None:
        """Renew the lease where it is due; ``now`` is monotonic."""
        if now >= self._beat_at and self._extending is None:
            self._start_extend(self.used)
        if self.shares and now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            for share in self.shares:
                self._books.scripts.cap(share, "touch", self.stream.nonce).add_done_callback(forget)

    def say_again(self) -> None:
        """Tell Redis what is held, since it has lost it."""
        if not self.is_settled and self._extending is None:
            self._start_extend(self.used)

    async def cover(self, cost: int) -> Shortfall | None:
        """Wait until a total of ``cost`` is held; returns why not where it cannot be."""
        deadline = time.monotonic() + self._policy.extend_budget_s
        has_reaped = False
        while not self.covers(cost):
            reply = await self._extend_now(cost)
            if self._shortfall is not None:
                return self._shortfall
            if reply is not None and reply.code == _DEAD_HOLDS and not has_reaped:
                has_reaped = True
                await self._reap()
                continue
            if reply is not None and reply.code in (_DONE, _DEAD_HOLDS) and cost > self.held:
                is_budget = reply.available >= cost - self.held  # the balance would do
                return Shortfall.BUDGET_EXCEEDED if is_budget else Shortfall.CREDITS_EXHAUSTED
            if not self.covers(cost) and time.monotonic() >= deadline:
                return Shortfall.CREDIT_STORE_UNAVAILABLE
            if reply is None or reply.code == _RECOVERING:
                await asyncio.sleep(_RETRY_PAUSE_S)
        return None

    async def _reap(self) -> None:
        try:
            await self._books.reaper.reap(self.stream.account, has_grace=False)
        except StoreUnavailable:
            return

    async def _extend_now(self, cost: int) -> ExtendReply | None:
        if self._extending is not None:
            # A background call is on its way and asked for what was needed then; its answer is taken in first.
            await asyncio.wait([self._extending])
            if self.covers(cost):
                return None
        future = self._start_extend(cost)
        await asyncio.wait([future])
        return None if future.cancelled() or future.exception() is not None else future.result()

    def _start_extend(self, need: int, *, revive: bool = False) -> asyncio.Future[ExtendReply]:
        now = time.monotonic()
        self._measure(now)
        growth = Growth(
            used=self.used,
            need=need,
            target=self._target(need),
            believed=self.held,
            tokens=self.tokens,
            is_beyond=self.tokens > self.tokens_taken,
        )
        lease_ms = int(self._policy.lease_s * 1000)
        future = self._books.scripts.extend(self.stream, growth, lease_ms=lease_ms, revive=revive)
        self._extending = future
        self._beat_at = now + self._policy.lease_s / 3
        future.add_done_callback(lambda done: self._extended(done, now))
        return future

    def _target(self, need: int) -> int:
        """The hold to ask for: a slice ahead, not beyond what the stream can cost at all, never less than there is."""
        target = max(need, self.used) + self._slice
        if self.cost_max is not None:
            target = max(min(target, self.cost_max), need)
        return max(target, self.held)

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
        if reply.code == _UNKNOWN and not self.is_settled:
            self._books.reaper.forget_announcements(self.stream.account)
            self._books.reaper.announce(self.stream.account, self._policy.lease_s)
            self._start_extend(self.used, revive=True)
            return
        if reply.code in (_DONE, _RECOVERING, _DEAD_HOLDS, _SUSPENDED):
            self._take_in(reply, asked_at)
        if self._policy.keeps_money or reply.code == _SUSPENDED:
            self._shortfall = _SHORTFALLS.get(reply.code)

    def _take_in(self, reply: ExtendReply, asked_at: float) -> None:
        self.held = reply.held
        self.available = reply.available
        self.used_permille, self.used_index, self.debt_ms = reply.used_permille, reply.used_index, reply.debt_ms
        if reply.held < self.used + self._slice:
            self._dry_until = asked_at + _DRY_PAUSE_S
        if not self.is_settled:
            self._renewed(asked_at)
            if reply.code == _RECOVERING:
                self._beat_at = asked_at + _DRY_PAUSE_S  # what goes beyond what was believed is asked for after it

    def settle(self, posting: Posting) -> None:
        """End the stream, exactly once: a second call changes nothing. Nothing is awaited."""
        if self.is_settled:
            return
        self.is_settled = True
        self._lease_deadline = 0.0
        if self.on_settled is not None:
            self.on_settled()
        mine = self._books.open.get(self.stream.account)
        if mine is not None:
            mine.discard(self)
            if not mine:
                del self._books.open[self.stream.account]
        self._books.settlements.post(Settlement(self.stream, posting, self._slot, self.shares))


_SHORTFALLS = {
    _SUSPENDED: Shortfall.ACCOUNT_SUSPENDED,
    _GONE: Shortfall.LEASE_LOST,
    _NO_WALLET: Shortfall.CREDIT_STORE_UNAVAILABLE,
}
