"""The journal survives what a process may suffer, and what it holds is posted once, whoever finds it."""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.limits import keys
from gateway.limits.journal import SLOT_BYTES, Journal, JournalEntry, JournalFull, SlotState
from gateway.limits.redis import StoreUnavailable
from gateway.limits.scripts import STREAMS, Allowances, Posting, Retention, Slots
from gateway.limits.settlements import Settlement, Settlements

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

# A gateway, as far as its journal goes: three streams, and then it writes until it is killed.
WRITER = """
import sys, time
from pathlib import Path
from gateway.limits.journal import Journal
journal = Journal.open_free(Path(sys.argv[1]))
for sid in ("first", "second", "third"):
    slot = journal.open(sid=sid, account="acme", created_ms=int(time.time() * 1000), model="m", request_id="r")
    journal.write_used(slot, 30)
journal.finish(1, 25)
journal.free(2)
print("ready", flush=True)
used = 30
while True:
    used += 1
    journal.write_used(0, used)
    if used == 100_000:
        print("far", flush=True)
"""


def opened(journal: Journal, sid: str = "s", **fields: Any) -> int:
    given = {"account": "acme", "created_ms": 1_700_000_000_000, "model": "m", "request_id": "r", **fields}
    return journal.open(sid=sid, **given)


def entries(path: Path, *, slots: int = 4) -> list[JournalEntry]:
    journal = Journal(path, slots=slots)
    try:
        return list(journal.entries())
    finally:
        journal.close()


