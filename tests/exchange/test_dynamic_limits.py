"""Limits that follow an account's history, as its requests meet them and as the operator sees why."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.limits import keys
from tests.exchange.fleet import Fleet, Party, fleet
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS: dict[str, Any] = {
    "requests": {"limit": 10, "period_s": 86_400},
    "concurrent_streams": 100,
    "tokens_per_request": 1_000,
    "limits": [{"budget_usd": 5, "window": "month"}],
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways."""
    tiers = {name: {**LIMITS, "strategy": name} for name in ("fixed", "load", "trust", "adaptive")}
    async with fleet({"tiers": tiers}, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    return running


async def explained(party: Party) -> Any:
    answer = await party.fleet.gateways[0].admin.get(f"/accounts/{party.account}/limits")
    assert answer.status_code == 200, answer.text
    return answer.json()


def grow_old(party: Party, days: int, *, spent_microusd: int = 0, strikes: int = 0) -> None:
    """Write the history that an account of so many days would have."""
    now = time.time()
    created_ms = int((now - days * 86_400) * 1000)
    party.fleet.store.hset(keys.account(party.account), "created", created_ms)
    today = int(now // 86_400)
    history = {f"{today}:requests": 1_000, f"{today}:spent": spent_microusd, f"{today}:strikes": strikes}
    party.fleet.store.hset(keys.history(party.account), mapping=history)


async def admitted(party: Party) -> int:
    return (await party.codes(30)).count("")


@pytest.mark.parametrize(("tier", "expected"), [("fixed", 10), ("load", 10), ("trust", 5), ("adaptive", 5)])
async def test_a_stranger_gets_half_where_trust_counts(stage: Fleet, tier: str, expected: int) -> None:
    party = await stage.party(tier)
    assert await admitted(party) == expected
    shown = await explained(party)
    assert (shown["tier"], shown["strategy"], shown["permille"]) == (tier, tier, expected * 100)
    requests = next(limit for limit in shown["limits"] if limit["name"] == "account.requests")
    assert requests["base"] == {"limit": 10, "burst": 10}
    assert requests["effective"] == {"limit": expected, "burst": expected}


async def test_a_month_of_good_standing_gives_all_of_it(stage: Fleet) -> None:
    party = await stage.party("trust")
    grow_old(party, 31)
    assert await admitted(party) == 10


async def test_a_large_customer_gets_more(stage: Fleet) -> None:
    party = await stage.party("adaptive")
    grow_old(party, 100, spent_microusd=5_100_000_000)
    shown = await explained(party)
    assert shown["permille"] > 1_800 and shown["trust"]["parts"]["from_large_spend"] > 0.8
    assert await admitted(party) == shown["permille"] // 100


async def test_a_strike_halves_it(stage: Fleet) -> None:
    party = await stage.party("trust")
    grow_old(party, 31, strikes=1)
    shown = await explained(party)
    assert 450 <= shown["permille"] <= 550 and shown["trust"]["inputs"]["strikes"] > 0.9
    assert await admitted(party) == shown["permille"] // 100


async def test_promises_about_money_and_size_are_never_scaled(stage: Fleet) -> None:
    shown = await explained(await stage.party("trust"))
    fixed = {limit["name"]: limit for limit in shown["limits"] if not limit["scaled"]}
    assert set(fixed) == {"account.microusd.month", "request.tokens"}
    assert all(limit["base"] == limit["effective"] for limit in fixed.values())
    streams = next(limit for limit in shown["limits"] if limit["name"] == "account.streams")
    assert (streams["base"]["limit"], streams["effective"]["limit"]) == (100, 50)


async def test_every_gateways_load_is_shown(stage: Fleet) -> None:
    party = await stage.party("load")
    for _ in range(1_000):
        shown = await explained(party)
        if len(shown["load"]["gateways"]) == 2:
            break
    assert len(shown["load"]["gateways"]) == 2
    assert shown["load"]["store"] == "shared" and shown["load"]["factor"] == 1.0


async def test_nobody_has_no_limits(stage: Fleet) -> None:
    for name in ("nobody", "a%7Bb"):
        assert (await stage.gateways[0].admin.get(f"/accounts/{name}/limits")).status_code == 404
