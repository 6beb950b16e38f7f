"""Whether a request may start: one atomic decision over its account's limits and credit, after the capacity it shares.

What a refusal means is told in our own errors; nothing is taken by a request that is refused.
"""

import asyncio
import itertools
import os
import time
from functools import partial

import msgspec

from gateway.canonical.errors import LimitExceeded, ServiceUnavailable
from gateway.limits import keys
from gateway.limits.alone import Alone
from gateway.limits.journal import JournalFull
from gateway.limits.redis import StoreUnavailable, retrying
from gateway.limits.refusals import label_of, refusal, share_refusal
from gateway.limits.reservation import TOUCH_S, Books, Reservation
from gateway.limits.scripts import HoldRange, Posting, ReserveReply, Scripts, Share, Stream
from gateway.limits.settlements import Settlement, forget
from gateway.limits.tiers import Limits

_ADMITTED = (1, 2)
_DEAD_HOLDS, _RECOVERING = -8, -20
_RESERVE_BUDGET_S = 2.0
_RECOVERY_BUDGET_S = 3.0
# Where this gateway may decide alone there is no point in waiting for Redis to come back.
_IMPATIENT_BUDGET_S = 0.3
_CAP_BUDGET_S = 1.0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request needs to start.

    ``tokens`` is what it will take of token limits, as far as that can be known. ``facts`` is the usage record as far
    as it is known, as JSON, for a stream nobody could finish. ``idempotency_key`` and the ``digest`` of the request
    are empty where the client named no key.
    """

    account: str
    limits: Limits
    hold: HoldRange
    tokens: int
    model: str
    request_id: str
    facts: bytes
    idempotency_key: str = ""
    digest: str = ""


class Admission:
    """Decides which requests start, and gives each that does its ``Reservation``."""

    def __init__(self, books: Books, alone: Alone | None = None) -> None:
        """``alone`` decides while Redis is away, where no money is at stake."""
        self._books = books
        self._alone = alone
        self._budget_s = _RESERVE_BUDGET_S if alone is None else _IMPATIENT_BUDGET_S
        self._scripts: Scripts = books.scripts
        self._policy = books.policy
        self._nonces = itertools.count(int.from_bytes(os.urandom(8), "big") >> 1)

    async def reserve(self, ask: Ask) -> Reservation:
        """Admit one request.

        Raises ``CreditsExhausted``, ``LimitExceeded``, ``PermissionDenied`` (unknown or suspended account),
        ``RequestError`` (its idempotency key was used before) or ``ServiceUnavailable`` (Redis does not answer, or no
        more streams fit into the journal).
        """
        stream = self._stream(ask)
        slot = self._open_slot(stream, ask)
        shares: tuple[Share, ...] = ()
        shadowed: tuple[str, ...] = ()
        calls = _Calls()
        try:
            shares, shadowed = await self._acquire(stream, ask)
            leased_at = time.monotonic()
            reply = await self._ask_redis(stream, ask, calls)
            if reply.code not in _ADMITTED:
                raise refusal(reply, ask.limits.own, ask.hold.least)
        except StoreUnavailable:
            if self._alone is not None:
                return self._admit_alone(self._alone, stream, slot, ask, shares)
            self._give_up(calls, stream, slot, ask, shares)
            raise ServiceUnavailable(
                "Credits cannot be checked at the moment; nothing was charged. Try again shortly.", retry_after_s=1
            ) from None
        except BaseException as error:
            if not isinstance(error, Exception):
                calls.sent += 1  # a cancelled request was waiting for a call
            self._give_up(calls, stream, slot, ask, shares)
            raise
        reservation = Reservation(self._books, stream, reply, slot=slot, leased_at=leased_at)
        # What is held in full from the start is not asked for more ahead of need.
        slice_min = 0 if ask.hold.takes_all else ask.hold.most - ask.hold.least
        reservation.grow_by(slice_min, tokens=ask.tokens)
        reservation.shares = shares
        reservation.shared_shadowed = shadowed
        return reservation

    def _give_up(self, calls: "_Calls", stream: Stream, slot: int, ask: Ask, shares: tuple[Share, ...]) -> None:
        """Nothing was admitted, as far as is known: a call that got no answer may yet be carried out."""
        if calls.is_certain:
            self._books.journal.free(slot)
            self._release(stream, shares)
        else:
            self._withdraw(stream, slot, ask, shares)

    def _admit_alone(self, alone: Alone, stream: Stream, slot: int, ask: Ask, shares: tuple[Share, ...]) -> Reservation:
        """Redis is away and no money is at stake: this gateway's own share of the limits decides."""
        try:
            alone.take(ask.limits.own, ask.tokens)
        except LimitExceeded:
            self._withdraw(stream, slot, ask, shares)
            raise
        reply = ReserveReply(1, 0, 0, 0, 0, 0, 0, 0, [], [])
        reservation = Reservation(self._books, stream, reply, slot=slot, leased_at=time.monotonic())
        reservation.shares = shares
        reservation.on_settled = lambda: alone.give_back(ask.limits.own)
        return reservation

    def _stream(self, ask: Ask) -> Stream:
        sid = stream_id(ask.account, ask.idempotency_key) if ask.idempotency_key else os.urandom(16).hex()
        return Stream(
            sid=sid,
            account=ask.account,
            created_ms=int(time.time() * 1000),
            nonce=f"{next(self._nonces):016x}",
            allowances=ask.limits.own,
            request=ask.digest,
        )

    def _open_slot(self, stream: Stream, ask: Ask) -> int:
        try:
            return self._books.journal.open(
                sid=stream.sid,
                account=ask.account,
                created_ms=stream.created_ms,
                model=ask.model,
                request_id=ask.request_id,
                nonce=stream.nonce,
            )
        except JournalFull:
            raise ServiceUnavailable("This gateway runs as many streams as it can.", retry_after_s=1) from None

    # Capacity that accounts share, before money: it is given back where the account's own decision is no.

    async def _acquire(self, stream: Stream, ask: Ask) -> tuple[tuple[Share, ...], tuple[str, ...]]:
        """The shares taken, and the labels of limits that would have refused and only watch."""
        taken: list[Share] = []
        shadowed: list[str] = []
        for owner, allowances in ask.limits.shared:
            share = Share(owner=owner, allowances=allowances, estimate=ask.tokens, lease_ms=int(TOUCH_S * 3000))
            try:
                reply = await retrying(partial(self._scripts.cap, share, "acquire", stream.nonce), _CAP_BUDGET_S)
            except BaseException:
                self._release(stream, (*taken, share))
                raise
            if reply.code < 0:
                self._release(stream, tuple(taken))
                raise share_refusal(reply, allowances)
            taken.append(share)
            shadowed += (label_of(allowances.at(index)) for index in reply.shadowed)
        return tuple(taken), tuple(shadowed)

    def _release(self, stream: Stream, shares: tuple[Share, ...]) -> None:
        for share in shares:
            self._scripts.cap(share, "release", stream.nonce, refund=True).add_done_callback(forget)

    # The account's own decision.

    async def _ask_redis(self, stream: Stream, ask: Ask, calls: "_Calls") -> ReserveReply:
        self._books.reaper.announce(ask.account, self._policy.lease_s)
        reply = await retrying(lambda: self._reserve_once(stream, ask, calls), self._budget_s)
        if reply.code == _DEAD_HOLDS:
            await self._books.reaper.reap(ask.account, has_grace=False)
            reply = await retrying(lambda: self._reserve_once(stream, ask, calls), self._budget_s)
        until = time.monotonic() + _RECOVERY_BUDGET_S
        while reply.code == _RECOVERING and time.monotonic() < until:
            await asyncio.sleep(min(reply.retry_after_ms / 1000 + 0.01, 0.5))
            reply = await retrying(lambda: self._reserve_once(stream, ask, calls), self._budget_s)
        return reply

    async def _reserve_once(self, stream: Stream, ask: Ask, calls: "_Calls") -> ReserveReply:
        calls.sent += 1
        reply = await self._scripts.reserve(
            stream, hold=ask.hold, lease_ms=int(self._policy.lease_s * 1000), tokens=ask.tokens, facts=ask.facts
        )
        calls.answered += 1
        return reply

    def _withdraw(self, stream: Stream, slot: int, ask: Ask, shares: tuple[Share, ...]) -> None:
        """Nobody knows whether Redis admitted the stream: settle it with nothing, whichever is true."""
        posting = Posting(actual=0, outcome="failed", tokens=0, refund=True, usage=ask.facts)
        self._books.settlements.post(Settlement(stream, posting, slot, shares))


class _Calls:
    """Whether every call that was sent has been answered."""

    __slots__ = ("answered", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.answered = 0

    @property
    def is_certain(self) -> bool:
        return self.sent == self.answered


def stream_id(account: str, idempotency_key: str) -> str:
    """The id of the one stream that an account's idempotency key stands for: 32 hex digits."""
    return keys.digest(f"{account}\n{idempotency_key}", 16)
