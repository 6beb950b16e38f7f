"""The outbox: every settlement is decided once, written down, and repeated until Redis has it.

A dying stream only calls ``post``; it awaits nothing. The journal keeps the figure until Redis acknowledged it, so a
crash in between changes nothing: the next process to open the journal posts it. What was acknowledged a moment ago is
kept a little longer, to be said again where Redis turns out to have lost it.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.journal import Journal, JournalEntry, SlotState
from gateway.limits.redis import StoreUnavailable, retrying
from gateway.limits.scripts import Posting, Retention, Scripts, SettleReply, Share, Stream

_log = structlog.get_logger()

_RETRY_PAUSE_S = 0.25
_RETRY_PAUSE_MAX_S = 1.0
_RECOVERY_BUDGET_S = 20.0

# What was acknowledged is kept this long, and at most this many; beyond it the oldest is let go first.
_KEPT_S = 60.0
_KEPT_MAX = 8_192
_JOURNAL_ROOM_MIN = 4_096

_POSTED_BEFORE, NO_WALLET, TOO_OLD = 2, -1, -9


class Settlement(msgspec.Struct, frozen=True):
    """One stream's final figure on its way to Redis. ``slot`` is its place in the journal."""

    stream: Stream
    posting: Posting
    slot: int
    shares: tuple[Share, ...] = ()


