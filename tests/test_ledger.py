"""Reading the ledger back: pages over several accounts hold every row once, newest first."""

import random
from collections.abc import AsyncIterator

import msgspec
import pytest
from redis import Redis

from gateway.ledger import Ledger, Page, Row, UsageRecord
from gateway.limits import keys
from gateway.limits.redis import RedisOwner
from tests.harness import RedisServer

BASE_MS = 1_700_000_000_000
END_MS = 2 * BASE_MS


@pytest.fixture
async def ledger(redis_server: RedisServer, store: Redis) -> AsyncIterator[Ledger]:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    yield Ledger(owner)
    await owner.aclose()


def write(store: Redis, account: str, row_id: str, *, op: str = "post", amount: int = 1, record: str = "{}") -> None:
    fields = {"op": op, "sid": f"{account}:{row_id}", "d": amount, "o": 2, "out": "complete", "rec": record}
    store.xadd(keys.ledger(account), fields, id=row_id)


async def walk(ledger: Ledger, accounts: list[str], count: int) -> list[Page]:
    pages, cursor = [], None
    while True:
        page = await ledger.page(accounts, from_ms=0, to_ms=END_MS, cursor=cursor, count=count)
        pages.append(page)
        cursor = page.next
        if cursor is None:
            return pages


def order(row: Row) -> tuple[int, int]:
    milliseconds, _, sequence = row.id.partition("-")
    return int(milliseconds), int(sequence)


async def test_a_row_is_read_with_its_record(ledger: Ledger, store: Redis) -> None:
    record = UsageRecord(request_id="r1", model="m", outcome="complete", cost=70, estimated=True)
    write(store, "acme", f"{BASE_MS}-3", amount=70, record=msgspec.json.encode(record).decode())
    (row,) = (await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=10)).rows
    assert row == Row(
        id=f"{BASE_MS}-3",
        account="acme",
        sid=f"acme:{BASE_MS}-3",
        kind="post",
        charged=70,
        absorbed=2,
        outcome="complete",
        record={"request_id": "r1", "model": "m", "outcome": "complete", "cost": 70, "estimated": True},
    )
    assert row.time_ms == BASE_MS
    assert msgspec.convert(row.record, UsageRecord) == record


async def test_grants_are_not_use(ledger: Ledger, store: Redis) -> None:
    for number, op in enumerate(("grant", "post", "reap", "trueup", "rollback")):
        write(store, "acme", f"{BASE_MS}-{number}", op=op)
    page = await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=10)
    assert [row.kind for row in page.rows] == ["trueup", "reap", "post"]


async def test_times_bound_a_page_on_both_sides_inclusively(ledger: Ledger, store: Redis) -> None:
    for number in range(10):
        write(store, "acme", f"{BASE_MS + number}-0")
        write(store, "acme", f"{BASE_MS + number}-1")
    page = await ledger.page(["acme"], from_ms=BASE_MS + 3, to_ms=BASE_MS + 5, cursor=None, count=100)
    assert [row.time_ms - BASE_MS for row in page.rows] == [5, 5, 4, 4, 3, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
async def test_pages_over_several_accounts_hold_every_row_once(ledger: Ledger, store: Redis, count: int) -> None:
    rnd = random.Random(count)
    accounts = ["acme", "a-b", "umbrella", "0-1-2", "empty"]
    written = set()
    for account in accounts[:-1]:
        # Few distinct times, so that many rows of different accounts have the same id.
        ids = sorted({(BASE_MS + rnd.randrange(8), rnd.randrange(2)) for _ in range(12)})
        for milliseconds, sequence in ids:
            op = rnd.choice(["post", "post", "trueup", "grant"])
            write(store, account, f"{milliseconds}-{sequence}", op=op)
            if op != "grant":
                written.add(f"{account}:{milliseconds}-{sequence}")
    rnd.shuffle(accounts)
    pages = await walk(ledger, accounts, count)
    rows = [row for page in pages for row in page.rows]
    assert len(rows) == len(written)
    assert {row.sid for row in rows} == written
    assert [order(row) for row in rows] == sorted(map(order, rows), reverse=True)
    assert all(len(page.rows) == count for page in pages[:-1])


async def test_a_page_that_is_just_full_has_no_successor(ledger: Ledger, store: Redis) -> None:
    for number in range(3):
        write(store, "acme", f"{BASE_MS + number}-0")
    assert (await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=3)).next is None
    assert (await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=2)).next is not None


async def test_rows_that_come_in_while_somebody_reads_do_not_shift_pages(ledger: Ledger, store: Redis) -> None:
    for number in range(6):
        write(store, "acme", f"{BASE_MS + number}-0")
    first = await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=3)
    write(store, "acme", f"{BASE_MS + 50}-0")
    second = await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=first.next, count=3)
    assert [row.time_ms - BASE_MS for row in (*first.rows, *second.rows)] == [5, 4, 3, 2, 1, 0]


async def test_a_long_run_of_grants_is_read_through(ledger: Ledger, store: Redis) -> None:
    write(store, "acme", f"{BASE_MS}-0")
    for number in range(1200):
        write(store, "acme", f"{BASE_MS + 1}-{number}", op="grant")
    page = await ledger.page(["acme"], from_ms=0, to_ms=END_MS, cursor=None, count=600)
    assert ([row.id for row in page.rows], page.next) == ([f"{BASE_MS}-0"], None)


async def test_no_accounts_and_no_rows_are_an_empty_page(ledger: Ledger) -> None:
    for accounts in ([], ["acme"]):
        assert await ledger.page(accounts, from_ms=0, to_ms=END_MS, cursor=None, count=5) == Page([], None)
