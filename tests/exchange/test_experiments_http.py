"""An experiment as accounts meet it: each keeps its arm on every replica, and the report counts what became of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.experiments import bucket_of
from tests.exchange.fleet import Fleet, Party, fleet
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERIOD = {"start": "2020-01-01T00:00:00Z", "end": "2100-01-01T00:00:00Z"}


def requests(limit: int) -> dict[str, Any]:
    return {"limit": limit, "period_s": 86_400}


CONFIG: dict[str, Any] = {
    "tiers": {
        "default": {"requests": requests(2)},
        "paying": {"requests": requests(2)},
        "watched": {"requests": requests(2)},
        "over": {"requests": requests(2)},
    },
    "experiments": {
        "wider": {
            "tier": "default",
            **PERIOD,
            "variants": {"as-is": {"share": 50}, "wide": {"share": 50, "requests": requests(4)}},
        },
        "paid": {
            "tier": "paying",
            **PERIOD,
            "variants": {"as-is": {"share": 50}, "wide": {"share": 50, "requests": requests(4)}},
        },
        "some": {
            "tier": "watched",
            **PERIOD,
            "variants": {"one": {"share": 1, "requests": requests(9)}, "other": {"share": 1, "requests": requests(9)}},
        },
        "past": {
            "tier": "over",
            "start": "2020-01-01T00:00:00Z",
            "end": "2020-02-01T00:00:00Z",
            "variants": {"as-is": {"share": 50}, "wide": {"share": 50, "requests": requests(4)}},
        },
    },
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways."""
    async with fleet(CONFIG, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    return running


async def in_arm(stage: Fleet, experiment: str, tier: str | None, *, is_wide: bool) -> Party:
    """A new account that the experiment's name and its own put into this arm."""
    while True:
        party = await stage.party(tier)
        if (bucket_of(experiment, party.account) >= 5_000) is is_wide:
            return party


async def report(stage: Fleet, name: str) -> dict[str, dict[str, Any]]:
    answer = await stage.gateways[1].admin.get(f"/experiments/{name}")
    assert answer.status_code == 200, answer.text
    return {variant["variant"]: variant for variant in answer.json()["variants"]}


async def counted(stage: Fleet, name: str, variant: str, more: dict[str, int], before: dict[str, Any]) -> None:
    async with asyncio.timeout(10):
        while True:
            now = (await report(stage, name))[variant]
            if all(now[field] >= before[field] + count for field, count in more.items()):
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(("is_wide", "allowed"), [(False, 2), (True, 4)])
async def test_an_arm_has_its_own_limits_on_every_replica(stage: Fleet, is_wide: bool, allowed: int) -> None:
    arm = "wide" if is_wide else "as-is"
    before = (await report(stage, "wider"))[arm]
    party = await in_arm(stage, "wider", None, is_wide=is_wide)
    codes = await party.codes(6)
    assert codes == [""] * allowed + ["rate_limit_exceeded"] * (6 - allowed)
    assert (await party.record(allowed))["variant"] == f"wider/{arm}"
    await counted(stage, "wider", arm, {"requests": 6, "refused": 6 - allowed}, before)
    shown = (await stage.gateways[0].admin.get(f"/accounts/{party.account}/limits")).json()
    assert shown["variant"] == f"wider/{arm}"


async def test_refusals_count_for_the_accounts_own_tier(stage: Fleet) -> None:
    before = (await report(stage, "paid"))["wide"]
    party = await in_arm(stage, "paid", "paying", is_wide=True)
    assert (await party.codes(6)).count("") == 4
    await counted(stage, "paid", "wide", {"requests": 6, "refused": 2}, before)


async def test_who_takes_no_part_keeps_the_tiers_limits(stage: Fleet) -> None:
    while True:
        party = await stage.party("watched")
        if bucket_of("some", party.account) >= 200:
            break
    assert (await party.codes(3)).count("") == 2
    assert "variant" not in await party.record(2)


async def test_an_experiment_that_is_over_changes_nothing(stage: Fleet) -> None:
    party = await in_arm(stage, "past", "over", is_wide=True)
    assert (await party.codes(3)).count("") == 2
    assert "variant" not in await party.record(2)
