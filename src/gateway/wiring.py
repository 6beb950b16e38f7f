"""From configuration to objects: providers, prices, tiers, issuers. The pure half of the composition root.

A mistake that only shows when a value is put to use is found here, and told as a ``ConfigError``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from gateway.config import (
    CapacityConfig,
    Config,
    ConfigError,
    JwtConfig,
    LimitConfig,
    ModelConfig,
    PriceConfig,
    ProviderConfig,
    TierConfig,
    VariantConfig,
)
from gateway.entitlements import DEFAULT_TIER
from gateway.identity.jwks import KeySet
from gateway.identity.jwt import JwtSettings, JwtVerifier
from gateway.limits.allowances import Unit
from gateway.limits.calendar import Calendar
from gateway.limits.features import FEATURES
from gateway.limits.tiers import BucketRule, FlowLimits, Rule, SlotsRule, Tier, WindowRule
from gateway.metering.prices import FREE, Price, PriceBook, PriceSchedule, picousd, picousd_per_token
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.wire import ClientRole
from gateway.providers.demo import DemoProvider
from gateway.providers.endpoint import Endpoint, Unseen, build_endpoint
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Hangup, Provider, Timeouts
from gateway.providers.rows import ROWS
from gateway.providers.transport import Transport
from gateway.router import ModelOptions, Router
from gateway.wiring_watch import check_experiments

_DEMO_PRICE = PriceSchedule(Price(input=150_000, output=600_000))
_DEMO_EMBEDDINGS_PRICE = PriceSchedule(Price(input=20_000, output=0))
_FORMATS: dict[str, Callable[[], ClientRole]] = {"openai": OpenAiChatClient, "anthropic": AnthropicMessagesClient}


def validate(config: Config) -> None:
    """Find what only shows when a configuration is put to use; raises ``ConfigError``."""
    names = {"demo", *configured_providers(config, os.environ)}
    for name, provider in config.providers.items():
        _endpoint(name, provider)
    for alias, model in config.models.items():
        for target in model.targets:
            if target.partition("/")[0] not in names:
                raise ConfigError(
                    f"models.{alias}: the target {target!r} names no provider; there are {', '.join(sorted(names))} "
                    "(well-known ones appear when their key is in the environment)"
                )
    if config.jwt is not None:
        _jwt_settings(config.jwt)
    for name, tier in config.tiers.items():
        _check_downgrade(name, tier.flow.downgrade_to, {*config.models, *(f"{provider}/" for provider in names)})
    tiers(config)
    check_experiments(config)
    variants(config)


def _check_downgrade(name: str, model: str | None, known: set[str]) -> None:
    if model is not None and model not in known and f"{model.partition('/')[0]}/" not in known:
        raise ConfigError(
            f"tiers.{name}.flow.downgrade_to: there is no model {model!r}; name an alias or provider/model"
        )


def router(config: Config, transport: Transport) -> Router:
    """The router over every configured provider and alias."""
    providers: dict[str, Provider] = {"demo": DemoProvider()}
    for name, provider in configured_providers(config, os.environ).items():
        providers[name] = HttpProvider(_endpoint(name, provider), _FORMATS[_format(name, provider)](), transport)
    models = {name: _options(model) for name, model in config.models.items()}
    if config.credits == "off":
        models = {name: msgspec.structs.replace(options, price=None) for name, options in models.items()}
    return Router(providers, models, _prices(config))


def _options(config: ModelConfig) -> ModelOptions:
    return ModelOptions(
        targets=config.targets,
        price=None if config.price is None else _price(config.price),
        output_tokens_max=config.output_tokens_max,
        is_held_full=None if config.hold is None else config.hold == "full",
        tokenizer=config.tokenizer,
    )


def configured_providers(config: Config, environment: Mapping[str, str]) -> dict[str, ProviderConfig]:
    """The providers of the configuration, and every well-known one whose key is in the environment."""
    providers = {
        name: ProviderConfig() for name, row in ROWS.items() if row.key_env is not None and environment.get(row.key_env)
    }
    return {**providers, **config.providers}


def _format(name: str, config: ProviderConfig) -> str:
    row = ROWS.get(name)
    return config.type or (row.type if row is not None else "openai")


def _endpoint(name: str, config: ProviderConfig) -> Endpoint:
    row = ROWS.get(name)
    base_url = config.base_url or (row.base_url if row is not None else None)
    if base_url is None:
        raise ConfigError(f"providers.{name}: base_url is missing, and {name} is not a well-known provider")
    endpoint = build_endpoint(
        name,
        _format(name, config),
        base_url=base_url,
        key=config.api_key or (os.environ.get(row.key_env) if row is not None and row.key_env else None),
        vendor=config.price_book or (row.vendor if row is not None else name),
    )
    hangup = Hangup(
        policy=config.on_disconnect,
        charge_delivered=config.disconnect_charge == "delivered",
        drain_s=config.drain_s,
    )
    unseen = Unseen() if row is None else Unseen(models=row.unseen, if_asked=row.unseen_if_asked)
    if config.hold is not None:
        unseen = Unseen(always=config.hold == "full")
    timeouts = Timeouts(**config.timeouts.model_dump())
    return msgspec.structs.replace(endpoint, timeouts=timeouts, models=config.models, hangup=hangup, unseen=unseen)


def _prices(config: Config) -> PriceBook:
    if config.credits == "off":
        return PriceBook({}, everything=FREE)
    own: dict[str, PriceSchedule] = {"demo/*": _DEMO_PRICE, "demo/embed": _DEMO_EMBEDDINGS_PRICE}
    for name, provider in config.providers.items():
        if provider.price is not None:
            own[f"{name}/*"] = _price(provider.price)
    return PriceBook(own, free_if_unpriced=config.unpriced == "free")


def _price(config: PriceConfig) -> PriceSchedule:
    def rate(usd: Decimal | None) -> int | None:
        return None if usd is None else picousd_per_token(usd)

    return PriceSchedule(
        Price(
            input=picousd_per_token(config.input),
            output=picousd_per_token(config.output),
            cache_read=rate(config.cache_read),
            cache_write=rate(config.cache_write),
            reasoning=rate(config.reasoning),
            image=picousd(config.image),
            request=picousd(config.request),
        )
    )


def tiers(config: Config) -> dict[str, Tier]:
    """Every tier by name, the default one included; raises ``ConfigError``."""
    configured = {DEFAULT_TIER: TierConfig(), **config.tiers}
    return {name: _tier(name, tier) for name, tier in configured.items()}


def variants(config: Config) -> dict[str, Tier]:
    """The tiers as experiments change them, by ``experiment/variant``."""
    found = {}
    for name, experiment in config.experiments.items():
        base = config.tiers.get(experiment.tier) or TierConfig()
        for arm, variant in experiment.variants.items():
            tier = _tier(experiment.tier, base.model_copy(update=_changes(variant)))
            found[f"{name}/{arm}"] = msgspec.structs.replace(tier, variant=f"{name}/{arm}")
    return found


def _changes(variant: VariantConfig) -> dict[str, object]:
    return {name: value for name in type(variant).model_fields if name != "share" if (value := getattr(variant, name))}


def capacities(config: Config) -> dict[str, tuple[Rule, ...]]:
    """What all accounts together may ask of a model, by its name."""
    return {name: _capacity(model.capacity) for name, model in config.models.items() if model.capacity is not None}


def _capacity(config: CapacityConfig) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for unit, limit in ((Unit.REQUESTS, config.requests_per_minute), (Unit.TOKENS, config.tokens_per_minute)):
        if limit is not None:
            rules.append(BucketRule(per="model", unit=unit, limit=limit, period_ms=60_000, burst=limit))
    if config.streams is not None:
        rules.append(SlotsRule(per="model", max=config.streams))
    return tuple(rules)


def _tier(name: str, config: TierConfig) -> Tier:
    rules: list[Rule] = []
    for unit, rate in ((Unit.REQUESTS, config.requests), (Unit.TOKENS, config.tokens)):
        if rate is not None:
            rules.append(
                BucketRule(
                    unit=unit, limit=rate.limit, period_ms=_period_ms(rate.period_s), burst=rate.burst or rate.limit
                )
            )
    rules.append(SlotsRule(max=config.concurrent_streams))
    for number, limit in enumerate(config.limits):
        where = f"tiers.{name}.limits.{number}"
        rule = _rule(where, limit)
        if not isinstance(rule, SlotsRule) and any(_counts_of(other) == _counts_of(rule) for other in rules):
            raise ConfigError(f"{where}: the tier has a limit already that counts the same over the same period")
        rules.append(rule)
    _check_features(name, config.features)
    flow = config.flow
    if "downgrade" in (flow.rate_action, flow.loop_action, flow.identical_action) and flow.downgrade_to is None:
        raise ConfigError(f"tiers.{name}.flow: downgrade needs downgrade_to, the model of the next turns")
    return Tier(
        name=name,
        rules=tuple(rules),
        tokens_per_request=config.tokens_per_request,
        models=config.models,
        features=None if config.features is None else frozenset(config.features),
        endpoints=None if config.endpoints is None else frozenset(config.endpoints),
        strategy=config.strategy,
        flow=FlowLimits(**flow.model_dump()),
    )


def _check_features(name: str, features: Sequence[str] | None) -> None:
    for feature in features or ():
        if feature not in FEATURES:
            raise ConfigError(f"tiers.{name}.features: there is no {feature!r}; there are {', '.join(FEATURES)}")


def _counts_of(rule: Rule) -> tuple[object, ...]:
    """What rates and windows are kept under in Redis: two of one name would count everything twice."""
    match rule:
        case BucketRule():
            counts: tuple[object, ...] = (rule.unit, rule.period_ms)
        case WindowRule():
            counts = (rule.unit, rule.rolling_ms, rule.calendar is not None and rule.calendar.period)
        case _:
            counts = ()
    return (type(rule), rule.per, rule.models, rule.is_shadow, *counts)


def _period_ms(period_s: float) -> int:
    return max(1, round(period_s * 1000))


_WINDOW_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _rule(where: str, config: LimitConfig) -> Rule:
    """One further limit; raises ``ConfigError`` where it counts nothing or two things."""
    counted = {
        Unit.REQUESTS: config.requests,
        Unit.TOKENS: config.tokens,
        Unit.MONEY: None if config.budget_usd is None else int(config.budget_usd * 1_000_000),
    }
    named = [(unit, limit) for unit, limit in counted.items() if limit is not None]
    if len(named) + (config.streams is not None) != 1:
        raise ConfigError(f"{where}: exactly one of requests, tokens, streams and budget_usd says what is counted")
    if config.per == "tier" and (config.window is not None or config.budget_usd is not None):
        raise ConfigError(f"{where}: a limit of the whole tier has no window: use requests, tokens or streams")
    models, is_shadow = config.models, config.mode == "shadow"
    if config.streams is not None:
        return SlotsRule(per=config.per, models=models, is_shadow=is_shadow, max=config.streams)
    unit, limit = named[0]
    if config.window is None:
        if unit is Unit.MONEY:
            raise ConfigError(f"{where}: a budget needs a window, e.g. window: month")
        return BucketRule(
            per=config.per,
            models=models,
            is_shadow=is_shadow,
            unit=unit,
            limit=limit,
            period_ms=_period_ms(config.period_s),
            burst=config.burst or limit,
        )
    is_calendar = config.window in ("day", "week", "month")
    return WindowRule(
        per=config.per,
        models=models,
        is_shadow=is_shadow,
        unit=unit,
        limit=limit,
        rolling_ms=0 if is_calendar else int(config.window[:-1]) * _WINDOW_S[config.window[-1]] * 1000,
        calendar=_calendar(where, config) if is_calendar else None,
    )


def _calendar(where: str, config: LimitConfig) -> Calendar:
    try:
        ZoneInfo(config.timezone)
    except (ValueError, ZoneInfoNotFoundError):
        raise ConfigError(f"{where}.timezone: there is no time zone {config.timezone!r}") from None
    return Calendar(cast(Literal["day", "week", "month"], config.window), config.timezone)


def jwt_verifier(config: JwtConfig) -> JwtVerifier:
    """What checks the tokens of the configured issuer."""
    settings = _jwt_settings(config)
    keys = None
    if settings.jwks_url is not None:
        keys = KeySet(
            settings.jwks_url,
            ttl_s=settings.jwks_ttl_s,
            cooldown_s=settings.jwks_cooldown_s,
            max_age_s=settings.jwks_max_age_s,
        )
    return JwtVerifier(settings, keys)


def _jwt_settings(config: JwtConfig) -> JwtSettings:
    try:
        return JwtSettings(**config.model_dump())
    except ValueError as error:
        raise ConfigError(f"jwt: {error}") from None