class Settlements:
    """Posts settlements until each is acknowledged. ``on_posted`` is told what Redis made of each."""

    def __init__(self, scripts: Scripts, journal: Journal, retention: Retention) -> None:
        self._scripts = scripts
        self._journal = journal
        self._retention = retention
        self._pending: dict[str, Settlement] = {}
        self._kept: deque[tuple[float, Settlement]] = deque()
        self._failed: list[Settlement] = []
        self._failed_before = 0
        self._complained: set[str] = set()
        self._wake = asyncio.Event()
        self.on_posted: Callable[[Settlement, SettleReply], None] = lambda settlement, reply: None

    @property
    def pending(self) -> int:
        """How many settlements Redis has not acknowledged."""
        return len(self._pending)

    def post(self, settlement: Settlement) -> None:
        """Take over one settlement; the first for a run wins, and nothing is awaited."""
        if settlement.stream.nonce in self._pending:
            return
        self._journal.finish(settlement.slot, settlement.posting.actual)
        self._pending[settlement.stream.nonce] = settlement
        self._send(settlement)
        for share in settlement.shares:
            posting = settlement.posting
            self._scripts.cap(
                share, "release", settlement.stream.nonce, tokens=posting.tokens, refund=posting.refund
            ).add_done_callback(forget)

    def say_again(self, account: str) -> None:
        """Send again what the account was charged in the last minute: Redis has lost some of it."""
        for _, settlement in self._kept:
            if settlement.stream.account == account:
                self._send(settlement)

    def _send(self, settlement: Settlement) -> None:
        future = self._scripts.settle(settlement.stream, settlement.posting, self._retention, is_patient=True)
        future.add_done_callback(lambda done: self._answered(settlement, done))

    def _answered(self, settlement: Settlement, done: asyncio.Future[SettleReply]) -> None:
        error = done.exception() if not done.cancelled() else StoreUnavailable("cancelled")
        if error is None and done.result().code != NO_WALLET:
            self._acknowledged(settlement, done.result())
            return
        account = settlement.stream.account
        if not isinstance(error, StoreUnavailable) and account not in self._complained:
            self._complained.add(account)
            _log.error("settlement_refused", account=account, reason=str(error) if error else "it has no wallet")
        self._failed.append(settlement)
        self._wake.set()

    def _acknowledged(self, settlement: Settlement, reply: SettleReply) -> None:
        is_first = self._pending.pop(settlement.stream.nonce, None) is not None
        if is_first:
            self._keep(settlement)
        if reply.code == TOO_OLD:
            _log.error("settlement_too_old", sid=settlement.stream.sid, actual=settlement.posting.actual)
        if is_first or reply.code != _POSTED_BEFORE:
            if reply.absorbed:
                _log.warning("cost_absorbed", sid=settlement.stream.sid, microusd=reply.absorbed)
            self.on_posted(settlement, reply)

    def _keep(self, settlement: Settlement) -> None:
        now = time.monotonic()
        self._journal.keep(settlement.slot)
        self._kept.append((now, settlement))
        while self._kept and self._may_go(now):
            _, oldest = self._kept.popleft()
            self._journal.free(oldest.slot)

    def _may_go(self, now: float) -> bool:
        is_crowded = len(self._kept) > _KEPT_MAX or self._journal.room < _JOURNAL_ROOM_MIN
        return is_crowded or now - self._kept[0][0] > _KEPT_S

    async def run(self) -> None:
        """Repeat what failed, for ever; the task root of the outbox."""
        pause_s = _RETRY_PAUSE_S
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            self._wake.clear()
            failed, self._failed = self._failed, []
            # What failed before fails again until something changes: ask ever less often.
            pause_s = min(_RETRY_PAUSE_MAX_S, pause_s * 2) if self._failed_before >= len(failed) else _RETRY_PAUSE_S
            self._failed_before = len(failed)
            for settlement in failed:
                self._send(settlement)

    async def flush(self, budget_s: float) -> int:
        """Wait until everything is acknowledged or the time is over; returns what is left (the journal has it)."""
        deadline = asyncio.get_running_loop().time() + budget_s
        while self._pending and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        return len(self._pending)

    async def recover(self, folder: Path) -> int:
        """Post what earlier processes left in this journal and in abandoned ones; returns how many it changed."""
        recovered = await self._recover_from(self._journal)
        for journal in Journal.open_abandoned(folder):
            try:
                recovered += await self._recover_from(journal)
            finally:
                journal.close()
        return recovered

    async def _recover_from(self, journal: Journal) -> int:
        recovered = 0
        for entry in list(journal.entries()):
            reply = await self._recover(entry)
            if reply.code == NO_WALLET:  # another Redis, or one that lost everything: the slot is all there is
                _log.error("recovery_without_wallet", sid=entry.sid, account=entry.account, actual=entry.used)
                continue
            if reply.code == TOO_OLD and entry.state is not SlotState.POSTED:
                _log.error("settlement_too_old", sid=entry.sid, actual=entry.used)
            journal.free(entry.slot)
            recovered += reply.code not in (_POSTED_BEFORE, TOO_OLD)
        return recovered

    async def _recover(self, entry: JournalEntry) -> SettleReply:
        record = keys.record(entry.account, entry.sid)
        redis = self._scripts.redis
        stored, taken = await retrying(lambda: redis.call("HMGET", record, "lim", "n"), _RECOVERY_BUDGET_S)
        owner = keys.limits_of(entry.account)
        stream = Stream(
            sid=entry.sid,
            account=entry.account,
            created_ms=entry.created_ms,
            nonce=entry.nonce,
            allowances=Allowances.load(owner, stored) if stored else Allowances(owner),
        )
        # How many tokens it was is not in the journal: the limits keep what they were charged with.
        posting = Posting(
            actual=entry.used, outcome="failed", tokens=int(taken or 0), refund=False, usage=_recovered_usage(entry)
        )
        return await retrying(partial(self._scripts.settle, stream, posting, self._retention), _RECOVERY_BUDGET_S)


def _recovered_usage(entry: JournalEntry) -> bytes:
    facts = {"request_id": entry.request_id, "model": entry.model, "reason": "gateway_crashed", "estimated": True}
    return msgspec.json.encode(facts)


def forget(done: asyncio.Future[Any]) -> None:
    """Shared capacity that was not given back ends with its lease."""
    if not done.cancelled():
        done.exception()
