"""What holds for the scripts together: grants and arithmetic, refusals that change nothing, replays, a lost cache."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from redis.cluster import RedisCluster

from gateway.limits import keys, scripts
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.redis import StoreUnavailable
from gateway.limits.scripts import Retention, Share

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

BIG = 2**52
DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000
FIRST_MONEY, SECOND_MONEY = (Window(f"money{n}", 100_000, (60_000, 60, 0), Unit.MONEY) for n in (1, 2))
EVERYTHING = {
    "windows": [
        Window("requests", 100, (60_000, 60, 0), Unit.REQUESTS),
        Window("tokens", 10_000, (60_000, 60, 0), Unit.TOKENS),
        FIRST_MONEY,
    ],
    "buckets": [Bucket("rpm", 100, DAY_MS, 100), Bucket("tpm", 10_000, DAY_MS, 10_000, Unit.TOKENS)],
    "slots": [Slots("streams", 50)],
}


class TestGrant:
    async def test_credit_is_added_once_per_id(self, teller: Teller) -> None:
        assert [(await teller.grant(100)).code for _ in range(3)] == [1, 2, 2]
        assert (await teller.grant(50, "other")).granted == 150
        assert teller.wallet()["granted"] == 150
        assert [(row["op"], row["sid"], row["d"]) for row in teller.ledger()] == [
            ("grant", "g", "100"),
            ("grant", "other", "50"),
        ]

    async def test_an_id_is_not_taken_for_another_amount(self, teller: Teller) -> None:
        await teller.grant(1000)
        before = teller.everything()
        reply = await teller.grant(1001)
        assert (reply.code, reply.granted) == (5, 1000)
        assert teller.everything() == before

    async def test_credit_can_be_taken_back_down_to_what_is_free(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 400)
        before = teller.everything()
        assert (await teller.grant(-601, "too much")).code == -2
        assert teller.everything() == before
        assert (await teller.grant(-600, "all")).code == 1
        assert teller.wallet() == {"granted": 400, "spent": 0, "held": 400, "absorbed": 0}

    async def test_nothing_may_be_granted_too(self, teller: Teller) -> None:
        assert [(await teller.grant(0)).code for _ in range(2)] == [1, 2]
        assert (await teller.grant(-1, "minus")).code == -2

    async def test_more_than_two_to_the_fifty_second_is_refused(self, teller: Teller) -> None:
        assert (await teller.grant(BIG + 1, "a")).code == -12
        assert (await teller.grant(2**62, "far too much")).code == -12
        assert (await teller.grant(BIG, "b")).code == 1
        before = teller.everything()
        assert (await teller.grant(1, "c")).code == -12
        assert teller.everything() == before


class TestArithmetic:
    async def test_amounts_are_exact_at_four_and_a_half_quadrillion(self, teller: Teller) -> None:
        await teller.grant(BIG - 1)
        reply = await teller.reserve("s", BIG - 2)
        assert (reply.held, reply.available) == (BIG - 2, 1)
        assert (await teller.extend("s", used=BIG - 3, need=BIG - 1, target=BIG - 1)).held == BIG - 1
        assert (await teller.settle("s", BIG - 4)).charged == BIG - 4
        assert teller.wallet() == {"granted": BIG - 1, "spent": BIG - 4, "held": 0, "absorbed": 0}
        assert teller.ledger()[-1]["d"] == str(BIG - 4)

    @pytest.mark.parametrize("amount", [10**14, 10**15 + 1, 4_500_000_000_000_001, BIG - 1])
    async def test_no_amount_is_rounded_or_written_with_an_exponent(self, teller: Teller, amount: int) -> None:
        teller.limit(windows=[Window("money", BIG, (60_000, 60, 0), Unit.MONEY)])
        await teller.grant(amount)
        await teller.reserve("s", amount)
        assert teller.window("money") == (0, amount)
        assert teller.record("s")["h"] == str(amount)
        await teller.settle("s", amount)
        assert teller.window("money") == (amount, 0)
        assert teller.wallet() == {"granted": amount, "spent": amount, "held": 0, "absorbed": 0}
        assert teller.hash(keys.wallet("acme"))["s"] == str(amount)

    async def test_nothing_held_and_nothing_spent_is_no_minus_zero(self, teller: Teller) -> None:
        teller.limit(**EVERYTHING)
        await teller.grant(0)
        assert (await teller.reserve("s", 0)).code == 1
        assert (await teller.extend("s")).code == 1
        assert (await teller.settle("s", 0)).code == 1
        await teller.reserve("dead", 0)
        teller.lapse("dead")
        assert (await teller.reap("dead")).codes == [1]
        assert (await teller.settle("dead", 0)).code == 3
        for key in teller.names():
            if teller.store.type(key) == b"hash":
                assert b"-0" not in teller.store.hvals(key)


REFUSALS: dict[str, tuple[int, Callable[[Teller], Awaitable[Any]]]] = {
    "no credit": (-2, lambda teller: teller.reserve("s", 5000)),
    "a full window": (-3, lambda teller: teller.reserve("s", 150)),
    "an empty bucket": (-4, lambda teller: teller.reserve("s")),
    "full slots": (-5, lambda teller: teller.reserve("s")),
    "a suspended account": (-6, lambda teller: teller.reserve("s")),
    "more than a window ever has": (-7, lambda teller: teller.reserve("s", 201)),
    "more than a bucket ever has": (-7, lambda teller: teller.reserve("s", tokens=10_001)),
    "dead holds": (-8, lambda teller: teller.reserve("s", 950)),
    "dead holds in a window": (-8, lambda teller: teller.reserve("s", 150)),
    "the same stream": (3, lambda teller: teller.reserve("before", nonce="another")),
    "a finished stream": (4, lambda teller: teller.reserve("finished", nonce="another")),
    "another request": (5, lambda teller: teller.reserve("before", request="other")),
    "a grant below zero": (-2, lambda teller: teller.grant(-950, "g2")),
    "an unknown stream": (-11, lambda teller: teller.extend("s", need=9, target=9)),
    "a stream that ended": (-10, lambda teller: teller.extend("finished", used=9, need=900, target=900, tokens=99)),
    "a settlement that came before": (2, lambda teller: teller.settle("finished", 99, tokens=99)),
    "a settlement that is too old": (-9, lambda teller: teller.settle("lost", 9, age_ms=100 * DAY_MS)),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_changes_nothing(teller: Teller, refusal: str) -> None:
    code, ask = REFUSALS[refusal]
    await teller.grant(1000)
    burst = 2 if refusal == "an empty bucket" else 9
    has_window = "window" in refusal
    teller.limit(
        windows=[SECOND_MONEY, Window("money", 200 if has_window else 100_000, (60_000, 60, 0), Unit.MONEY)],
        buckets=[
            *(Bucket("a", 9, DAY_MS, 9), Bucket("b", 1, DAY_MS, burst)),
            Bucket("t", 10_000, DAY_MS, 10_000, Unit.TOKENS),
        ],
        slots=[Slots("c", 9), Slots("d", 1 if refusal == "full slots" else 9)],
    )
    await teller.reserve("finished")
    await teller.settle("finished", 9)
    await teller.reserve("before", 60)
    if refusal.startswith("dead"):
        teller.lapse("before")
    if refusal == "a suspended account":
        teller.store.hset(keys.wallet("acme"), "x", 1)
    before = teller.everything()
    for _ in range(2):
        assert (await ask(teller)).code == code
    assert teller.everything() == before


async def test_an_account_without_a_wallet_gets_nothing_and_leaves_nothing(teller: Teller) -> None:
    teller.limit(**EVERYTHING)
    assert (await teller.reserve("s", 0)).code == -1
    assert (await teller.extend("s", revive=True)).code == -1
    assert (await teller.settle("s", 1)).code == -1
    assert (await teller.reap("s")).codes == [-1]
    assert teller.everything() == {}


REPEATED: dict[str, Callable[[Teller], Awaitable[Any]]] = {
    "grant": lambda teller: teller.grant(500, "more"),
    "reserve": lambda teller: teller.reserve("new", 50, 500, tokens=30),
    "settle": lambda teller: teller.settle("s", 170, tokens=55),
    "settle with a refund": lambda teller: teller.settle("s", 0, tokens=0, refund=True),
    "settle what is lost": lambda teller: teller.settle("lost", 40, tokens=5),
    "reap": lambda teller: teller.reap("dead"),
    "correct what was reaped": lambda teller: teller.settle("reaped", 70, tokens=80),
}


@pytest.mark.parametrize("op", REPEATED)
async def test_what_is_said_twice_is_done_once(teller: Teller, op: str) -> None:
    teller.limit(**EVERYTHING)
    teller.set_clock(NOW_MS)
    await teller.grant(10_000)
    for sid in ("s", "dead", "reaped"):
        await teller.reserve(sid, 100, tokens=20)
        await teller.extend(sid, used=50, need=100, target=200, tokens=40)
    for sid in ("dead", "reaped"):
        teller.lapse(sid)
    await teller.reap("reaped")
    first = await REPEATED[op](teller)
    before = teller.everything()
    for _ in range(2):
        again = await REPEATED[op](teller)
        if op.startswith(("settle", "correct")):
            assert (again.code, again.charged, again.absorbed) == (2, first.charged, first.absorbed)
        assert teller.everything() == before


async def test_an_extension_said_twice_is_done_once(teller: Teller) -> None:
    teller.limit(**EVERYTHING)
    teller.set_clock(NOW_MS)
    await teller.grant(10_000)
    await teller.reserve("s", 100, tokens=20)
    revision = keys.revision("acme", "here").encode()

    def state() -> dict[bytes, Any]:
        return {key: value for key, value in teller.everything().items() if key != revision}

    first = await teller.extend("s", used=80, need=100, target=300, tokens=70)
    before = state()
    for _ in range(2):
        again = await teller.extend("s", used=80, need=100, target=300, tokens=70)
        assert (again.code, again.held, again.available) == (first.code, first.held, first.available)
        assert state() == before


async def test_forgotten_scripts_are_sent_again(teller: Teller) -> None:
    for call in (
        lambda: teller.grant(1000),
        lambda: teller.reserve("s", 100),
        lambda: teller.extend("s", used=5, need=100, target=200),
        lambda: teller.settle("s", 6),
    ):
        teller.store.script_flush()
        assert (await call()).code == 1
    teller.store.script_flush()
    assert (await teller.reap("s")).codes == [0]


async def test_a_full_ledger_loses_its_oldest_rows_only(teller: Teller) -> None:
    await teller.grant(10_000)
    for number in range(300):
        await teller.settle(f"s{number}", 1)
    teller.retention = Retention(ledger_ms=0)
    await teller.settle("last", 1)
    assert 1 <= len(teller.ledger()) < 302
    assert teller.ledger()[-1]["sid"] == "last"
    assert teller.wallet()["spent"] == 301


def test_a_script_and_its_stub_cannot_drift_apart() -> None:
    with pytest.raises(ImportError, match="drifted apart"):
        scripts._load("grant", key_names="wallet grants", arg_names="grant_id amount")


async def test_accounts_do_not_touch_each_other(teller: Teller) -> None:
    other = teller.at("umbrella")
    teller.limit(**EVERYTHING)
    other.limit(**EVERYTHING)
    await teller.grant(1000)
    await other.grant(50)
    await teller.reserve("s", 100)
    before = {key: value for key, value in teller.everything().items() if b"acme" in key}
    await other.reserve("s", 50)
    await other.settle("s", 50)
    assert {key: value for key, value in teller.everything().items() if b"acme" in key} == before


def limit_memory(teller: Teller, size: int) -> None:
    nodes = {"target_nodes": "all"} if isinstance(teller.store, RedisCluster) else {}
    teller.store.config_set("maxmemory", size, **nodes)


async def test_where_memory_is_full_a_script_does_all_or_nothing(teller: Teller) -> None:
    """Here a window loses a part first, which is a write before the decision."""
    teller.limit(**EVERYTHING)
    teller.set_clock(NOW_MS)
    await teller.grant(10_000)
    for sid in ("s", "dead", "reaped"):
        await teller.reserve(sid, 100, tokens=20)
    for sid in ("dead", "reaped"):
        teller.lapse(sid)
    await teller.reap("reaped")
    teller.set_clock(NOW_MS + 2 * 3_600_000)
    owner = keys.capacity("model.m")
    shared = Allowances(owner, buckets=[Bucket("rpm", 5, DAY_MS, 5)], slots=[Slots("streams", 5)])
    share = Share(owner=owner, allowances=shared, estimate=5, lease_ms=1000)
    before = teller.everything()
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "reserve": lambda: teller.reserve("new", 10, 500, tokens=5),
        "extend": lambda: teller.extend("s", used=9, need=100, target=200, tokens=30),
        "revive": lambda: teller.extend("lost", used=9, need=100, target=200, tokens=30, revive=True),
        "settle": lambda: teller.settle("s", 170, tokens=70, refund=True),
        "settle what is lost": lambda: teller.settle("gone", 5, tokens=9),
        "correct": lambda: teller.settle("reaped", 9, tokens=9),
        "reap": lambda: teller.reap("dead"),
        "cap": lambda: teller.cap(share, "acquire", "s"),
        "grant": lambda: teller.grant(1, "one"),
    }
    try:
        limit_memory(teller, 1)
        for call in calls.values():
            with pytest.raises(StoreUnavailable):
                await call()
            assert teller.everything() == before
    finally:
        limit_memory(teller, 0)
    for name, call in calls.items():
        reply = await call()
        assert (reply.codes[0] if name == "reap" else reply.code) in (1, 3, 4), name


async def test_where_memory_is_full_and_slots_are_cleared_the_rest_is_done_too(teller: Teller) -> None:
    teller.limit(slots=[Slots("streams", 1)])
    await teller.grant(1000)
    await teller.reserve("dead", 100)
    teller.lapse("dead")
    try:
        limit_memory(teller, 1)
        assert (await teller.reserve("s", 100)).code == 1
    finally:
        limit_memory(teller, 0)
    assert teller.wallet()["held"] == 200
    assert teller.record("s")["st"] == "open"
    assert teller.store.zrange(keys.limits_of("acme").slots("streams"), 0, -1) == [b"s"]
