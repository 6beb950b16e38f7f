"""The journal survives what a process may suffer."""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.journal import SLOT_BYTES, Journal, JournalEntry, JournalFull, SlotState

NONCE = "00000000000000ab"

# A gateway, as far as its journal goes: three streams, and then it writes until it is killed.
WRITER = """
import sys, time
from pathlib import Path
from gateway.limits.journal import Journal
journal = Journal.open_free(Path(sys.argv[1]))
for sid in ("first", "second", "third"):
    slot = journal.open(
        sid=sid, account="acme", created_ms=int(time.time() * 1000), model="m", request_id="r", nonce="00000000000000ab"
    )
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
    given = {
        "account": "acme",
        "created_ms": 1_700_000_000_000,
        "model": "m",
        "request_id": "r",
        "nonce": NONCE,
        **fields,
    }
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
        file.write(struct.pack("<B7xqq32s64s64s64sQ", 0, 5, 6, b"torn", b"acme", b"m", b"r", 7))
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


def test_a_stream_goes_from_open_to_final_to_posted_to_free(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=2)

    def states() -> list[tuple[SlotState, int]]:
        return [(entry.state, entry.used) for entry in journal.entries()]

    slot = opened(journal)
    assert (states(), journal.room) == ([(SlotState.OPEN, 0)], 1)
    journal.write_used(slot, 40)
    journal.finish(slot, 35)
    assert states() == [(SlotState.FINAL, 35)]
    journal.keep(slot)
    assert states() == [(SlotState.POSTED, 35)]
    journal.free(slot)
    assert (states(), journal.room) == ([], 2)
    journal.close()


def test_which_run_it_was_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", slots=2)
    opened(journal, "a", nonce="ffffffffffffffff")
    opened(journal, "b", nonce=NONCE)
    journal.close()
    assert [entry.nonce for entry in entries(tmp_path / "j")] == ["ffffffffffffffff", NONCE]
