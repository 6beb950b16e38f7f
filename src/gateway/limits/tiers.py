"""Tiers: named sets of rules, and what they come to for one request.

A rule says what is counted, over what, and whose share it is. For a request the rules of its tier become the
``Allowances`` that one script decides about together with the account's money, and the shares of capacity that accounts
have in common, which lie in other slots. Changing a tier changes the next request; nothing running is clawed back.
"""

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import msgspec

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.calendar import Calendar

Scope: TypeAlias = Literal["account", "key", "user", "model", "tier"]

_PARTS = 60
_CACHED_MAX = 20_000
_NEVER = float("inf")


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Root of the rules. ``models`` are patterns; empty for every model. ``is_shadow`` only counts what it refuses."""

    per: Scope = "account"
    models: tuple[str, ...] = ()
    is_shadow: bool = False


class BucketRule(Rule, frozen=True, kw_only=True):
    """So many requests or tokens per period, at most ``burst`` at once."""

    unit: Unit
    limit: int
    period_ms: int
    burst: int


class WindowRule(Rule, frozen=True, kw_only=True):
    """So many requests, tokens or µ$ within a rolling window of ``rolling_ms``, or within a calendar period."""

    unit: Unit
    limit: int
    rolling_ms: int = 0
    calendar: Calendar | None = None


class SlotsRule(Rule, frozen=True, kw_only=True):
    """So many requests at once."""

    max: int


class FlowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a running stream may look like; actions are pace, warn, downgrade and cut."""

    tokens_per_minute: int | None = None
    rate_action: str = "pace"
    loop_action: str = "off"
    identical_prompts: int | None = None
    identical_action: str = "cut"
    downgrade_to: str | None = None
    downgrade_s: float = 600.0


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """What the accounts of one tier may do. ``variant`` names the arm of an experiment that changed it."""

    name: str
    rules: tuple[Rule, ...] = ()
    tokens_per_request: int | None = None
    models: tuple[str, ...] | None = None
    features: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None
    strategy: str = "fixed"
    flow: FlowLimits = FlowLimits()
    variant: str = ""

    def allows_model(self, model: str) -> bool:
        """Whether the tier may use this model name."""
        return self.models is None or _matches(model, self.models)


class Party(msgspec.Struct, frozen=True):
    """Who asks, for which model. ``user`` is the account's own user, ``""`` where the request names none."""

    account: str
    subject: str
    user: str
    model: str


class Limits(msgspec.Struct, frozen=True):
    """What limits one request: its account's own allowances, and (owner, allowances) of what accounts share."""

    own: Allowances
    shared: tuple[tuple[keys.Owner, Allowances], ...]


class Rulebook:
    """Turns a tier's rules into the limits of a request. ``capacities`` are the rules of models, by name."""

    def __init__(self, capacities: dict[str, tuple[Rule, ...]] | None = None) -> None:
        self._capacities = capacities or {}
        self._made: dict[tuple[str, str, int, Party], tuple[float, Limits]] = {}

    def limits(self, tier: Tier, party: Party, permille: int = 1000) -> Limits:
        """The limits of a request; rates and slots are ``permille`` / 1000 of what the tier says."""
        key = (tier.name, tier.variant, permille, party)
        made = self._made.get(key)
        now = time.time()
        if made is not None and now < made[0]:
            return made[1]
        if len(self._made) >= _CACHED_MAX:
            self._made.clear()
        until, limits = self._make(tier, party, permille, now)
        self._made[key] = (until, limits)
        return limits

    def _make(self, tier: Tier, party: Party, permille: int, now: float) -> tuple[float, Limits]:
        rules = [rule for rule in tier.rules if not rule.models or _matches(party.model, rule.models)]
        own = [rule for rule in rules if rule.per != "tier" and (rule.per != "user" or party.user)]
        calendars = [rule.calendar for rule in own if isinstance(rule, WindowRule) and rule.calendar is not None]
        until = min((calendar.next_start(now) for calendar in calendars), default=_NEVER)
        shared = []
        groups = (
            (f"tier.{keys.digest(tier.name)}", [rule for rule in rules if rule.per == "tier"]),
            (f"model.{keys.digest(party.model)}", list(self._capacities.get(party.model, ()))),
        )
        for tag, group in groups:
            if group:
                owner = keys.capacity(tag)
                shared.append((owner, _allowances(owner, group, party, permille, now)))
        owner = keys.limits_of(party.account)
        return until, Limits(_allowances(owner, own, party, permille, now), tuple(shared))


def shared_allowances(owner: keys.Owner, rules: Sequence[Rule]) -> Allowances:
    """The allowances of a capacity that is the same whoever asks."""
    return _allowances(owner, rules, Party("", "", "", ""), 1000, 0)


def with_prompt_limit(allowances: Allowances, account: str, digest: str, limit: int, *, is_shadow: bool) -> Allowances:
    """The same allowances, and a bucket for one prompt: ``limit`` times in ten minutes."""
    bucket = Bucket(f"prompt.{digest}", limit, 600_000, limit, Unit.REQUESTS, is_shadow)
    return Allowances(
        keys.limits_of(account),
        windows=allowances.windows,
        buckets=(*allowances.buckets, bucket),
        slots=allowances.slots,
    )


def _matches(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def _allowances(owner: keys.Owner, rules: Sequence[Rule], party: Party, permille: int, now: float) -> Allowances:
    windows: list[Window] = []
    buckets: list[Bucket] = []
    slots: list[Slots] = []
    for rule in rules:
        scope = _scope(rule, party)
        match rule:
            case WindowRule():
                windows.append(_window(rule, scope, now))
            case BucketRule():
                name = f"{scope}.{_WORDS[rule.unit]}.{rule.period_ms}"
                limit, burst = _scaled(rule.limit, permille), _scaled(rule.burst, permille)
                buckets.append(Bucket(name, limit, rule.period_ms, burst, rule.unit, rule.is_shadow))
            case SlotsRule():
                slots.append(Slots(f"{scope}.streams", _scaled(rule.max, permille), rule.is_shadow))
    return Allowances(owner, windows=windows, buckets=buckets, slots=slots)


_WORDS = {Unit.REQUESTS: "requests", Unit.TOKENS: "tokens", Unit.MONEY: "budget"}


def _scaled(amount: int, permille: int) -> int:
    return max(1, amount * permille // 1000)


def _scope(rule: Rule, party: Party) -> str:
    """The scope as part of a key; what comes from outside only as a digest."""
    whose = {
        "account": "account",
        "key": f"key.{keys.digest(party.subject)}",
        "user": f"user.{keys.digest(party.user)}",
        "model": f"model.{keys.digest(party.model)}",
        "tier": "tier",
    }[rule.per]
    only = f".{keys.digest(' '.join(rule.models))}" if rule.models else ""
    return f"{whose}{only}{'.shadow' if rule.is_shadow else ''}"


def _window(rule: WindowRule, scope: str, now: float) -> Window:
    name = f"{scope}.{_WORDS[rule.unit]}"
    if rule.calendar is not None:
        name = f"{name}.{rule.calendar.period}"
        return Window(name, rule.limit, rule.calendar.bounds(now), rule.unit, rule.is_shadow)
    width = max(1, -(-rule.rolling_ms // _PARTS))
    bounds = (width, -(-rule.rolling_ms // width), 0)
    return Window(f"{name}.{rule.rolling_ms}", rule.limit, bounds, rule.unit, rule.is_shadow)
