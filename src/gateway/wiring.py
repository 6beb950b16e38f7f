"""From configuration to objects: providers, prices, tiers, issuers. The pure half of the composition root.

A mistake that only shows when a value is put to use is found here, and told as a ``ConfigError``.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from gateway.catalogue.book import Catalogue
from gateway.config import (
    BuiltInType,
    CapacityConfig,
    Config,
    ConfigError,
    JwtConfig,
    LimitConfig,
    ModelConfig,
    ProviderConfig,
    RoutingConfig,
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
from gateway.metering.prices import FREE, Price, PriceBook, PriceSchedule
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole
from gateway.providers.azure import Azure, build_azure
from gateway.providers.azure_chat import AzureChatClient
from gateway.providers.demo import DemoProvider
from gateway.providers.endpoint import Endpoint, Unseen, build_endpoint
from gateway.providers.http_provider import HttpProvider
from gateway.providers.plugins import Overrides, PluginError, build_plugin, offered
from gateway.providers.provider import Hangup, Provider, Timeouts
from gateway.providers.quirky_chat import QuirkyChatClient
from gateway.providers.rows import ROWS, Row
from gateway.providers.transport import Transport
from gateway.providers.vertex import KINDS, Google, VertexAnthropicClient, build_vertex
from gateway.router import ModelOptions, Router
from gateway.routing.breaker import BreakerRules
from gateway.routing.deployments import DeploymentRules, Deployments
from gateway.routing.retries import RetryRules
from gateway.wiring_models import card_of, catalogue, check_mirrors, check_models, hedge_of, mirrors, price_of
from gateway.wiring_watch import check_experiments

_DEMO_PRICE = PriceSchedule(Price(input=150_000, output=600_000))
_DEMO_EMBEDDINGS_PRICE = PriceSchedule(Price(input=20_000, output=0))
_FORMATS: dict[str, Callable[[], ClientRole]] = {
    "openai": OpenAiChatClient,
    "azure": AzureChatClient,
    "openai_responses": OpenAiResponsesClient,
    "anthropic": AnthropicMessagesClient,
    "gemini": GeminiClient,
    "vertex": GeminiClient,
    "vertex_anthropic": VertexAnthropicClient,
}
_CLOUDS = ("bedrock", "azure", *KINDS)
_BUILT_IN: tuple[str, ...] = get_args(BuiltInType)


def validate(config: Config) -> None:
    """Find what only shows when a configuration is put to use; raises ``ConfigError``."""
    names = {"demo", *configured_providers(config, os.environ)}
    for name, provider in config.providers.items():
        _check_provider(name, provider)
    for alias, model in config.models.items():
        for target in model.targets:
            if target.model.partition("/")[0] not in names:
                raise ConfigError(
                    f"models.{alias}: the target {target.model!r} names no provider; there are "
                    f"{', '.join(sorted(names))} (well-known ones appear when their key is in the environment)"
                )
    check_models(config)
    check_mirrors(config, names)
    if config.jwt is not None:
        _jwt_settings(config.jwt)
    for name, tier in config.tiers.items():
        aliases = {alias for alias, model in config.models.items() if model.targets}
        _check_downgrade(name, tier.flow.downgrade_to, {*aliases, *(f"{provider}/" for provider in names)})
    deployment_capacities(config)
    tiers(config)
    check_experiments(config)
    variants(config)


def _check_downgrade(name: str, model: str | None, known: set[str]) -> None:
    is_known = model in known or (f"{(model or '').partition('/')[0]}/" in known and "*" not in (model or ""))
    if model is not None and not is_known:
        raise ConfigError(
            f"tiers.{name}.flow.downgrade_to: there is no model {model!r}; name an alias or provider/model"
        )


def router(config: Config, transport: Transport, *, before: tuple[Config, Router] | None = None) -> Router:
    """The router over every configured provider and alias.

    Of what was there ``before`` it keeps the providers that stay as they are, and what is known of deployments.
    """
    kept, deployments = _kept(config, before)
    providers: dict[str, Provider] = {"demo": DemoProvider(), **kept}
    for name, provider in configured_providers(config, os.environ).items():
        if name in kept:
            continue
        if _is_plugin(provider):
            providers[name] = _plugin(name, provider)
        else:
            try:
                providers[name] = HttpProvider(_endpoint(name, provider), _client_role(name, provider), transport)
            except ValueError as error:
                raise ConfigError(f"providers.{name}: {error}") from None
    models = {name: _options(model) for name, model in config.models.items()}
    if config.credits == "off":
        models = {name: msgspec.structs.replace(options, price=None) for name, options in models.items()}
    known = catalogue(config)
    deployments = deployments or Deployments(deployment_rules(config.routing))
    return Router(providers, models, _prices(config, known), deployments, known, mirrors(config))


def _kept(config: Config, before: tuple[Config, Router] | None) -> tuple[dict[str, Provider], Deployments | None]:
    if before is None:
        return {}, None
    gone = gone_providers(before[0], config)
    router = before[1]
    return {name: it for name, it in router.providers.items() if name not in gone}, router.deployments


def gone_providers(before: Config, after: Config) -> frozenset[str]:
    """The providers of one configuration that another does not have, or has with other settings."""
    theirs = configured_providers(after, os.environ)
    ours = configured_providers(before, os.environ)
    return frozenset(name for name in {"demo", *ours} if ours.get(name) != theirs.get(name))


def deployment_rules(config: RoutingConfig) -> DeploymentRules:
    """How deployments are treated."""
    return DeploymentRules(
        breaker=BreakerRules(in_a_row=config.failures_in_a_row, share=config.failures_share, pause_s=config.rest_s),
        retries=RetryRules(rounds=config.retries, share=config.retry_share),
    )


def _options(config: ModelConfig) -> ModelOptions:
    return ModelOptions(
        targets=tuple(target.model for target in config.targets),
        weights=tuple(target.weight for target in config.targets),
        strategy=config.strategy,
        sticky=config.sticky,
        price=None if config.price is None else price_of(config.price),
        output_tokens_max=config.output_tokens_max,
        is_held_full=None if config.hold is None else config.hold == "full",
        tokenizer=config.tokenizer,
        card=card_of(config),
        hedge=hedge_of(config),
    )


def configured_providers(config: Config, environment: Mapping[str, str]) -> dict[str, ProviderConfig]:
    """The providers of the configuration, and every well-known one whose key is in the environment."""
    providers = {name: ProviderConfig() for name, row in ROWS.items() if row.key(environment)}
    return {**providers, **config.providers}


def _row(name: str, config: ProviderConfig) -> Row | None:
    """What is known of a provider by its name; of a cloud, by its type."""
    return ROWS.get(name) or (ROWS[config.type] if config.type in _CLOUDS else None)


def _format(name: str, config: ProviderConfig) -> str:
    row = _row(name, config)
    return config.type or (row.type if row is not None else "openai")


def _client_role(name: str, config: ProviderConfig) -> ClientRole:
    style, row = _format(name, config), _row(name, config)
    if style == "openai" and row is not None and row.quirks:
        return QuirkyChatClient(row.quirks)
    if style == "bedrock":
        role: ClientRole = _bedrock("gateway.protocols.bedrock_converse.client").BedrockConverseClient()
        return role
    return _FORMATS[style]()


def _bedrock(module: str) -> Any:
    """A module that needs botocore, which is an extra, and slow to import for those who do not."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"type: bedrock needs {error.name}; install the gateway as gateway[bedrock]") from None


