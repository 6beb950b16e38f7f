"""From configuration to objects: providers, prices, tiers, issuers. The pure half of the composition root.

A mistake that only shows when a value is put to use is found here, and told as a ``ConfigError``.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal

import msgspec

from gateway.canonical.caller import Caller
from gateway.config import Config, ConfigError, JwtConfig, PriceConfig, ProviderConfig, TierConfig
from gateway.identity.jwks import KeySet
from gateway.identity.jwt import JwtSettings, JwtVerifier
from gateway.limits.accounts import Accounts
from gateway.limits.admission import Tier
from gateway.limits.redis import StoreUnavailable
from gateway.metering.prices import Price, PriceBook, PriceSchedule, picousd_per_token
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.wire import ClientRole
from gateway.providers.demo import DemoProvider
from gateway.providers.endpoint import Endpoint, build_endpoint
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Provider, Timeouts
from gateway.providers.rows import ROWS
from gateway.providers.transport import Transport
from gateway.router import Router

DEFAULT_TIER = "default"
_DEMO_PRICE = PriceSchedule(Price(input=150_000, output=600_000))
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


def router(config: Config, transport: Transport) -> Router:
    """The router over every configured provider and alias."""
    providers: dict[str, Provider] = {"demo": DemoProvider()}
    for name, provider in configured_providers(config, os.environ).items():
        providers[name] = HttpProvider(_endpoint(name, provider), _FORMATS[_format(name, provider)](), transport)
    return Router(
        providers, {name: model.targets for name, model in config.models.items() if model.targets}, _prices(config)
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
    timeouts = Timeouts(**config.timeouts.model_dump())
    return msgspec.structs.replace(endpoint, timeouts=timeouts, models=config.models)


def _prices(config: Config) -> PriceBook:
    own: dict[str, PriceSchedule] = {"demo/*": _DEMO_PRICE}
    for name, provider in config.providers.items():
        if provider.price is not None:
            own[f"{name}/*"] = _price(provider.price)
    for name, model in config.models.items():
        if model.price is not None:
            for target in model.targets or (name,):
                own[target] = _price(model.price)
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
        )
    )


def tier_lookup(config: Config, accounts: Accounts) -> Callable[[Caller], Awaitable[Tier]]:
    """A caller's tier: the one its token names, else its account's, else the default."""
    tiers = {name: _tier(tier) for name, tier in config.tiers.items()}
    default = tiers.get(DEFAULT_TIER) or _tier(TierConfig())

    async def tier_of(caller: Caller) -> Tier:
        try:
            name = caller.tier or await accounts.tier_of(caller.account)
        except StoreUnavailable:
            name = None  # admission asks Redis next and says what is wrong
        return tiers.get(name or DEFAULT_TIER, default)

    return tier_of


def _tier(config: TierConfig) -> Tier:
    requests = config.requests
    return Tier(
        requests=requests.limit,
        period_ms=int(requests.period_s * 1000),
        burst=requests.burst or requests.limit,
        streams=config.concurrent_streams,
    )


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
