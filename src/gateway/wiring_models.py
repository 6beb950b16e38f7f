"""What the configuration says of models: the catalogue's file and what overrides it, and what they cost."""

import datetime
from collections.abc import Container
from decimal import Decimal
from pathlib import Path

from gateway.catalogue.book import Catalogue
from gateway.catalogue.cards import NOTHING_KNOWN, ModelCard
from gateway.catalogue.files import NAME, CatalogueError, read, shipped
from gateway.config import Config, ConfigError, Environment, ModelConfig, PriceConfig
from gateway.config_prices import RatesConfig
from gateway.metering.prices import Price, PriceSchedule, picousd, picousd_per_token
from gateway.routing.first_words import HedgeRules
from gateway.routing.mirrors import MirrorRule
from gateway.service_tiers import ORDINARY


def catalogue_path(config: Config) -> Path:
    """Where the operator's catalogue is, or would be."""
    return config.catalogue or Environment().data_dir / NAME


def catalogue(config: Config) -> Catalogue:
    """The shipped cards and the operator's; raises ``ConfigError`` where those cannot be read."""
    path = catalogue_path(config)
    if config.catalogue is None and not path.exists():
        return Catalogue(shipped())
    try:
        return Catalogue(shipped(), read(path))
    except CatalogueError as error:
        raise ConfigError(f"catalogue: {error}; gateway models refresh writes it") from None


def card_of(config: ModelConfig) -> ModelCard:
    """What a model's configuration says that a card could."""
    said = (config.context_tokens, config.capabilities, config.refuses)
    if said == (None, None, None):
        return NOTHING_KNOWN
    return ModelCard(
        context_tokens=config.context_tokens,
        capabilities=None if config.capabilities is None else frozenset(config.capabilities),
        refuses=None if config.refuses is None else frozenset(config.refuses),
        source="configuration",
        as_of=datetime.datetime.now(tz=datetime.UTC).date(),
    )


def price_of(config: PriceConfig) -> PriceSchedule:
    """A model's or a provider's price."""
    if config.service_tiers == "ignore":
        return PriceSchedule(_rates(config), service_tiers=None)
    each = {"image": config.image, "request": config.request}
    tiers = {
        name: PriceSchedule(_rates(rates.model_copy(update={k: each[k] for k in each.keys() - rates.model_fields_set})))
        for name, rates in config.service_tiers.items()
    }
    return PriceSchedule(_rates(config), service_tiers=tiers)


def _rates(config: RatesConfig) -> Price:
    def rate(usd: Decimal | None) -> int | None:
        return None if usd is None else picousd_per_token(usd)

    return Price(
        input=picousd_per_token(config.input),
        output=picousd_per_token(config.output),
        cache_read=rate(config.cache_read),
        cache_write=rate(config.cache_write),
        reasoning=rate(config.reasoning),
        image=picousd(config.image),
        request=picousd(config.request),
    )


def hedge_of(config: ModelConfig) -> HedgeRules | None:
    """When a second target is asked; ``None`` for never."""
    if config.hedge is None:
        return None
    return HedgeRules(percentile=config.hedge.percentile, at_least_s=config.hedge.at_least_ms / 1000)


def check_models(config: Config) -> None:
    """Raises ``ConfigError`` where a pattern says what only a name can."""
    for name, model in config.models.items():
        only_of_names = ("targets", "strategy", "sticky", "capacity", "mirror", "hedge")
        if "*" in name and (wrong := [key for key in only_of_names if key in model.model_fields_set]):
            raise ConfigError(f"models.{name}: a pattern takes no {wrong[0]}; name the model")
        if model.hedge is not None and len({target.model for target in model.targets}) < 2:
            raise ConfigError(f"models.{name}.hedge: there is no second target to ask; name two")
        _check_tiers(f"models.{name}", model.price)
    for name, provider in config.providers.items():
        _check_tiers(f"providers.{name}", provider.price)
    catalogue(config)


def _check_tiers(section: str, price: PriceConfig | None) -> None:
    if price is None or price.service_tiers == "ignore":
        return
    for name in ORDINARY.intersection(price.service_tiers):
        raise ConfigError(
            f"{section}.price.service_tiers.{name}: {name} costs what the price itself says; put it there"
        )


def check_mirrors(config: Config, providers: Container[str]) -> None:
    """Raises ``ConfigError`` where a mirror leads nowhere, or to a model that has one itself."""
    for name, model in config.models.items():
        if model.mirror is None:
            continue
        to = model.mirror.to
        other, (provider, _, own_name) = config.models.get(to), to.partition("/")
        if not (other and other.targets) and not (own_name and provider in providers):
            raise ConfigError(f"models.{name}.mirror.to: there is no model {to!r}; name an alias or provider/model")
        if other is not None and other.mirror is not None:
            raise ConfigError(f"models.{name}.mirror.to: {to!r} has a mirror itself")


def mirrors(config: Config) -> dict[str, MirrorRule]:
    """The names that have a mirror, each with what is mirrored."""
    models = config.models.items()
    return {name: MirrorRule(**model.mirror.model_dump()) for name, model in models if model.mirror is not None}
