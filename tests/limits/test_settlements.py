"""The outbox and recovery: what a stream cost is posted once, whoever tells of it, whatever forgets it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from gateway.limits import keys, settlements
from gateway.limits.allowances import Slots, Unit, Window
from gateway.limits.journal import Journal, SlotState
from gateway.limits.redis import StoreUnavailable
from gateway.limits.scripts import Retention
from gateway.limits.settlements import Settlement, Settlements
from tests.limits.desk import Desk, end, until

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

NONCE = "00000000000000ab"
# A gateway that dies with two streams: one that ran, and one that had ended.
DYING = """
import os, signal, sys, time
from pathlib import Path
from gateway.limits.journal import Journal
journal = Journal.open_free(Path(sys.argv[1]))
for sid, used in (("first", 30), ("second", 40)):
    slot = journal.open(
        sid=sid, account="acme", created_ms=int(time.time() * 1000), model="m", request_id="r", nonce="00000000000000ab"
    )
    journal.write_used(slot, used)
journal.finish(1, 25)
os.kill(os.getpid(), signal.SIGKILL)
"""


def opened(journal: Journal, sid: str = "s", *, used: int = 0, created_ms: int | None = None) -> int:
    slot = journal.open(
        sid=sid,
        account="acme",
        created_ms=int(time.time() * 1000) if created_ms is None else created_ms,
        model="m",
        request_id="r",
        nonce=NONCE,
    )
    journal.write_used(slot, used)
    return slot


def states(journal: Journal) -> list[SlotState]:
    return [entry.state for entry in journal.entries()]


def die(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", DYING, str(folder)], check=False, timeout=30)


class TestOutbox:
    async def test_a_settlement_is_written_down_first_and_kept_a_while(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce=NONCE)
        journal = Journal(tmp_path / "j", slots=5000)
        outbox = Settlements(teller.scripts, journal, Retention())
        told: list[tuple[str, int]] = []
        outbox.on_posted = lambda settlement, reply: told.append((settlement.stream.sid, reply.charged))
        slot = opened(journal)
        for actual in (60, 70, 80):
            outbox.post(Settlement(teller.stream("s", nonce=NONCE), end(actual), slot))
        (entry,) = journal.entries()
        assert (entry.state, entry.used, outbox.pending) == (SlotState.FINAL, 60, 1)
        assert await outbox.flush(10) == 0
        assert (told, states(journal)) == ([("s", 60)], [SlotState.POSTED])
        journal.close()

    async def test_what_is_kept_is_bounded_by_time_number_and_room(
        self, teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await teller.grant(100_000)
        journal = Journal(tmp_path / "j", slots=5000)
        outbox = Settlements(teller.scripts, journal, Retention())

        async def settle(number: int) -> int:
            run = teller.stream(f"s{number}", nonce=f"{number:016x}")
            outbox.post(Settlement(run, end(1), opened(journal, run.sid)))
            await outbox.flush(10)
            return len(states(journal))

        monkeypatch.setattr(settlements, "_KEPT_MAX", 3)
        assert [await settle(number) for number in range(6)] == [1, 2, 3, 3, 3, 3]
        monkeypatch.setattr(settlements, "_KEPT_S", -1.0)
        assert await settle(6) == 0
        monkeypatch.setattr(settlements, "_KEPT_S", 60.0)
        monkeypatch.setattr(settlements, "_JOURNAL_ROOM_MIN", 5000)
        assert await settle(7) == 0
        assert journal.room == 5000
        journal.close()

    async def test_what_redis_did_not_take_stays_in_the_journal(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce=NONCE)
        journal = Journal(tmp_path / "j", slots=2)
        outbox = Settlements(teller.scripts, journal, Retention())
        await teller.redis.aclose()
        outbox.post(Settlement(teller.stream("s", nonce=NONCE), end(60), opened(journal)))
        assert await outbox.flush(0.05) == 1
        assert [entry.used for entry in journal.entries()] == [60]
        with pytest.raises(StoreUnavailable):
            await teller.settle("s", 60)
        journal.close()

    async def test_a_wallet_that_comes_back_is_charged_then(self, desk: Desk) -> None:
        reservation = await desk.reserve()
        wallet = desk.teller.store.dump(keys.wallet("acme"))
        desk.teller.store.delete(keys.wallet("acme"))
        with capture_logs() as logs:
            reservation.settle(end(60))
            assert await desk.flushed(0.1) == 1
        assert [log["event"] for log in logs] == ["settlement_refused"]
        desk.teller.store.restore(keys.wallet("acme"), 0, wallet)
        assert await desk.flushed() == 0
        assert desk.teller.wallet()["spent"] == 60

    async def test_a_loss_is_told_to_whoever_books_it(self, desk: Desk) -> None:
        reservation = await desk.reserve()
        with capture_logs() as logs:
            reservation.settle(end(10_500))
            assert await desk.flushed() == 0
        assert [(log["event"], log["microusd"]) for log in logs] == [("cost_absorbed", 500)]


class TestRollback:
    async def test_what_was_acknowledged_and_lost_is_said_again(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settlements, "_JOURNAL_ROOM_MIN", 0)
        runs, ends = await desk.reserve(100, 100), await desk.reserve(100, 100)
        earlier = desk.teller.dumps()
        assert await runs.cover(500) is None
        ends.settle(end(150))
        assert await desk.flushed() == 0
        held = runs.held
        desk.teller.restore(earlier)
        assert desk.teller.wallet()["spent"] == 0
        error = await desk.reserve(10, 0)
        await until(lambda: desk.teller.wallet()["spent"] == 150)
        await until(lambda: runs._extending is None)
        assert desk.teller.record(runs.stream.sid)["h"] == str(runs.held)
        assert runs.held >= held
        for one in (error, runs):
            one.settle(end(0))
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 150, "held": 0, "absorbed": 0}

    async def test_it_is_not_said_again_for_every_answer(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(desk.settlements, "say_again", said.append)
        for _ in range(100):
            desk.books.say_again("acme")
        desk.books.say_again("umbrella")
        assert said == ["acme", "umbrella"]


class TestRecovery:
    async def test_the_streams_of_a_killed_gateway_are_posted_once(self, teller: Teller, tmp_path: Path) -> None:
        teller.limit(
            slots=[Slots("streams", 9)],
            windows=[
                Window("money", 10**6, (60_000, 60, 0), Unit.MONEY),
                Window("tokens", 10**6, (60_000, 60, 0), Unit.TOKENS),
            ],
        )
        await teller.grant(1_000_000)
        for sid in ("first", "second"):
            await teller.reserve(sid, 1000, tokens=50, nonce=NONCE)
        die(tmp_path)
        journal = Journal.open_free(tmp_path)
        outbox = Settlements(teller.scripts, journal, Retention())
        assert await outbox.recover(tmp_path) == 2
        assert teller.wallet() == {"granted": 1_000_000, "spent": 30 + 25, "held": 0, "absorbed": 0}
        assert (teller.window("money"), teller.window("tokens")) == ((55, 0), (100, 0))
        assert teller.store.exists(keys.limits_of("acme").slots("streams")) == 0
        assert await outbox.recover(tmp_path) == 0
        assert journal.room == len(journal._free) and states(journal) == []
        journal.close()
        row = teller.ledger()[-1]
        assert row["out"] == "failed"
        assert json.loads(row["rec"]) == {
            **{"request_id": "r", "model": "m", "reason": "gateway_crashed", "estimated": True}
        }

    async def test_whatever_happened_to_a_stream_since_it_is_charged_once(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(1000)
        journal = Journal(tmp_path / "0.journal", slots=8)
        for sid, used in (("settled", 60), ("reaped", 70), ("lost", 80), ("posted", 90)):
            slot = opened(journal, sid, used=used)
            if sid != "lost":
                await teller.reserve(sid, 100, nonce=NONCE)
                await teller.extend(sid, used=50, nonce=NONCE)
            if sid == "posted":
                journal.finish(slot, used)
                journal.keep(slot)
        await teller.settle("settled", 55, nonce=NONCE)
        await teller.settle("posted", 90, nonce=NONCE)
        teller.lapse("reaped")
        await teller.reap("reaped")
        assert await Settlements(teller.scripts, journal, Retention()).recover(tmp_path) == 2
        assert teller.wallet() == {"granted": 1000, "spent": 55 + 70 + 80 + 90, "held": 0, "absorbed": 0}
        assert states(journal) == []
        journal.close()

    async def test_a_run_that_was_followed_by_another_leaves_that_alone(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(1000)
        journal = Journal(tmp_path / "0.journal", slots=2)
        opened(journal, "s", used=40)
        await teller.reserve("s", 100, nonce="00000000000000ff")
        assert await Settlements(teller.scripts, journal, Retention()).recover(tmp_path) == 0
        assert teller.record("s")["st"] == "open"
        journal.close()

    async def test_a_redis_that_lost_the_wallet_does_not_empty_the_journal(
        self, teller: Teller, tmp_path: Path
    ) -> None:
        journal = Journal(tmp_path / "0.journal", slots=2)
        opened(journal, used=70)
        outbox = Settlements(teller.scripts, journal, Retention())
        assert await outbox.recover(tmp_path) == 0
        assert [entry.used for entry in journal.entries()] == [70]
        await teller.grant(100)
        assert await outbox.recover(tmp_path) == 1
        assert teller.wallet()["spent"] == 70
        journal.close()

    async def test_what_is_too_old_is_given_up_and_said(self, teller: Teller, tmp_path: Path) -> None:
        await teller.grant(100)
        journal = Journal(tmp_path / "0.journal", slots=2)
        opened(journal, "ancient", used=70, created_ms=1_500_000_000_000)
        with capture_logs() as logs:
            assert await Settlements(teller.scripts, journal, Retention()).recover(tmp_path) == 0
        assert (teller.wallet()["spent"], states(journal)) == (0, [])
        assert [(log["event"], log["actual"]) for log in logs] == [("settlement_too_old", 70)]
        journal.close()
