"""Strategies: their names, their bounds and steps, what they scale and what not, and the explanation over HTTP."""

from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.canonical.errors import GatewayError
from gateway.config import TierConfig
from gateway.http.admin import Admin, admin_router
from gateway.limits.load import Gauges, Local
from gateway.limits.redis import RedisOwner
from gateway.limits.strategies import (
    STRATEGIES,
    BaseLimit,
    BaseLimits,
    LimitsExplanation,
    scaled,
)
from gateway.limits.trust import Trust, score
from tests.harness import ADMIN_KEY

PAGE = Path(__file__).parent.parent.parent / "docs" / "dynamic-limits.md"

LOADS = st.floats(0.1, 1)
TRUSTS = st.floats(0.25, 2)
NAMES = st.sampled_from(sorted(STRATEGIES))

REQUESTS = BaseLimit(name="requests", unit="requests", limit=600, burst=60, period_s=60)
STREAMS = BaseLimit(name="concurrent_streams", unit="streams", limit=100)
BUDGET = BaseLimit(name="day", unit="microusd", limit=5_000_000, is_scaled=False)


def test_the_configuration_names_these_strategies() -> None:
    assert set(get_args(TierConfig.model_fields["strategy"].annotation)) == set(STRATEGIES)
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())


@pytest.mark.parametrize(
    ("name", "load", "trust", "permille"),
    [
        ("fixed", 0.1, 0.25, 1000),
        ("load", 1.0, 0.25, 1000),
        ("load", 0.55, 2.0, 550),
        ("load", 0.1, 2.0, 100),
        ("trust", 0.1, 0.5, 500),
        ("trust", 0.1, 1.98, 2000),
        ("adaptive", 1.0, 2.0, 2000),
        ("adaptive", 0.55, 2.0, 1100),
        ("adaptive", 0.1, 0.25, 50),
    ],
)
def test_each_strategy_follows_what_its_name_says(name: str, load: float, trust: float, permille: int) -> None:
    assert STRATEGIES[name].permille(load, trust) == permille


@given(NAMES, LOADS, TRUSTS)
def test_the_answer_comes_in_steps_within_bounds(name: str, load: float, trust: float) -> None:
    permille = STRATEGIES[name].permille(load, trust)
    assert 50 <= permille <= 2000
    assert permille % 50 == 0


@given(NAMES, LOADS, TRUSTS, LOADS, TRUSTS)
def test_less_load_and_more_trust_never_lower_a_limit(
    name: str, load: float, trust: float, other_load: float, other_trust: float
) -> None:
    strategy = STRATEGIES[name]
    least = strategy.permille(min(load, other_load), min(trust, other_trust))
    assert least <= strategy.permille(max(load, other_load), max(trust, other_trust))


@given(st.integers(1, 10**12), st.integers(1, 40).map(lambda step: step * 50))
def test_a_limit_never_falls_below_one_nor_rises_above_its_double(limit: int, permille: int) -> None:
    assert 1 <= scaled(limit, permille) <= 2 * limit
    assert scaled(limit, 1000) == limit


def test_rates_bursts_and_streams_are_scaled_and_budgets_are_not() -> None:
    requests = REQUESTS.effective(550)
    assert (requests.limit, requests.burst, requests.period_s) == (330, 33, 60)
    assert STREAMS.effective(2000).limit == 200
    assert BUDGET.effective(50) is BUDGET


def test_the_examples_in_the_documentation_are_what_the_code_computes() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.count(" | ") == 9]
    examples = [[cell.strip("$ %") for cell in row[1:]] for row in rows if row[2].startswith("$")]
    assert len(examples) >= 10
    trust, adaptive = STRATEGIES["trust"], STRATEGIES["adaptive"]
    for age_days, usd, refused, strikes, factor, *limits in examples:
        value = score(
            age_days=float(age_days),
            spent_microusd=float(usd) * 1_000_000,
            refused_share=float(refused) / 100,
            strikes=float(strikes),
        )
        assert f"{value:.2f}" == factor
        permilles = [trust.permille(1, value), *(adaptive.permille(load, value) for load in (1, 0.55, 0.1))]
        assert [str(scaled(600, permille)) for permille in permilles] == limits


# The explanation.


class Tiers:
    """What the composition root supplies: limits as configured, and which account there is."""

    def __init__(self, strategy: str) -> None:
        self._strategy = strategy

    async def base(self, account: str) -> BaseLimits | None:
        if account != "acme":
            return None
        limits = (REQUESTS, STREAMS, BUDGET)
        return BaseLimits(tier="pro", strategy=self._strategy, variant="bigger/b", limits=limits)


def client_of(explanation: LimitsExplanation) -> httpx.AsyncClient:
    nothing: Any = None
    admin = Admin(key=ADMIN_KEY, accounts=nothing, api_keys=nothing, ledger=nothing, tiers=())
    app = FastAPI()
    app.include_router(admin_router(admin, explanation))

    @app.exception_handler(GatewayError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return JSONResponse({"code": error.code}, status_code=error.code.http_status)

    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway/admin/v1", headers=headers, trust_env=False
    )


def explanation_of(redis: RedisOwner, strategy: str) -> tuple[Gauges, LimitsExplanation]:
    gauges = Gauges(redis, "here", lambda: Local(streams=85, capacity=100))
    return gauges, LimitsExplanation(gauges, Trust(redis), Tiers(strategy).base)


async def test_the_endpoint_shows_base_factors_and_what_comes_of_them(redis: RedisOwner, store: Redis) -> None:
    gauges, explanation = explanation_of(redis, "adaptive")
    for _ in range(60):
        await gauges.beat()
    async with client_of(explanation) as client:
        answer = await client.get("/accounts/acme/limits")
    shown = answer.json()
    assert answer.status_code == 200
    assert (shown["account"], shown["tier"], shown["variant"]) == ("acme", "pro", "bigger/b")
    assert shown["trust"]["factor"] == 0.5
    assert shown["permille"] == STRATEGIES["adaptive"].permille(gauges.factor, 0.5)
    assert shown["load"]["inputs"]["streams"] == 85
    requests, streams, budget = shown["limits"]
    assert requests["base"] == {"limit": 600, "burst": 60}
    assert requests["effective"]["limit"] == 600 * shown["permille"] // 1000
    assert streams["effective"]["limit"] < streams["base"]["limit"]
    assert not budget["scaled"]
    assert budget["effective"] == budget["base"]


async def test_a_fixed_tier_shows_the_factors_that_it_does_not_follow(redis: RedisOwner, store: Redis) -> None:
    gauges, explanation = explanation_of(redis, "fixed")
    await gauges.beat()
    shown = await explanation.explain("acme")
    assert shown is not None
    assert shown["permille"] == 1000
    assert {"load", "trust"} <= set(shown)


@pytest.mark.parametrize("account", ["nobody", "ACME", "a{b}", "a:b", "%00"])
async def test_there_is_no_explanation_for_nobody(redis: RedisOwner, store: Redis, account: str) -> None:
    _, explanation = explanation_of(redis, "fixed")
    async with client_of(explanation) as client:
        answer = await client.get(f"/accounts/{account}/limits")
    assert (answer.status_code, answer.json()) == (404, {"code": "not_found"})


async def test_the_explanation_wants_the_admin_key(redis: RedisOwner, store: Redis) -> None:
    _, explanation = explanation_of(redis, "fixed")
    async with client_of(explanation) as client:
        answers = [
            await client.get("/accounts/acme/limits", headers={"Authorization": key}) for key in ("", "Bearer x")
        ]
    assert [answer.status_code for answer in answers] == [401, 401]
