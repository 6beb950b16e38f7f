"""The audit names what does not add up, and only that: each invariant is broken by hand in a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from redis import Redis as Client

from gateway.limits import keys
from gateway.limits.audit import Skipped, check
from gateway.limits.audit_ledger import LedgerRow, Tally
from gateway.limits.audit_reading import Auditor, LimitNames, Report, read_snapshot
from gateway.limits.connect import open_redis
from gateway.limits.redis import RedisOwner
from tests.limits.books import RETENTION, Books, everything
from tests.redis_cluster import Cluster

A = "acme"
W, LEASES, LEDGER, GRANTS = keys.wallet(A), keys.leases(A), keys.ledger(A), keys.grants(A)
BUDGET = keys.limits_of(A).window("account.budget.86400000")
BUCKET = keys.limits_of(A).bucket("account.requests.60000")
SLOTS = keys.limits_of(A).slots("account.streams")

Sabotage = Callable[[Client], Any]


def record(sid: str) -> str:
    return keys.record(A, sid)


def row(op: str, sid: str, amount: int) -> dict[str, str | int]:
    return {"op": op, "sid": sid, "d": amount, "o": 0, "out": "complete", "rec": "{}"}


def charge_again(store: Client, op: str, sid: str) -> None:
    store.xadd(LEDGER, row(op, sid, 5))
    store.hincrby(W, "s", 5)
    store.hincrby(record(sid), "c", 5)


BROKEN: dict[str, tuple[str, str, Sabotage]] = {
    "balance": ("I1", "available", lambda it: it.hincrby(W, "g", -(10**9))),
    "spent below 0": ("I1", "spent", lambda it: it.hset(W, "s", -1)),
    "held": ("I2", "held", lambda it: it.hincrby(W, "h", 5)),
    "hold of a stream": ("I2", "held", lambda it: it.hincrby(record(Books.open), "h", 5)),
    "spent": ("I3", "spent", lambda it: it.hincrby(W, "s", 5)),
    "lost row": ("I3", "spent", lambda it: it.xdel(LEDGER, it.xrevrange(LEDGER, count=2)[1][0])),
    "charge of a stream": ("I3", "run-done", lambda it: it.hincrby(record(Books.done), "c", 1)),
    "lost record": ("I3", "run-corrected", lambda it: it.delete(record(Books.corrected))),
    "granted": ("I4", "granted", lambda it: it.hincrby(W, "g", 5)),
    "amount of a grant": ("I4", "grant more", lambda it: it.hincrby(GRANTS, "more", 5)),
    "lost grant": ("I4", "grant more", lambda it: it.hdel(GRANTS, "more")),
    "grant without a row": ("I4", "ledger", lambda it: (it.hset(GRANTS, "new", 5), it.hincrby(W, "g", 5))),
    "grant twice": ("I5", "more", lambda it: (it.xadd(LEDGER, row("grant", "more", 5)), it.hincrby(W, "g", 5))),
    "post twice": ("I5", "run-done", lambda it: charge_again(it, "post", Books.done)),
    "reap twice": ("I5", "run-reaped", lambda it: charge_again(it, "reap", Books.reaped)),
    "trueup twice": ("I5", "run-corrected", lambda it: charge_again(it, "trueup", Books.corrected)),
    "lost lease": ("I6", "run-open", lambda it: it.zrem(LEASES, Books.open)),
    "lease of nobody": ("I6", "run-none", lambda it: it.zadd(LEASES, {"run-none": 10**14})),
    "no reaper looks": ("I6", "reaping", lambda it: it.zrem(keys.ACTIVE, A)),
    "held of a window": ("I7", "budget.86400000, held", lambda it: it.hincrby(BUDGET, "h", 5)),
    "sum of a window": ("I7", "budget.86400000, sum", lambda it: it.hincrby(BUDGET, "sum", 5)),
    "lost window": ("I7", "budget.86400000, held", lambda it: it.delete(BUDGET)),
    "use beyond the hold": ("I8", "run-open", lambda it: it.hset(record(Books.open), "u", 10**6)),
    "absorbed": ("I12", "absorbed", lambda it: it.hincrby(W, "o", 1)),
    "absorbed of a stream": ("I12", "run-dear", lambda it: it.hincrby(record("run-dear"), "o", 1)),
    "slot of nobody": ("slots", "run-none", lambda it: it.zadd(SLOTS, {"run-none": 10**14})),
    "lost slot": ("slots", "run-open", lambda it: it.zrem(SLOTS, Books.open)),
    "bucket that is none": ("buckets", "requests", lambda it: it.set(BUCKET, "full", keepttl=True)),
    "bucket above full": ("buckets", "requests", lambda it: it.set(BUCKET, f"{10**12} 0", keepttl=True)),
    "record for ever": ("ttl", "run-done", lambda it: it.persist(record(Books.done))),
    "open record that ends": ("ttl", "run-open", lambda it: it.pexpire(record(Books.open), 10**6)),
    "window for ever": ("ttl", "window", lambda it: it.persist(BUDGET)),
    "bucket for ever": ("ttl", "bucket", lambda it: it.persist(BUCKET)),
    "lost wallet": ("accounts", "wallet", lambda it: it.delete(W)),
    "unlisted": ("accounts", "listing", lambda it: it.zrem(keys.ACCOUNTS, A)),
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.limits.audit_reading._PAUSE_S", 0.01)


@pytest.fixture
async def books(redis: RedisOwner, store: Client) -> AsyncIterator[Books]:
    """The account as it should be; what a test breaks goes with it."""
    filled = Books(redis)
    await filled.fill()
    yield filled
    store.flushall()


async def audited(redis: RedisOwner, account: str | None = None) -> Report:
    return await Auditor(redis).run(account)


async def test_what_the_scripts_left_is_clean_and_stays_as_it_is(books: Books, store: Client) -> None:
    before = everything(store)
    report = await audited(books.redis)
    assert report.findings == [] and report.skipped == []
    assert (report.accounts, report.open_streams, report.records, report.ledger_rows) == (1, 1, 6, 9)
    assert everything(store) == before


@pytest.mark.parametrize(("invariant", "subject", "sabotage"), BROKEN.values(), ids=list(BROKEN))
async def test_what_was_broken_is_named(
    books: Books, store: Client, invariant: str, subject: str, sabotage: Sabotage
) -> None:
    sabotage(store)
    findings = (await audited(books.redis)).findings
    named = [it for it in findings if it.invariant == invariant and subject in it.subject]
    assert named, findings
    assert named[0].account == A and named[0].expected != named[0].found and named[0].advice


async def test_one_fault_is_one_finding_with_both_figures(books: Books, store: Client) -> None:
    store.hincrby(W, "h", 5)
    (finding,) = (await audited(books.redis)).findings
    assert finding.expected == "140 (what its 1 open streams hold)" and finding.found == "145"


async def test_what_is_in_order_at_a_second_look_is_not_reported(
    books: Books, store: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.hincrby(W, "h", 5)
    store.persist(record(Books.done))
    sleep, pauses = asyncio.sleep, []

    async def repairing(seconds: float) -> None:
        pauses.append(seconds)
        store.hset(W, "h", 140)
        store.pexpire(record(Books.done), 10**6)
        await sleep(0)

    monkeypatch.setattr("gateway.limits.audit_reading.asyncio.sleep", repairing)
    assert (await audited(books.redis)).findings == []
    assert pauses


async def test_an_old_account_whose_first_rows_are_gone_is_not_accused(books: Books, store: Client) -> None:
    store.hset(keys.account(A), "created", 1)
    assert (await audited(books.redis)).skipped == []  # every grant has its row: nothing is missing
    store.xtrim(LEDGER, maxlen=4, approximate=False)
    report = await audited(books.redis)
    assert report.findings == []
    assert {it.invariant for it in report.skipped} == {"I4", "I3, I12"}
    assert all("the ledger begins at 20" in it.reason for it in report.skipped)


async def test_an_old_account_without_any_row_left_is_not_accused(books: Books, store: Client) -> None:
    store.hset(keys.account(A), "created", 1)
    store.delete(LEDGER)
    report = await audited(books.redis)
    assert report.findings == [] and "no rows any more" in report.skipped[0].reason


async def test_a_young_account_has_no_excuse_for_missing_rows(books: Books, store: Client) -> None:
    store.xtrim(LEDGER, maxlen=4, approximate=False)
    assert {it.invariant for it in (await audited(books.redis)).findings} == {"I3", "I4"}


async def test_a_ledger_of_many_pages_is_read_whole(books: Books) -> None:
    for number in range(1, 12):
        await asyncio.gather(*(books.start(f"many-{number}-{it}") for it in range(90)))
        await asyncio.gather(*(books.settle(f"many-{number}-{it}", it) for it in range(90)))
    report = await audited(books.redis)
    assert report.findings == [] and report.ledger_rows == 9 + 990 and report.records == 6 + 990


async def test_one_account_can_be_looked_at_alone(books: Books, store: Client) -> None:
    other = Books(books.redis, "hooli")
    await other.fill()
    store.hincrby(keys.wallet("hooli"), "h", 5)
    assert (await audited(books.redis, A)).findings == []
    assert [it.account for it in (await audited(books.redis)).findings] == ["hooli"]
    assert (await audited(books.redis, "nobody")).accounts == 0


async def test_more_open_streams_than_can_be_read_at_once_are_said_to_be_unchecked(books: Books) -> None:
    snapshot = await read_snapshot(books.redis, A, LimitNames(), streams_max=0)
    skipped = [it for it in check(snapshot, Tally(RETENTION)) if isinstance(it, Skipped)]
    assert [it.invariant for it in skipped] == ["I2", "I6", "I7", "I8"]


def test_what_ended_at_no_cost_may_run_again_and_be_charged_once() -> None:
    tally = Tally(RETENTION)
    moves = [("post", 0), ("reap", 0), ("trueup", 0), ("reap", 5), ("trueup", -5), ("post", 9)]
    for number, (op, amount) in enumerate(moves, start=1):
        tally.add(LedgerRow(f"{number}-0", op, "a", amount, 0, "failed", "{}"))
    assert tally.twice == [] and tally.spent == 9
    tally.add(LedgerRow("7-0", "post", "a", 1, 0, "complete", "{}"))
    assert [sid for sid, _ in tally.twice] == ["a"]


def test_an_id_may_be_used_again_when_its_record_is_gone() -> None:
    tally = Tally(RETENTION)
    tally.add(LedgerRow("1-0", "post", "a", 5, 0, "complete", "{}"))
    tally.add(LedgerRow(f"{RETENTION.stream_ms + 2}-0", "post", "a", 5, 0, "complete", "{}"))
    assert tally.twice == [] and len(tally.recent) == 1


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as whole:
        yield whole


async def test_every_master_of_a_cluster_is_looked_at(cluster: Cluster) -> None:
    redis = open_redis(cluster.url, timeout_s=5)
    redis.start()
    try:
        for account in (A, "hooli", "umbrella"):
            await Books(redis, account).fill()
        report = await Auditor(redis).run()
        assert report.findings == [] and (report.accounts, report.records) == (3, 18)
        for account in ("hooli", "umbrella"):
            await redis.call("HINCRBY", keys.wallet(account), "h", 5)
        assert [it.account for it in (await Auditor(redis).run()).findings] == ["hooli", "umbrella"]
    finally:
        await redis.aclose()