def _located(name: str, config: ProviderConfig) -> Endpoint:
    row = _row(name, config)
    style = _format(name, config)
    base_url = config.base_url or (row.base_url if row is not None else None)
    key = config.api_key or (row.key(os.environ) if row is not None else None)
    vendor = config.price_book or (row.vendor if row is not None else name)
    try:
        if style == "bedrock":
            bedrock = _bedrock("gateway.providers.bedrock")
            aws = bedrock.Aws(**config.aws.model_dump())
            signed: Endpoint = bedrock.build_bedrock(
                name, vendor, aws, base_url=base_url, key=key, environment=os.environ
            )
            return signed
        if style == "azure":
            azure = Azure(**config.azure.model_dump())
            return build_azure(name, vendor, azure, base_url=base_url, key=key, environment=os.environ)
        if style in KINDS:
            if config.api_key:
                raise ConfigError(f"providers.{name}: Vertex AI takes no api_key but an identity; see google")
            google = Google(**config.google.model_dump())
            return build_vertex(name, vendor, google, kind=style, base_url=base_url, environment=os.environ)
    except ValueError as error:
        raise ConfigError(f"providers.{name}: {error}") from None
    if base_url is None:
        raise ConfigError(f"providers.{name}: base_url is missing, and {name} is not a well-known provider")
    return build_endpoint(name, style, base_url=base_url, key=key, vendor=vendor)


