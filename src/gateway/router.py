"""From a model's name to the targets that may answer, in the order in which they are tried.

A name is an alias from the configuration or ``provider/model``. Nothing here does I/O: ``opening.py`` asks.
"""

import time
from collections.abc import Mapping
from typing import Literal

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.catalogue.book import Catalogue, matches, specificity
from gateway.catalogue.cards import NOTHING_KNOWN, ModelCard, merged
from gateway.catalogue.fitting import prompt_tokens_max
from gateway.metering.prices import PriceBook, PriceSchedule
from gateway.metering.quote import FULL_TOKENS, Terms
from gateway.metering.tokens import tokenizer_of
from gateway.providers.provider import Provider
from gateway.routing.deployments import Deployment, Deployments
from gateway.routing.first_words import HedgeRules
from gateway.routing.mirrors import MirrorRule
from gateway.routing.strategies import Candidate, Pool, StrategyName


class Target(msgspec.Struct, frozen=True):
    """A provider and a model as that provider names it, and what is paid for it on which terms.

    ``tokenizer`` is how its tokens are counted, ``deployment`` what is known of how it does, ``card`` what is known of
    the model. A prompt that has more than ``prompt_tokens_max`` tokens by our count cannot fit. ``hedge`` says when
    another target of its alias is asked as well, ``None`` that none is.
    """

    provider: Provider
    model: str
    terms: Terms
    tokenizer: str
    deployment: Deployment
    card: ModelCard = NOTHING_KNOWN
    prompt_tokens_max: int | None = None
    hedge: HedgeRules | None = None

    @property
    def is_drained(self) -> bool:
        """Whether an answer that nobody waits for is read to its end: more is billed than what was sent."""
        policy = self.provider.hangup.policy
        return policy == "drain" or (policy == "cancel" and self.terms.is_held_full)

    @property
    def name(self) -> str:
        """``provider/model``."""
        return f"{self.provider.name}/{self.model}"