class Writer:
    """A process with the journal in a folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_what_was_written_is_there_after_kill_nine(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    assert writer.process.stdout is not None
    assert writer.process.stdout.readline() == "far\n"
    writer.kill()
    first, second = entries(tmp_path / "0.journal")
    assert (first.sid, first.state) == ("first", SlotState.OPEN)
    assert first.used >= 100_000
    assert (second.sid, second.state, second.used) == ("second", SlotState.FINAL, 25)


def test_a_journal_belongs_to_one_living_process(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    try:
        with pytest.raises(BlockingIOError):
            Journal(tmp_path / "0.journal")
        ours = Journal.open_free(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0.journal", "1.journal"]
        assert list(Journal.open_abandoned(tmp_path)) == []
    finally:
        writer.kill()
    (abandoned,) = Journal.open_abandoned(tmp_path)
    assert [entry.sid for entry in abandoned.entries()] == ["first", "second"]
    abandoned.close()
    ours.close()


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    Journal.open_free(tmp_path / "journal").close()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "journal" / "0.journal").stat().st_mode & 0o777 == 0o600


def test_it_has_its_full_size_from_the_start_and_keeps_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=4)
    assert (tmp_path / "j").stat().st_size == 4 * SLOT_BYTES
    journal.close()
    again = Journal(tmp_path / "j", slots=2)
    assert [opened(again, f"s{number}") for number in range(4)] == [0, 1, 2, 3]
    again.close()


def test_a_full_journal_refuses_and_a_freed_slot_is_used_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=3)
    slots = [opened(journal, f"s{number}") for number in range(3)]
    with pytest.raises(JournalFull):
        opened(journal, "one more")
    journal.write_used(slots[1], 99)
    journal.free(slots[1])
    assert opened(journal, "next") == slots[1]
    entry = next(entry for entry in journal.entries() if entry.slot == slots[1])
    assert (entry.sid, entry.used) == ("next", 0)
    journal.close()


def test_what_the_last_process_left_is_not_overwritten(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", slots=2)
    opened(first, "old")
    first.close()
    second = Journal(tmp_path / "j", slots=2)
    opened(second, "new")
    with pytest.raises(JournalFull):
        opened(second, "newer")
    assert [entry.sid for entry in second.entries()] == ["old", "new"]
    second.close()


def test_a_torn_slot_is_seen_as_free(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=2)
    journal.close()
    with (tmp_path / "j").open("r+b") as file:  # everything of a slot but its state, which is written last
        file.write(struct.pack("<B7xqq32s64s64s64s", 0, 5, 6, b"torn", b"acme", b"m", b"r"))
    assert entries(tmp_path / "j", slots=2) == []
    again = Journal(tmp_path / "j", slots=2)
    assert opened(again) == 0
    again.close()


names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300)


@given(model=names, request_id=names, used=st.integers(0, 2**62))
def test_names_longer_than_the_slot_are_cut_and_touch_nothing_else(model: str, request_id: str, used: int) -> None:
    sid = "f" * 32
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "j"), slots=2)
        slots = [opened(journal, sid, model=model, request_id=request_id, account="a" * 64) for _ in range(2)]
        journal.finish(slots[0], used)
        first, second = journal.entries()
        journal.close()
    assert (first.sid, first.account, first.model, first.request_id) == (sid, "a" * 64, model[:64], request_id[:64])
    assert (first.used, first.state) == (used, SlotState.FINAL)
    assert (second.used, second.state, second.model) == (0, SlotState.OPEN, model[:64])


def test_names_beyond_ascii_are_kept_as_far_as_they_are_ascii(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=1)
    opened(journal, model="modèle", request_id="\ud800")
    (entry,) = journal.entries()
    assert (entry.model, entry.request_id) == ("mod?le", "?")
    journal.close()


class TestRecovery:
    SLOTS = Allowances(slots=(Slots(STREAMS, 9),))

    async def test_the_streams_of_a_killed_gateway_are_posted_once(self, teller: Teller, tmp_path: Path) -> None:
        teller.allowances = self.SLOTS
        await teller.grant(1_000_000_000)
        for sid in ("first", "second"):
            await teller.reserve(sid, 1000)
        writer = Writer(tmp_path)
        writer.kill()
        (used, final) = (entry.used for entry in entries(tmp_path / "0.journal"))
        journal = Journal.open_free(tmp_path)
        settlements = Settlements(teller.redis, journal, Retention())
        assert await settlements.recover(tmp_path) == 2
        assert teller.wallet()["spent"] == used + final
        assert teller.wallet()["held"] == 0
        assert teller.store.exists(keys.slots("acme", STREAMS)) == 0
        assert await settlements.recover(tmp_path) == 0
        journal.close()
        record = json.loads(teller.ledger()[-1]["rec"])
        assert record == {"request_id": "r", "model": "m", "reason": "gateway_crashed", "estimated": True}
        assert teller.ledger()[-1]["out"] == "failed"

    async def test_journals_that_nobody_holds_are_posted_too_and_held_ones_left_alone(
        self, teller: Teller, tmp_path: Path
    ) -> None:
        await teller.grant(1_000_000_000)
        dead, alive = Writer(tmp_path), Writer(tmp_path)
        ours = Journal.open_free(tmp_path)
        settlements = Settlements(teller.redis, ours, Retention())
        try:
            assert await settlements.recover(tmp_path) == 0
            dead.kill()
            assert await settlements.recover(tmp_path) == 2
            assert [entry.sid for entry in entries(tmp_path / "0.journal")] == []
        finally:
            alive.kill()
        # The same ids again, from the other process: each stream is posted once, whoever tells of it.
        spent = teller.wallet()["spent"]
        assert await settlements.recover(tmp_path) == 2
        assert teller.wallet()["spent"] == spent
        ours.close()

    async def test_a_stream_that_was_settled_or_reaped_before_is_not_charged_again(
        self, teller: Teller, tmp_path: Path
    ) -> None:
        await teller.grant(1000)
        journal = Journal(tmp_path / "0.journal", slots=4)
        for sid, used in (("settled", 60), ("reaped", 70)):
            await teller.reserve(sid, 100)
            await teller.extend(sid, used=50)
            journal.write_used(opened(journal, sid, created_ms=teller.now_ms()), used)
        await teller.settle("settled", 55)
        teller.lapse("reaped")
        await teller.reap("reaped")
        assert await Settlements(teller.redis, journal, Retention()).recover(tmp_path) == 2
        assert teller.wallet()["spent"] == 55 + 70
        assert list(journal.entries()) == []
        journal.close()

    async def test_a_redis_that_lost_the_wallet_does_not_empty_the_journal(
        self, teller: Teller, tmp_path: Path
    ) -> None:
        journal = Journal(tmp_path / "0.journal", slots=2)
        journal.write_used(opened(journal, created_ms=teller.now_ms()), 70)
        settlements = Settlements(teller.redis, journal, Retention())
        assert await settlements.recover(tmp_path) == 0
        assert [entry.used for entry in journal.entries()] == [70]
        await teller.grant(100)
        assert await settlements.recover(tmp_path) == 1
        assert teller.wallet()["spent"] == 70
        journal.close()

    async def test_what_is_too_old_is_given_up_and_said(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(100)
        journal = Journal(tmp_path / "0.journal", slots=2)
        journal.write_used(opened(journal, "ancient"), 70)
        with capture_logs() as logs:
            assert await Settlements(teller.redis, journal, Retention()).recover(tmp_path) == 1
        assert (teller.wallet()["spent"], list(journal.entries())) == (0, [])
        assert [(log["event"], log["actual"]) for log in logs] == [("settlement_too_old", 70)]
        journal.close()


class TestOutbox:
    async def test_a_settlement_is_written_down_first_and_freed_when_redis_has_it(
        self, teller: Teller, tmp_path: Path
    ) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        journal = Journal(tmp_path / "j", slots=2)
        settlements = Settlements(teller.redis, journal, Retention())
        told: list[tuple[str, int]] = []
        settlements.on_posted = lambda settlement, reply: told.append((settlement.stream.sid, reply.charged))
        slot = opened(journal)
        posting = Posting(actual=60, outcome="complete", refund=False, usage=b"{}")
        for _ in range(3):
            settlements.post(Settlement(teller.stream("s"), posting, slot))
        (entry,) = journal.entries()
        assert (entry.state, entry.used, settlements.pending) == (SlotState.FINAL, 60, 1)
        assert await settlements.flush(10) == 0
        assert (told, list(journal.entries())) == ([("s", 60)], [])
        assert sorted(journal._free) == [0, 1]
        journal.close()

    async def test_what_redis_did_not_take_stays_in_the_journal(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        journal = Journal(tmp_path / "j", slots=2)
        settlements = Settlements(teller.redis, journal, Retention())
        await teller.redis.aclose()
        posting = Posting(actual=60, outcome="complete", refund=False, usage=b"{}")
        settlements.post(Settlement(teller.stream("s"), posting, opened(journal)))
        assert await settlements.flush(0.05) == 1
        assert [entry.used for entry in journal.entries()] == [60]
        with pytest.raises(StoreUnavailable):
            await teller.settle("s", 60)
        journal.close()
