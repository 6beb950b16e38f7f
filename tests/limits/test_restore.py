"""Exports bring back what Redis has lost, once, and leave alone what it still has."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from redis import Redis as Client

from gateway.identity.keys import ApiKeys
from gateway.limits import keys
from gateway.limits.accounts import Accounts
from gateway.limits.audit_reading import Auditor
from gateway.limits.export import AccountLine, BalanceLine, CursorLine, KeyLine, Line, RowLine, export
from gateway.limits.exported import BadExport, Exported
from gateway.limits.redis import Redis, RedisOwner
from gateway.limits.restore import Action, Plan, Restorer
from tests.harness import RedisServer
from tests.limits.books import GRANTED, Books, everything
from tests.limits.test_checks import ACL_COMMANDS, ACL_FORMS, ACL_KEYS

A = "acme"
W, LEDGER = keys.wallet(A), keys.ledger(A)


@pytest.fixture
async def books(redis: RedisOwner, store: Client) -> AsyncIterator[Books]:
    filled = Books(redis)
    await filled.fill()
    await filled.settle(filled.open, 40)
    yield filled
    store.flushall()


async def exported_lines(redis: Redis, since: str = "") -> list[Line]:
    return [line async for line in export(redis, since=since)]


def as_file(lines: Sequence[Line]) -> list[bytes]:
    return [msgspec.json.encode(line) + b"\n" for line in lines]


async def restored(redis: Redis, *files: Sequence[Line], apply: bool = True) -> dict[str, Plan]:
    with Exported() as exported:
        for number, lines in enumerate(files):
            exported.add(as_file(lines), f"file-{number}")
        restorer = Restorer(redis, exported)
        plans = {account: await restorer.plan(account) for account in exported.accounts}
        return {account: await restorer.apply(plan) for account, plan in plans.items()} if apply else plans


def money(store: Client) -> dict[bytes, bytes]:
    return {name: value for name, value in store.hgetall(W).items() if name in (b"g", b"s", b"h", b"o", b"x")}


async def assert_clean(redis: Redis) -> None:
    assert (await Auditor(redis).run()).findings == []


async def test_an_emptied_redis_gets_back_money_ledger_account_and_keys(books: Books, store: Client) -> None:
    api_keys = ApiKeys(books.redis)
    token = (await api_keys.create(A, name="laptop", models=("m",))).token
    await Accounts(books.scripts).suspend(A)
    rows, wallet, account = store.xrange(LEDGER), money(store), store.hgetall(keys.account(A))
    grants = store.hgetall(keys.grants(A))
    lines = await exported_lines(books.redis)
    store.flushall()
    plan = (await restored(books.redis, lines))[A]
    assert (plan.action, plan.rows, len(plan.keys), plan.unexplained) == (Action.REBUILD, len(rows), 1, (0, 0, 0))
    assert store.xrange(LEDGER) == rows and money(store) == wallet
    assert store.hgetall(keys.account(A)) == account and store.hgetall(keys.grants(A)) == grants
    caller = await ApiKeys(books.redis).verify(token)
    assert (caller.account, caller.models) == (A, frozenset({"m"}))
    await assert_clean(books.redis)


async def test_a_second_restore_changes_nothing(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    store.flushall()
    await restored(books.redis, lines)
    before = everything(store)
    assert (await restored(books.redis, lines))[A].action is Action.NOTHING
    assert everything(store) == before


async def test_a_plan_changes_nothing(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    store.flushall()
    assert (await restored(books.redis, lines, apply=False))[A].action is Action.REBUILD
    assert store.keys() == []


async def test_a_wallet_in_use_is_left_alone(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    await books.start("later")
    await books.settle("later", 7)
    before = everything(store)
    assert (await restored(books.redis, lines))[A].action is Action.NOTHING
    assert everything(store) == before


async def test_an_older_state_of_redis_is_continued(books: Books, store: Client) -> None:
    old = {key: (store.dump(key), max(store.pttl(key), 0)) for key in store.keys()}
    for number in range(3):
        await books.start(f"later-{number}")
        await books.settle(f"later-{number}", 100 + number)
    lines, wallet = await exported_lines(books.redis), money(store)
    store.flushall()
    for key, (value, ttl) in old.items():
        store.restore(key, ttl, value)
    plan = (await restored(books.redis, lines))[A]
    assert (plan.action, plan.rows) == (Action.CONTINUE, 3)
    assert money(store) == wallet
    await assert_clean(books.redis)


async def test_a_wallet_that_went_another_way_is_refused(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    store.flushall()
    await books.create(grant=5)  # somebody made the account anew
    before = everything(store)
    plan = (await restored(books.redis, lines))[A]
    assert plan.action is Action.REFUSE and "is not the next one in the files" in plan.reason
    assert everything(store) == before


async def test_a_wallet_that_does_not_add_up_is_refused(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    store.xdel(LEDGER, store.xrevrange(LEDGER, count=1)[0][0])
    plan = (await restored(books.redis, lines))[A]
    assert plan.action is Action.REFUSE and "its wallet has" in plan.reason


async def test_a_restore_that_was_interrupted_is_finished_by_the_next(books: Books, store: Client) -> None:
    lines, wallet = await exported_lines(books.redis), money(store)
    store.delete(W)
    store.xtrim(LEDGER, maxlen=0)
    store.delete(LEDGER)
    for row in [line for line in lines if isinstance(line, RowLine)][:3]:
        fields = {"op": row.op, "sid": row.sid, "d": row.amount, "o": row.absorbed, "out": row.outcome, "rec": "{}"}
        store.xadd(LEDGER, fields, id=row.id)
    assert (await restored(books.redis, lines))[A].action is Action.REBUILD
    assert money(store) == wallet


async def test_a_grant_meanwhile_stops_the_restore(books: Books, store: Client) -> None:
    lines = await exported_lines(books.redis)
    store.flushall()
    with Exported() as exported:
        exported.add(as_file(lines), "file")
        restorer = Restorer(books.redis, exported)
        plan = await restorer.plan(A)
        await books.create(grant=5)
        refused = await restorer.apply(plan)
    assert refused.action is Action.REFUSE and "changed meanwhile" in refused.reason
    assert money(store)[b"g"] == b"5"


async def test_what_gateways_say_again_is_not_charged_twice(books: Books, store: Client) -> None:
    lines, wallet = await exported_lines(books.redis), money(store)
    store.flushall()
    await restored(books.redis, lines)
    assert [await books.settle(sid, 999) for sid in (books.done, books.corrected)] == [2, 2]
    assert money(store) == wallet
    store.hdel(W, "rec")
    await Books(books.redis).start("next")  # traffic is back
    assert await books.settle(books.reaped, 70) == 3  # its true-up had not come yet
    assert money(store)[b"s"] == b"%d" % (int(wallet[b"s"]) + 10)
    await assert_clean(books.redis)


async def test_a_stream_that_outlived_it_holds_again_and_is_charged_once(books: Books, store: Client) -> None:
    await books.start("long")
    lines, wallet = await exported_lines(books.redis), money(store)
    store.flushall()
    await restored(books.redis, lines)
    assert money(store)[b"h"] == b"0" and wallet[b"h"] == b"100"
    assert store.zscore(keys.ACTIVE, A)  # reapers look here, whoever revives it
    assert [await books.settle("long", 30), await books.settle("long", 30)] == [4, 2]
    assert money(store)[b"s"] == b"%d" % (int(wallet[b"s"]) + 30)
    await assert_clean(books.redis)


async def test_exports_may_overlap_and_come_in_any_order(books: Books, store: Client) -> None:
    files = [await exported_lines(books.redis)]
    for number in range(3):
        await books.start(f"later-{number}")
        await books.settle(f"later-{number}", 10)
        files.append(await exported_lines(books.redis, since=str(files[-1][-1].cursor)))  # type: ignore[union-attr]
    wallet, rows = money(store), store.xrange(LEDGER)
    assert all(isinstance(lines[-1], CursorLine) for lines in files)
    store.flushall()
    random.shuffle(files)
    assert (await restored(books.redis, *files))[A].gaps == ()
    assert money(store) == wallet and store.xrange(LEDGER) == rows
    await assert_clean(books.redis)


async def test_a_missing_file_is_noticed_and_the_balance_is_right_all_the_same(books: Books, store: Client) -> None:
    first = await exported_lines(books.redis)
    last_id = store.xrevrange(LEDGER, count=1)[0][0].decode()
    await books.start("lost")
    await books.settle("lost", 10)
    lost_id = store.xrevrange(LEDGER, count=1)[0][0].decode()
    await books.start("kept")
    await books.settle("kept", 20)
    last = [line for line in await exported_lines(books.redis, since=lost_id)]
    wallet = money(store)
    store.flushall()
    plan = (await restored(books.redis, first, last))[A]
    assert plan.unexplained == (0, 10, 0)
    assert len(plan.gaps) == 1 and last_id in plan.gaps[0]
    assert money(store) == wallet
    await assert_clean(books.redis)
    assert (await restored(books.redis, first, last))[A].action is Action.NOTHING


async def test_what_was_trimmed_before_the_first_export_is_carried_over(books: Books, store: Client) -> None:
    store.xtrim(LEDGER, maxlen=3, approximate=False)
    lines, wallet, grants = await exported_lines(books.redis), money(store), store.hgetall(keys.grants(A))
    store.flushall()
    plan = (await restored(books.redis, lines))[A]
    assert plan.unexplained.granted == GRANTED - 500 and money(store) == wallet
    assert store.hgetall(keys.grants(A)) == grants
    await assert_clean(books.redis)
    again, wallet = await exported_lines(books.redis), money(store)  # and an export of that is as good
    store.flushall()
    assert (await restored(books.redis, again))[A].unexplained == (0, 0, 0)
    assert money(store) == wallet
    await assert_clean(books.redis)


async def test_many_rows_are_put_back_page_by_page(books: Books, store: Client) -> None:
    for number in range(1, 13):
        await asyncio.gather(*(books.start(f"many-{number}-{it}") for it in range(90)))
        await asyncio.gather(*(books.settle(f"many-{number}-{it}", it) for it in range(90)))
    lines, rows, wallet = await exported_lines(books.redis), store.xrange(LEDGER), money(store)
    store.flushall()
    assert (await restored(books.redis, lines))[A].rows == len(rows) > 1000
    assert store.xrange(LEDGER) == rows and money(store) == wallet
    await assert_clean(books.redis)


async def test_a_stream_that_ended_by_the_files_but_runs_is_not_overwritten(books: Books, store: Client) -> None:
    await books.start("late")
    old = {key: (store.dump(key), max(store.pttl(key), 0)) for key in store.keys()}
    await books.settle("late", 5)
    lines = await exported_lines(books.redis)
    store.flushall()
    for key, (value, ttl) in old.items():
        store.restore(key, ttl, value)
    before = everything(store)
    plan = (await restored(books.redis, lines))[A]
    assert plan.action is Action.REFUSE and "open" in plan.reason
    assert everything(store) == before


async def test_the_newest_lines_about_an_account_and_its_keys_count(books: Books, store: Client) -> None:
    api_keys = ApiKeys(books.redis)
    key = await api_keys.create(A, name="laptop")
    first = await exported_lines(books.redis)
    await api_keys.revoke(A, key.id)
    await Accounts(books.scripts).change_tier(A, "basic")
    second = await exported_lines(books.redis, since="1-0")
    store.flushall()
    await restored(books.redis, second, first)
    assert store.hget(keys.account(A), "tier") == b"basic"
    assert store.hexists(keys.api_key(key.id), "revoked")


async def test_an_operator_needs_four_commands_more_than_a_gateway(
    books: Books, store: Client, redis_server: RedisServer
) -> None:
    rule = f"{ACL_KEYS} {ACL_COMMANDS} {ACL_FORMS} +scan +zscan"
    store.execute_command("ACL", "SETUSER", "operator", "reset", "on", ">pw", *rule.split())
    operator = RedisOwner(redis_server.url.replace("://", "://operator:pw@"), timeout_s=5)
    operator.start()
    try:
        await assert_clean(operator)
        lines = await exported_lines(operator)
        store.flushall()
        assert (await restored(operator, lines))[A].action is Action.REBUILD
    finally:
        await operator.aclose()
        store.execute_command("ACL", "DELUSER", "operator")


async def test_an_export_says_what_a_restore_needs_and_no_secret(books: Books) -> None:
    token = (await ApiKeys(books.redis).create(A, name="laptop")).token
    lines = await exported_lines(books.redis)
    assert [type(line) for line in lines[:2]] == [AccountLine, KeyLine]
    assert isinstance(lines[-2], BalanceLine)
    _, _, secret = token.split("-", 2)  # which may hold a dash of its own
    assert secret.encode() not in b"".join(as_file(lines))
    assert [line for line in await exported_lines(books.redis, since=lines[-2].at) if isinstance(line, RowLine)] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"{", "file:2: not a line of an export"),
        (b'{"type":"invoice"}', "file:2: not a line of an export"),
        (b'{"type":"balance","account":"acme","at":"x","granted":0,"spent":0,"absorbed":0}', "file:2"),
    ],
)
def test_what_is_no_export_is_refused_with_its_place(text: bytes, what: str) -> None:
    with Exported() as exported, pytest.raises(BadExport, match=what):
        exported.add([b"\n", text], "file")


def test_files_that_contradict_each_other_are_refused() -> None:
    fields = {"account": A, "id": "1-0", "op": "post", "sid": "s", "absorbed": 0, "outcome": "", "record": {}}
    with Exported() as exported:
        line = {"type": "row", **fields, "amount": 1}
        exported.add([msgspec.json.encode(line)] * 2, "first")
        with pytest.raises(BadExport, match=r"second:1: row 1-0 of acme"):
            exported.add([msgspec.json.encode(line | {"amount": 2})], "second")