class ModelEntry(msgspec.Struct, frozen=True):
    """A model as ``GET /v1/models`` lists it."""

    id: str
    owned_by: str


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of a model: its targets, how one is chosen, and what overrides its provider's ways.

    ``weights`` are the targets' shares of requests, 1 each where it is empty. ``sticky`` names whose requests all go to
    one target while it is well. ``card`` is what the catalogue is overridden with, ``hedge`` as in ``Target``.
    """

    targets: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    strategy: StrategyName = "priority"
    sticky: Literal["account", "chat"] | None = None
    price: PriceSchedule | None = None
    output_tokens_max: int | None = None
    is_held_full: bool | None = None
    tokenizer: str | None = None
    card: ModelCard = NOTHING_KNOWN
    hedge: HedgeRules | None = None


_NO_OPTIONS = ModelOptions()
_RESOLVED_MAX = 4_096


class Router:
    """Knows every provider and alias."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        models: Mapping[str, ModelOptions],
        prices: PriceBook,
        deployments: Deployments | None = None,
        catalogue: Catalogue | None = None,
        mirrors: Mapping[str, MirrorRule] | None = None,
    ) -> None:
        """``models`` are by name; one with a ``*`` says what the names it stands for leave unsaid.

        ``mirrors`` are by the name that clients ask for.
        """
        self.mirrors = dict(mirrors or {})
        self.deployments = deployments or Deployments()
        self._providers = dict(providers)
        self._models = dict(models)
        self._patterns = sorted((name for name in models if "*" in name), key=specificity)
        self._catalogue = catalogue or Catalogue()
        self._aliases = {name: options.targets for name, options in models.items() if options.targets}
        self._prices = prices
        self._resolved: dict[tuple[str, bool], tuple[Target, ...]] = {}
        self._pools: dict[tuple[str, bool], Pool] = {}

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Every provider by its name."""
        return self._providers

    def resolve(self, model: str, *, reasons: bool = False) -> tuple[Target, ...]:
        """The targets of a name, in the order they are tried; raises ``RequestError`` where there is none.

        ``reasons`` says that the request asks for reasoning.
        """
        known = self._resolved.get((model, reasons))
        if known is None:
            names = self._aliases.get(model, (model,))
            known = tuple(self._target(name, model, reasons=reasons) for name in names)
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved.clear()
                self._pools.clear()
            self._resolved[model, reasons] = known
        return known

    def offers(self, model: str) -> bool:
        """Whether a request for this name would find a target."""
        try:
            return bool(self.resolve(model))
        except RequestError:
            return False

    def choose(self, model: str, *, reasons: bool, account: str, chat_id: str) -> tuple[Target, ...]:
        """The few targets that are tried for one request, the first one first; raises as ``resolve`` does."""
        targets = self.resolve(model, reasons=reasons)
        if len(targets) == 1:
            return targets
        options = self._models[model]
        pool = self._pools.get((model, reasons))
        if pool is None:
            weights = options.weights or (1.0,) * len(targets)
            pool = self._pools[model, reasons] = Pool(
                [Candidate(it.deployment, weight, _cost(it)) for it, weight in zip(targets, weights, strict=True)],
                options.strategy,
            )
        who = {"account": account, "chat": chat_id and f"{account}/{chat_id}"}.get(options.sticky or "", "")
        return tuple([targets[number] for number in pool.order(time.monotonic(), who=who)])

    def _target(self, name: str, asked: str, *, reasons: bool) -> Target:
        provider, model = self._provider(name, asked)
        options = self._options(asked, name)
        price = options.price or self._prices.find(provider.name, model, vendor=provider.vendor)
        if price is None:
            raise RequestError(
                f"The model {asked!r} has no price. The operator sets one under models or providers in the "
                "configuration, or allows it with unpriced: free.",
                code=ErrorCode.MODEL_UNPRICED,
                param="model",
            )
        is_full = options.is_held_full
        if is_full is None:
            is_full = provider.holds_full(model, reasons=reasons)
        card = self.card(name, asked)
        output_tokens_max = card.output_tokens_max
        if options.output_tokens_max is None and not (is_full and (output_tokens_max or 0) <= FULL_TOKENS):
            output_tokens_max = None  # what only the catalogue knows lowers a full hold; it neither raises nor bounds
        return Target(
            provider,
            model,
            Terms(price=price, is_held_full=is_full, output_tokens_max=output_tokens_max),
            options.tokenizer or tokenizer_of(model),
            self.deployments.of(name),
            card,
            options.card.context_tokens or prompt_tokens_max(card.context_tokens),
            self._models.get(asked, _NO_OPTIONS).hedge,
        )

    def _provider(self, name: str, asked: str) -> tuple[Provider, str]:
        """The provider of a target, and the model as that names it."""
        provider_name, _, model = name.partition("/")
        provider = self._providers.get(provider_name)
        if provider is None or not model or not provider.knows(model):
            raise RequestError(
                f"There is no model {asked!r} here. GET /v1/models lists what there is; models of a configured "
                "provider are named provider/model.",
                code=ErrorCode.MODEL_NOT_FOUND,
                param="model",
            )
        return provider, model

    def _options(self, asked: str, name: str) -> ModelOptions:
        """What was said of the name that was asked for, of its target, and of all like it; the nearest word counts."""
        patterns = [self._models[pattern] for pattern in self._patterns if matches(name, pattern)]
        options = _NO_OPTIONS
        for nearer in (*patterns, self._models.get(name, _NO_OPTIONS), self._models.get(asked, _NO_OPTIONS)):
            options = ModelOptions(
                price=nearer.price or options.price,
                output_tokens_max=options.output_tokens_max
                if nearer.output_tokens_max is None
                else nearer.output_tokens_max,
                is_held_full=options.is_held_full if nearer.is_held_full is None else nearer.is_held_full,
                tokenizer=nearer.tokenizer or options.tokenizer,
                card=merged(options.card, nearer.card),
            )
        return options

    def targets(self, model: str) -> tuple[str, ...]:
        """What a name stands for, as ``provider/model``; raises ``RequestError`` where that is nothing."""
        names = self._aliases.get(model, (model,))
        for name in names:
            self._provider(name, model)
        return names

    def card(self, name: str, asked: str) -> ModelCard:
        """What is known of a target, ``provider/model``, for those who ask for it by a name."""
        provider, model = self._provider(name, asked)
        options = self._options(asked, name)
        card = merged(self._catalogue.card(provider.name, model, vendor=provider.vendor), options.card)
        if options.output_tokens_max is None:
            return card
        return msgspec.structs.replace(card, output_tokens_max=options.output_tokens_max)

    def known_models(self, provider: Provider) -> list[str]:
        """The models of a provider that the catalogue has a card for, as the provider names them."""
        return self._catalogue.models(provider.vendor)

    def models(self) -> list[ModelEntry]:
        """Every alias and every listed model, sorted."""
        entries = [ModelEntry(alias, "gateway") for alias in self._aliases]
        for provider in self._providers.values():
            entries += [ModelEntry(f"{provider.name}/{model}", provider.name) for model in provider.models]
        return sorted(entries, key=lambda entry: entry.id)


def _cost(target: Target) -> int:
    """What is compared where the cheapest is wanted: three tokens of input and one of output, as chats go."""
    price = target.terms.price.at(0)
    return 3 * price.input + price.output
