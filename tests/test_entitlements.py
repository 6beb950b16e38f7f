"""Which tier a caller has, above all while Redis does not say."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from gateway.canonical.caller import Caller
from gateway.canonical.errors import PermissionDenied, ServiceUnavailable
from gateway.entitlements import Entitlements
from gateway.experiments import Experiments
from gateway.limits.accounts import Accounts, Standing
from gateway.limits.load import Gauges
from gateway.limits.redis import StoreUnavailable
from gateway.limits.tiers import FlowLimits, Tier
from gateway.limits.trust import Trust

STRICT = Tier(name="strict", models=("small",), flow=FlowLimits(downgrade_to="cheap"))
TIERS = {"default": Tier(name="default"), "strict": STRICT, "claimed": Tier(name="claimed")}


class KnownAccounts:
    """Accounts in a Redis that answers as told, by turns."""

    def __init__(self, *answers: Standing | StoreUnavailable) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def standing(self, account: str) -> Standing:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    async def downgrade(self, account: str, model: str, until: float) -> None:
        raise StoreUnavailable("away")


def entitlements(accounts: KnownAccounts, tiers: Mapping[str, Tier] = TIERS) -> Entitlements:
    return Entitlements(
        tiers,
        {},
        cast(Accounts, accounts),
        experiments=Experiments([]),
        gauges=cast(Gauges, None),
        trust=cast(Trust, None),
    )


def caller(**more: Any) -> Caller:
    return Caller(**{"account": "acme", "subject": "key:a", "method": "key", **more})


AWAY = StoreUnavailable("away")


async def test_a_moment_without_redis_is_waited_for() -> None:
    found = await entitlements(KnownAccounts(AWAY, AWAY, Standing(tier="strict"))).of(caller(), "small")
    assert found.tier is STRICT


async def test_an_account_that_nobody_knows_does_not_get_the_default_tier() -> None:
    with pytest.raises(ServiceUnavailable) as caught:
        await entitlements(KnownAccounts(AWAY)).of(caller(), "small")
    assert caught.value.retry_after_s == 1


async def test_the_last_known_tier_holds_at_once() -> None:
    accounts = KnownAccounts(Standing(tier="strict"), AWAY)
    known = entitlements(accounts)
    for _ in range(3):
        assert (await known.of(caller(), "small")).tier is STRICT
    assert accounts.asked == 3
    with pytest.raises(PermissionDenied):
        await known.of(caller(), "large")


async def test_a_tier_in_the_credential_needs_no_redis() -> None:
    accounts = KnownAccounts(AWAY)
    assert (await entitlements(accounts).of(caller(tier="claimed"), "small")).tier.name == "claimed"
    assert accounts.asked == 1


async def test_a_tier_that_is_not_configured_is_the_default_one() -> None:
    assert (await entitlements(KnownAccounts(Standing(tier="gone"))).of(caller(), "x")).tier.name == "default"


async def test_a_downgrade_is_over_at_its_time() -> None:
    running = Standing(tier="strict", downgraded_to="cheap", downgraded_until=4e9)
    found = await entitlements(KnownAccounts(running)).of(caller(), "small")
    assert (found.model, found.is_downgraded) == ("cheap", True)
    over = Standing(tier="strict", downgraded_to="cheap", downgraded_until=1)
    found = await entitlements(KnownAccounts(over)).of(caller(), "small")
    assert (found.model, found.is_downgraded) == ("small", False)


async def test_a_downgrade_that_redis_did_not_take_is_no_error() -> None:
    await entitlements(KnownAccounts(AWAY)).downgrade("acme", STRICT)
    await entitlements(KnownAccounts(AWAY)).downgrade("acme", TIERS["default"])
