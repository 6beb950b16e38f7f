"""Every kind of limit as a client meets it: whose share it is, what it counts, over what, and in shadow mode."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from jose import jwt

from tests.exchange.fleet import Fleet, Json, Party, code_of, fleet
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 86_400
SECRET = "a secret of the tests that is long enough"
WIDE = {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}
# A request of these tests is 10 tokens (8 in, 2 out) and 28 µ$; each of these lets two of them in.
COUNTED = {"requests": 2, "tokens": 25, "budget_usd": 0.00006}
WINDOWS = [None, "24h", "day", "week", "month"]
SCOPES = ["account", "key", "user", "model"]
KINDS = [
    (scope, unit, window)
    for scope, unit, window in itertools.product(SCOPES, COUNTED, WINDOWS)
    if window is not None or unit != "budget_usd"
]


def limit(scope: str, unit: str, window: str | None, **more: Any) -> Json:
    found: Json = {"per": scope, unit: COUNTED[unit], **more}
    return {**found, "period_s": DAY_S} if window is None else {**found, "window": window}


def name_of(scope: str, unit: str, window: str | None, mode: str) -> str:
    return f"{scope}-{unit}-{window}-{mode}"


TIERS: dict[str, Json] = {
    "default": WIDE,
    **{
        name_of(*kind, mode): {**WIDE, "limits": [limit(*kind, mode=mode)]}
        for kind in KINDS
        for mode in ("enforce", "shadow")
    },
    **{
        f"{scope}-streams-{mode}": {**WIDE, "limits": [{"per": scope, "streams": 1, "mode": mode}]}
        for scope in (*SCOPES, "tier")
        for mode in ("enforce", "shadow")
    },
    **{
        f"tier-{unit}": {**WIDE, "limits": [{"per": "tier", unit: COUNTED[unit], "period_s": DAY_S}]}
        for unit in ("requests", "tokens")
    },
    "patterns": {
        **WIDE,
        "limits": [
            {"requests": 1, "period_s": DAY_S, "models": ["up/big*", "up/huge"]},
            {"per": "model", "requests": 2, "period_s": DAY_S, "models": ["up/s*"]},
        ],
    },
    "tier-shadow": {**WIDE, "limits": [{"per": "tier", "requests": 2, "period_s": DAY_S, "mode": "shadow"}]},
    "rolling": {**WIDE, "limits": [{"requests": 1, "window": "1s"}]},
    "claimed": {**WIDE, "limits": [{"per": "user", "requests": 1, "period_s": DAY_S}]},
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways with a tier for every kind of limit."""
    token = {"issuer": "https://issuer.example/", "audience": ["gateway"], "secret": SECRET, "algorithms": ["HS256"]}
    models = {"narrow": {"targets": ["up/any"], "capacity": {"requests_per_minute": 2, "streams": 1}}}
    async with fleet({"tiers": TIERS, "jwt": token, "models": models}, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return running


async def other_share(party: Party, scope: str) -> tuple[Party, Json]:
    """Somebody whose share is another one, and what that one says."""
    match scope:
        case "account" | "tier":
            return await party.fleet.party(name_of("account", "requests", None, "enforce")), {}
        case "key":
            return await party.fleet.another_key(party), {}
        case "user":
            return party, {"user": "bob"}
        case _:
            return party, {"model": "up/other"}


@pytest.mark.parametrize(("scope", "unit", "window"), KINDS)
async def test_the_third_request_is_refused_and_takes_nothing(
    stage: Fleet, scope: str, unit: str, window: str | None
) -> None:
    party = await stage.party(name_of(scope, unit, window, "enforce"))
    assert await party.codes(2, user="ann") == ["", ""]
    await party.settled(records=2)
    before = party.traces()
    assert before, "the limit is kept in Redis"
    code = "budget_exceeded" if unit == "budget_usd" else "rate_limit_exceeded"
    assert await party.codes(2, user="ann") == [code, code]
    assert party.traces() == before
    other, words = await other_share(party, scope)
    assert code_of(await other.post(**{"user": "ann", **words})) == ""
    assert len(stage.upstream.requests) == 3


@pytest.mark.parametrize(("scope", "unit", "window"), KINDS)
async def test_a_limit_in_shadow_mode_only_says_whom_it_would_have_refused(
    stage: Fleet, scope: str, unit: str, window: str | None
) -> None:
    party = await stage.party(name_of(scope, unit, window, "shadow"))
    assert await party.codes(3, user="ann") == [""] * 3
    await party.settled(records=3)
    told = [row["record"].get("shadowed", []) for row in await party.usage()]
    assert sorted(map(len, told)) == [0, 0, 1], told
    (name,) = next(names for names in told if names)
    assert name == f"{scope}.{unit.removesuffix('_usd')}"


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("scope", SCOPES)
async def test_streams_at_once_are_counted_per_scope(stage: Fleet, scope: str, mode: str) -> None:
    party = await stage.party(f"{scope}-streams-{mode}")
    stage.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    async with party.streaming(user="ann"):
        stage.upstream.plan = Plan()
        refused = await party.post(user="ann")
        assert code_of(refused) == ("concurrency_limit_exceeded" if mode == "enforce" else "")
        other, words = await other_share(party, scope)
        assert code_of(await other.post(**{"user": "ann", **words})) == ""
        stage.upstream.release()
    await party.settled()
    assert party.slots() == 0
    assert code_of(await party.post(user="ann")) == ""


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_accounts_of_a_tier_share_its_capacity(stage: Fleet, unit: str) -> None:
    one, other = await stage.party(f"tier-{unit}"), await stage.party(f"tier-{unit}")
    assert [*await one.codes(1), *await other.codes(2)] == ["", "", "rate_limit_exceeded"]
    assert (await other.post()).json()["error"]["message"].startswith("This tier may")
    await other.settled(records=1)
    outside = await stage.party()
    assert await outside.codes(1) == [""]


async def test_accounts_of_a_tier_share_its_streams(stage: Fleet) -> None:
    one, other = await stage.party("tier-streams-enforce"), await stage.party("tier-streams-enforce")
    stage.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    async with one.streaming():
        stage.upstream.plan = Plan()
        assert await other.codes(1) == ["concurrency_limit_exceeded"]
        stage.upstream.release()
    await one.settled()
    await stage.until(lambda: not any(stage.store.zcard(key) for key in stage.store.scan_iter("cap:*:c:*")))
    assert await other.codes(1) == [""]


async def test_shared_capacity_in_shadow_mode_says_whom_it_would_have_refused(stage: Fleet) -> None:
    party = await stage.party("tier-shadow")
    assert await party.codes(3) == [""] * 3
    await party.settled(records=3)
    assert [len(row["record"].get("shadowed", [])) for row in await party.usage()].count(1) == 1


async def test_a_models_capacity_is_shared_by_everybody(stage: Fleet) -> None:
    one, other = await stage.party(), await stage.party()
    assert [*await one.codes(1, model="narrow"), *await other.codes(2, model="narrow")] == [
        *("", ""),
        "rate_limit_exceeded",
    ]
    assert await other.codes(1, model="up/any") == [""]


async def test_a_limit_may_be_for_some_models_only(stage: Fleet) -> None:
    party = await stage.party("patterns")
    # One share for all models of the patterns together ...
    assert await party.codes(1, model="up/big-1") == [""]
    assert await party.codes(1, model="up/huge") == ["rate_limit_exceeded"]
    assert await party.codes(3, model="up/tiny") == [""] * 3
    # ... and one for each model of a pattern.
    assert await party.codes(3, model="up/small") == ["", "", "rate_limit_exceeded"]
    assert await party.codes(2, model="up/short") == ["", ""]


async def test_a_rolling_window_opens_again_after_retry_after(stage: Fleet) -> None:
    party = await stage.party("rolling")
    assert await party.codes(1) == [""]
    await party.settled(records=1)  # what is only held may come back any time: a second is named for that
    refused = await party.post()
    assert code_of(refused) == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    await asyncio.sleep(int(refused.headers["retry-after"]))
    assert await party.codes(1) == [""]


def token(**claims: Any) -> str:
    base = {"iss": "https://issuer.example/", "aud": "gateway", "exp": 4_000_000_000, **claims}
    encoded: str = jwt.encode(base, SECRET, algorithm="HS256")
    return encoded


async def test_the_subject_of_a_token_is_the_user_and_its_claim_the_tier(stage: Fleet) -> None:
    party = await stage.party()

    def known_as(subject: str, **claims: Any) -> Party:
        return Party(stage, party.account, token(sub=subject, account=party.account, **claims))

    ann, bob = known_as("ann", tier="claimed"), known_as("bob", tier="claimed")
    assert await ann.codes(2) == ["", "rate_limit_exceeded"]
    # Whatever a client calls its user: the token says who it is.
    assert await ann.codes(1, user="bob") == ["rate_limit_exceeded"]
    assert await bob.codes(1) == [""]
    # Without the claim the account's own tier applies, which is the default one here.
    assert await known_as("ann").codes(3) == [""] * 3


async def test_a_request_without_a_user_is_not_held_to_limits_of_users(stage: Fleet) -> None:
    party = await stage.party(name_of("user", "requests", None, "enforce"))
    assert await party.codes(3) == [""] * 3


async def test_no_name_from_outside_reaches_redis_as_it_is(stage: Fleet) -> None:
    party = await stage.party(name_of("user", "requests", None, "enforce"))
    assert await party.codes(1, user="}:w *") == [""]
    await party.settled(records=1)
    assert not [name for name in party.traces() if "w *" in name]
