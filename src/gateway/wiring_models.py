"""What the configuration says of models, as cards: the catalogue's file, and what overrides it."""

import datetime
from pathlib import Path

from gateway.catalogue.book import Catalogue
from gateway.catalogue.cards import NOTHING_KNOWN, ModelCard
from gateway.catalogue.files import NAME, CatalogueError, read, shipped
from gateway.config import Config, ConfigError, Environment, ModelConfig


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


def check_models(config: Config) -> None:
    """Raises ``ConfigError`` where a pattern says what only a name can."""
    for name, model in config.models.items():
        only_of_names = ("targets", "strategy", "sticky", "capacity")
        if "*" in name and (wrong := [key for key in only_of_names if key in model.model_fields_set]):
            raise ConfigError(f"models.{name}: a pattern takes no {wrong[0]}; name the model")
    catalogue(config)
