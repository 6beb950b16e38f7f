"""What a running stream is held to, without a clock and without Redis."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.canonical.events import Frame, TextDelta
from gateway.conduct import Conduct, Verdict, budget_notice
from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Unit
from gateway.limits.reservation import Reservation
from gateway.limits.tiers import FlowLimits, Tier

FRAMES = [Frame((TextDelta("one"),))]
TOKENS = Bucket("account.tokens.60000", 60, 60_000, 60, Unit.TOKENS)


def reservation(*buckets: Bucket) -> Any:
    allowances = Allowances(keys.limits_of("acme"), buckets=buckets)
    return SimpleNamespace(debt_ms=0, stream=SimpleNamespace(allowances=allowances))


def conduct(held: Any, *, tokens_max: int | None = None, **flow: Any) -> tuple[Conduct, list[str]]:
    downgrades: list[str] = []
    tier = Tier(name="default", tokens_per_request=tokens_max, flow=FlowLimits(**flow))
    return Conduct(tier, cast(Reservation, held), 0.0, lambda: downgrades.append("again")), downgrades


def judged(it: Conduct, now: float, *, total: int = 1) -> Verdict:
    return it.judge(FRAMES, 1, total, now)


def test_a_tier_without_rules_is_not_asked() -> None:
    assert not conduct(reservation())[0].is_needed
    assert conduct(reservation(TOKENS))[0].is_needed
    assert conduct(reservation(), tokens_max=9)[0].is_needed
    assert conduct(reservation(), tokens_per_minute=60)[0].is_needed
    assert conduct(reservation(), loop_action="warn")[0].is_needed


def test_the_size_of_a_request_ends_its_answer() -> None:
    it, _ = conduct(reservation(), tokens_max=10)
    assert judged(it, 0, total=9).cut is None
    cut = judged(it, 0, total=10).cut
    assert cut is not None and cut.reason == "tokens_per_request_exceeded"


def test_a_debt_is_waited_for_in_full_and_once() -> None:
    held = reservation(TOKENS)
    it, _ = conduct(held)
    held.debt_ms = 1_500
    assert judged(it, 100.0) == Verdict()
    assert it.pause_s(100.0) == 0.25
    # A renewal of the lease that finds nothing new does not end the wait, and the same debt is not waited for again.
    assert judged(it, 100.5) == Verdict()
    assert it.pause_s(101.4) == pytest.approx(0.1)
    assert it.pause_s(101.499) == it.pause_s(101.5) == it.pause_s(200.0) == 0
    held.debt_ms = 1_500
    judged(it, 102.0)
    assert it.pause_s(103.0) == 0.25


@pytest.mark.parametrize("action", ["warn", "downgrade", "cut"])
def test_a_debt_meets_the_action_of_rates_once(action: str) -> None:
    held = reservation(TOKENS)
    it, downgrades = conduct(held, rate_action=action, downgrade_to="cheap")
    held.debt_ms = 1_500
    verdict = judged(it, 100.0)
    assert it.found == "token_rate" and it.pause_s(100.0) == 0
    assert (verdict.cut is not None) == (action == "cut")
    assert [notice.kind for notice in verdict.notices] == {"warn": ["warning"], "downgrade": ["downgrade"]}.get(
        action, []
    )
    assert len(downgrades) == (action == "downgrade")
    held.debt_ms = 1_500
    assert judged(it, 101.0) == Verdict()


@pytest.mark.parametrize(
    ("permille", "name", "share", "limit", "text", "then"),
    [
        (800, "", 0.8, None, "80% of the account's credit is used or held.", 950),
        (999, "", 0.95, None, "95% of the account's credit is used or held.", 1_000_000),
        (
            870,
            "user.0123456789abcdef.budget.86400000",
            0.8,
            "user.budget",
            "80% of this user's budget is used or held.",
            950,
        ),
    ],
)
def test_a_notice_names_whose_budget_it_is_and_no_key_of_redis(
    permille: int, name: str, share: float, limit: str | None, text: str, then: int
) -> None:
    notice, again = budget_notice(permille, name)
    assert (notice.share, notice.limit, notice.message, again) == (share, limit, text, then)
