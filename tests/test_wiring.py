"""What the configuration becomes: rules of tiers, and mistakes that only show when a value is put to use."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import ConfigError
from gateway.config_file import parse
from gateway.limits.allowances import Unit
from gateway.limits.tiers import BucketRule, SlotsRule, WindowRule
from gateway.wiring import capacities, tiers, validate, variants
from gateway.wiring_models import price_of

PRICED = "providers: {openai: {api_key: k, price: {input: 1, output: 2, service_tiers: %s}}}"
MISTAKES = {
    "a target of nobody": ("models: {fast: {targets: [nobody/x]}}", "names no provider"),
    "a provider without an address": ("providers: {mine: {}}", "base_url is missing"),
    "a limit on nothing": ("tiers: {a: {limits: [{per: key}]}}", "exactly one of"),
    "a limit on two things": ("tiers: {a: {limits: [{requests: 1, tokens: 1}]}}", "exactly one of"),
    "a limit on streams and money": ("tiers: {a: {limits: [{streams: 1, budget_usd: 1}]}}", "exactly one of"),
    "a budget without a window": ("tiers: {a: {limits: [{budget_usd: 1}]}}", "needs a window"),
    "a window of a whole tier": ("tiers: {a: {limits: [{per: tier, requests: 1, window: 24h}]}}", "has no window"),
    "a budget of a whole tier": ("tiers: {a: {limits: [{per: tier, budget_usd: 1, window: day}]}}", "has no window"),
    "a time zone that is none": (
        "tiers: {a: {limits: [{tokens: 1, window: day, timezone: Mars}]}}",
        "time zone 'Mars'",
    ),
    "a time zone out of a folder": ("tiers: {a: {limits: [{tokens: 1, window: day, timezone: ../x}]}}", "time zone"),
    "the second limit of one kind": ("tiers: {a: {limits: [{requests: 5}]}}", "tiers.a.limits.0: the tier has a limit"),
    "one window twice": ("tiers: {a: {limits: [{tokens: 5, window: 24h}, {tokens: 9, window: 1d}]}}", "limits.1"),
    "a feature that is none": ("tiers: {a: {features: [stream, tool]}}", "there is no 'tool'; there are stream, tools"),
    "a downgrade to nothing": ("tiers: {a: {flow: {rate_action: downgrade}}}", "downgrade needs downgrade_to"),
    "a downgrade to nobody": ("tiers: {a: {flow: {downgrade_to: cheap}}}", "there is no model 'cheap'"),
    "a tier that is not there": (
        "experiments: {x: {tier: gold, start: 2026-01-01T00:00:00Z, end: 2026-02-01T00:00:00Z, "
        "variants: {a: {share: 50}, b: {share: 50}}}}",
        "there is no tier 'gold'",
    ),
    "a variant that doubles a limit": (
        "tiers: {default: {limits: [{requests: 5, period_s: 10}]}}\n"
        "experiments: {x: {tier: default, start: 2026-01-01T00:00:00Z, end: 2026-02-01T00:00:00Z, "
        "variants: {a: {share: 50}, b: {share: 50, requests: {limit: 5, period_s: 10}}}}}",
        "counts the same",
    ),
    "a price for what everybody gets": (
        PRICED % "{auto: {input: 1, output: 2}}",
        "service_tiers.auto: auto costs what",
    ),
    "a service tier that is half priced": (PRICED % "{flex: {input: 1}}", "price.service_tiers.flex.output: Field"),
    "a word that is none for tiers": (PRICED % "skip", "price.service_tiers: Input should be 'ignore'"),
    "an unknown key in a list": (
        "models: {a: {targets: [{model: demo/fast, capacity: {streems: 1}}]}}",
        "targets.0.capacity.streems: there is no such key here; there are requests_per_minute",
    ),
    "a hedge that asks the same": ("models: {a: {targets: [demo/fast, demo/fast], hedge: {}}}", "no second target"),
    "a secret that is too short": ("jwt: {issuer: i, audience: [a], secret: x, algorithms: [HS256]}", "jwt:"),
}


@pytest.mark.parametrize(("text", "hint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parse(text, "my.yaml"))
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_and_requests_cost_the_same_in_a_service_tier_that_says_nothing_of_them() -> None:
    rates = "{input: 1, output: 2, image: 3, request: 4, service_tiers: {flex: {input: 1, output: 2, image: 0}}}"
    price = parse(f"providers: {{openai: {{api_key: k, price: {rates}}}}}").providers["openai"].price
    assert price is not None
    schedule = price_of(price)
    flex = schedule.in_service_tier("flex")
    assert flex is not None
    assert (flex.base.image, flex.base.request) == (0, schedule.base.request)


def rules(text: str) -> tuple[Any, ...]:
    return tiers(parse(f"tiers: {{a: {text}}}", "my.yaml"))["a"].rules


def test_a_tier_that_says_nothing_has_requests_and_streams() -> None:
    requests, streams = rules("{}")
    assert requests == BucketRule(unit=Unit.REQUESTS, limit=600, period_ms=60_000, burst=600)
    assert streams == SlotsRule(max=100)


def test_there_is_always_a_default_tier() -> None:
    assert set(tiers(parse("", "my.yaml"))) == {"default"}
    assert tiers(parse("tiers: {default: {concurrent_streams: 3}}", "my.yaml"))["default"].rules[1] == SlotsRule(max=3)


@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        (
            "{per: key, tokens: 9, period_s: 0.5, burst: 3}",
            BucketRule(per="key", unit=Unit.TOKENS, limit=9, period_ms=500, burst=3),
        ),
        (
            "{requests: 9, period_s: 0.0001}",
            BucketRule(unit=Unit.REQUESTS, limit=9, period_ms=1, burst=9),
        ),
        (
            "{per: user, requests: 9, window: 90m}",
            WindowRule(per="user", unit=Unit.REQUESTS, limit=9, rolling_ms=5_400_000),
        ),
        (
            "{budget_usd: 1.5, window: 30d, models: ['up/*'], mode: shadow}",
            WindowRule(unit=Unit.MONEY, limit=1_500_000, rolling_ms=30 * 86_400_000, models=("up/*",), is_shadow=True),
        ),
        ("{per: tier, streams: 4}", SlotsRule(per="tier", max=4)),
    ],
)
def test_a_further_limit_becomes_a_rule(limit: str, rule: object) -> None:
    assert rules(f"{{limits: [{limit}]}}")[2] == rule


def test_a_calendar_window_knows_its_time_zone() -> None:
    rule = rules("{limits: [{budget_usd: 20, window: month, timezone: Europe/Berlin}]}")[2]
    assert (rule.rolling_ms, rule.calendar.period) == (0, "month")


def test_limits_that_count_apart_may_stand_beside_each_other() -> None:
    limits = (
        "{requests: 5, period_s: 1}, {per: key, requests: 5}, {requests: 5, mode: shadow}, {requests: 5, models: [a]}, "
        "{requests: 5, window: 1m}, {requests: 5, window: day}, {requests: 5, window: 24h}, {streams: 5}"
    )
    assert len(rules(f"{{limits: [{limits}]}}")) == 10


def test_a_variant_is_its_tier_with_what_it_changes() -> None:
    config = parse(
        "tiers: {default: {requests: {limit: 20}, tokens: {limit: 500}}}\n"
        "experiments: {wider: {tier: default, start: 2026-01-01T00:00:00Z, end: 2026-02-01T00:00:00Z, "
        "variants: {as-is: {share: 50}, wide: {share: 50, requests: {limit: 30}, tokens_per_request: 100}}}}",
        "my.yaml",
    )
    base, found = tiers(config)["default"], variants(config)
    assert found["wider/as-is"].rules == base.rules
    wide = found["wider/wide"]
    assert (wide.name, wide.variant, wide.tokens_per_request) == ("default", "wider/wide", 100)
    assert [rule.limit for rule in wide.rules if isinstance(rule, BucketRule)] == [30, 500]


def test_a_models_capacity_is_rules_of_the_model() -> None:
    text = "models: {a/b: {capacity: {requests_per_minute: 5, tokens_per_minute: 6, streams: 7}}, a/c: {}}"
    assert capacities(parse(text, "my.yaml")) == {
        "a/b": (
            BucketRule(per="model", unit=Unit.REQUESTS, limit=5, period_ms=60_000, burst=5),
            BucketRule(per="model", unit=Unit.TOKENS, limit=6, period_ms=60_000, burst=6),
            SlotsRule(per="model", max=7),
        )
    }


def test_the_shipped_tiers_are_what_they_say() -> None:
    path = Path(__file__).parent.parent / "docker" / "tiers.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "gateway", "config", "check", str(path)], capture_output=True, text=True, check=False
    )
    assert checked.stdout == "The configuration is valid.\n", checked.stderr
    found = tiers(parse(path.read_text(), path.name))
    promised = {"free": (10, 1_000, 1), "pro": (100, 10_000, 3), "enterprise": (1_000, 50_000, 10)}
    for name, (requests, tokens, streams) in promised.items():
        tier = found[name]
        assert tier.rules[:2] == (
            BucketRule(unit=Unit.REQUESTS, limit=requests, period_ms=3_600_000, burst=requests),
            SlotsRule(max=streams),
        )
        assert tier.tokens_per_request == tokens
    assert found["free"].features == {"stream"} and found["enterprise"].features is None
    assert msgspec.structs.replace(found["default"], name="free") == found["free"]