def _check_provider(name: str, config: ProviderConfig) -> None:
    if _is_plugin(config):
        _plugin(name, config)
        return
    if config.settings:
        raise ConfigError(
            f"providers.{name}.settings is for types that installed packages bring: {', '.join(offered()) or 'none is'}"
        )
    _endpoint(name, config)


def _is_plugin(config: ProviderConfig) -> bool:
    return config.type is not None and config.type not in _BUILT_IN


def _plugin(name: str, config: ProviderConfig) -> Provider:
    """A provider of another package; what the file says beside ``settings`` stands in place of the plugin's own."""
    said = config.model_fields_set
    for key in ("base_url", "api_key", "aws", "azure", "google"):
        if key in said:
            raise ConfigError(f"providers.{name}.{key} is for built-in types; {config.type} takes its own in settings")
    kind = config.type or ""
    if kind not in (available := offered()):
        known = ", ".join((*_BUILT_IN, *available))
        raise ConfigError(f"providers.{name}.type: there is no type {kind!r}; there are {known}")
    overrides = Overrides(
        vendor=config.price_book,
        models=config.models if "models" in said else None,
        timeouts=Timeouts(**config.timeouts.model_dump()) if "timeouts" in said else None,
        hangup=_hangup(config) if said & {"on_disconnect", "disconnect_charge", "drain_s"} else None,
        is_held_full=None if config.hold is None else config.hold == "full",
    )
    try:
        return build_plugin(name, kind, config.settings, overrides)
    except PluginError as error:
        raise ConfigError(f"providers.{name}: {error}") from error


def _hangup(config: ProviderConfig) -> Hangup:
    return Hangup(
        policy=config.on_disconnect,
        charge_delivered=config.disconnect_charge == "delivered",
        drain_s=config.drain_s,
    )


def _endpoint(name: str, config: ProviderConfig) -> Endpoint:
    row = _row(name, config)
    endpoint = _located(name, config)
    hangup = _hangup(config)
    unseen = Unseen() if row is None else Unseen(models=row.unseen, if_asked=row.unseen_if_asked)
    if config.hold is not None:
        unseen = Unseen(always=config.hold == "full")
    timeouts = Timeouts(**config.timeouts.model_dump())
    return msgspec.structs.replace(endpoint, timeouts=timeouts, models=config.models, hangup=hangup, unseen=unseen)


def _prices(config: Config, known: Catalogue) -> PriceBook:
    if config.credits == "off":
        return PriceBook({}, everything=FREE)
    own: dict[str, PriceSchedule] = {"demo/*": _DEMO_PRICE, "demo/embed": _DEMO_EMBEDDINGS_PRICE}
    for name, provider in config.providers.items():
        if provider.price is not None:
            own[f"{name}/*"] = price_of(provider.price)
    return PriceBook(own, free_if_unpriced=config.unpriced == "free", renewed=known.price)


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


def deployment_capacities(config: Config) -> dict[str, tuple[Rule, ...]]:
    """What all gateways together may ask of a deployment, by ``provider/model``; raises ``ConfigError``."""
    found: dict[str, tuple[Rule, ...]] = {}
    for alias, model in config.models.items():
        for target in model.targets:
            if target.capacity is None:
                continue
            rules = _capacity(target.capacity)
            if found.setdefault(target.model, rules) != rules:
                raise ConfigError(f"models.{alias}: the capacity of {target.model!r} is another one elsewhere")
    return {name: rules for name, rules in found.items() if rules}


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
