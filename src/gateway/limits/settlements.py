"""The outbox: every settlement is decided once, written down, and repeated until Redis has it.

A dying stream only calls ``post``; it awaits nothing. The journal keeps the figure until Redis acknowledged it, so a
crash in between changes nothing: the next process to open the journal posts it.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import structlog

from gateway.limits import scripts
from gateway.limits.journal import Journal, JournalEntry
from gateway.limits.redis import RedisOwner, StoreUnavailable, retrying
from gateway.limits.scripts import STREAMS, Allowances, Posting, Retention, SettleReply, Slots, Stream

_log = structlog.get_logger()

_RETRY_PAUSE_S = 0.25
_RETRY_PAUSE_MAX_S = 1.0
_RECOVERY_BUDGET_S = 20.0

# A crashed stream's slot is given back; its lease would end by itself a little later.
_SLOT_TO_FREE = Allowances(slots=(Slots(STREAMS, 0),))

TOO_OLD = -9
NO_WALLET = -1


class Settlement(msgspec.Struct, frozen=True):
    """One stream's final figure on its way to Redis. ``slot`` is its place in the journal."""

    stream: Stream
    posting: Posting
    slot: int


class Settlements:
    """Posts settlements until each is acknowledged. ``on_posted`` is told what Redis made of each."""

    def __init__(self, redis: RedisOwner, journal: Journal, retention: Retention) -> None:
        self._redis = redis
        self._journal = journal
        self._retention = retention
        self._pending: dict[str, Settlement] = {}
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
        """Take over one settlement; the first for a stream wins, and nothing is awaited."""
        if settlement.stream.sid in self._pending:
            return
        self._journal.finish(settlement.slot, settlement.posting.actual)
        self._pending[settlement.stream.sid] = settlement
        self._send(settlement)

    def _send(self, settlement: Settlement) -> None:
        future = scripts.settle(self._redis, settlement.stream, settlement.posting, self._retention)
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
        self._pending.pop(settlement.stream.sid, None)
        self._journal.free(settlement.slot)
        if reply.code == TOO_OLD:
            _log.error("settlement_too_old", sid=settlement.stream.sid, actual=settlement.posting.actual)
        if reply.absorbed:
            _log.warning("cost_absorbed", sid=settlement.stream.sid, microusd=reply.absorbed)
        self.on_posted(settlement, reply)

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
        """Post what earlier processes left in this journal and in abandoned ones; returns how many streams."""
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
            stream = Stream(sid=entry.sid, account=entry.account, created_ms=entry.created_ms, allowances=_SLOT_TO_FREE)
            posting = Posting(actual=entry.used, outcome="failed", refund=False, usage=_recovered_usage(entry))
            settle = partial(scripts.settle, self._redis, stream, posting, self._retention)
            reply = await retrying(settle, _RECOVERY_BUDGET_S)
            if reply.code == NO_WALLET:  # another Redis, or one that lost everything: the slot is all there is
                _log.error("recovery_without_wallet", sid=entry.sid, account=entry.account, actual=entry.used)
                continue
            if reply.code == TOO_OLD:
                _log.error("settlement_too_old", sid=entry.sid, actual=entry.used)
            journal.free(entry.slot)
            recovered += 1
        return recovered


def _recovered_usage(entry: JournalEntry) -> bytes:
    facts = {"request_id": entry.request_id, "model": entry.model, "reason": "gateway_crashed", "estimated": True}
    return msgspec.json.encode(facts)
