"""From a model's name to a stream that has begun.

A name is an alias from the configuration or ``provider/model``. Targets are tried in order; another attempt is made
only while nothing has reached the client, so a text is never duplicated. Choosing is a pure function over names; only
``open`` does I/O.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec

from gateway.canonical.errors import ErrorCode, ProviderError, ProviderTimeout, RequestError, StreamTruncated
from gateway.canonical.events import Batch, Failure, MessageStart, UsageReport
from gateway.canonical.request import Request
from gateway.metering.prices import PriceBook, PriceSchedule
from gateway.metering.quote import Terms
from gateway.metering.tokens import tokenizer_of
from gateway.providers.provider import Call, Provider


class Target(msgspec.Struct, frozen=True):
    """A provider and a model as that provider names it, and what is paid for it on which terms.

    ``tokenizer`` is how its tokens are counted.
    """

    provider: Provider
    model: str
    terms: Terms
    tokenizer: str

    @property
    def is_drained(self) -> bool:
        """Whether an answer that nobody waits for is read to its end: more is billed than what was sent."""
        policy = self.provider.hangup.policy
        return policy == "drain" or (policy == "cancel" and self.terms.is_held_full)

    @property
    def name(self) -> str:
        """``provider/model``."""
        return f"{self.provider.name}/{self.model}"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try that failed before anything was shown."""

    target: str
    code: str
    status: int | None


class Calls(msgspec.Struct):
    """What was asked of providers for one request: the tries that failed, and the one that is on its way.

    Once nobody waits for the answer any more (``is_abandoned``) no further one is asked.
    """

    failed: list[Attempt] = []
    current: Target | None = None
    is_abandoned: bool = False

    @property
    def target_name(self) -> str:
        """The target that answers or was tried last, ``""`` where none was."""
        if self.current is not None:
            return self.current.name
        return self.failed[-1].target if self.failed else ""


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that has begun: its first batch, and where the rest comes from. Close ``batches`` whatever happens."""

    target: Target
    first: Batch
    batches: AsyncGenerator[Batch, None]


class ModelEntry(msgspec.Struct, frozen=True):
    """A model as ``GET /v1/models`` lists it."""

    id: str
    owned_by: str


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of a model: its targets in order, and what overrides its provider's ways."""

    targets: tuple[str, ...] = ()
    price: PriceSchedule | None = None
    output_tokens_max: int | None = None
    is_held_full: bool | None = None
    tokenizer: str | None = None


_NO_OPTIONS = ModelOptions()
_RESOLVED_MAX = 4_096


class Router:
    """Knows every provider and alias."""

    def __init__(self, providers: Mapping[str, Provider], models: Mapping[str, ModelOptions], prices: PriceBook):
        self._providers = dict(providers)
        self._models = dict(models)
        self._aliases = {name: options.targets for name, options in models.items() if options.targets}
        self._prices = prices
        self._resolved: dict[tuple[str, bool], tuple[Target, ...]] = {}

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
            self._resolved[model, reasons] = known
        return known

    def _target(self, name: str, asked: str, *, reasons: bool) -> Target:
        provider_name, _, model = name.partition("/")
        provider = self._providers.get(provider_name)
        if provider is None or not model or not provider.knows(model):
            raise RequestError(
                f"There is no model {asked!r} here. GET /v1/models lists what there is; models of a configured "
                "provider are named provider/model.",
                code=ErrorCode.MODEL_NOT_FOUND,
                param="model",
            )
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
        terms = Terms(price=price, is_held_full=is_full, output_tokens_max=options.output_tokens_max)
        return Target(provider, model, terms, options.tokenizer or tokenizer_of(model))

    def _options(self, asked: str, name: str) -> ModelOptions:
        """What was said of the name that was asked for, and of its target where that said nothing."""
        own, its = self._models.get(asked, _NO_OPTIONS), self._models.get(name, _NO_OPTIONS)
        return ModelOptions(
            price=own.price or its.price,
            output_tokens_max=its.output_tokens_max if own.output_tokens_max is None else own.output_tokens_max,
            is_held_full=its.is_held_full if own.is_held_full is None else own.is_held_full,
            tokenizer=own.tokenizer or its.tokenizer,
        )

    def models(self) -> list[ModelEntry]:
        """Every alias and every listed model, sorted."""
        entries = [ModelEntry(alias, "gateway") for alias in self._aliases]
        for provider in self._providers.values():
            entries += [ModelEntry(f"{provider.name}/{model}", provider.name) for model in provider.models]
        return sorted(entries, key=lambda entry: entry.id)

    async def open(self, asks: Sequence[tuple[Target, Request]], calls: Calls) -> Upstream:
        """The first target that begins to answer, each asked in its own terms; ``calls`` is kept up to date meanwhile.

        Raises the last target's ``ProviderError``, or ``RequestError`` for what a target cannot take.
        """
        for number, (target, request) in enumerate(asks, 1):
            calls.current = target
            try:
                return await _begin(request, target)
            except ProviderError as error:
                calls.current = None
                calls.failed.append(Attempt(target=target.name, code=error.code.value, status=error.status))
                if number == len(asks) or not error.retryable or calls.is_abandoned:
                    raise
        raise AssertionError("a name resolves to at least one target")


async def _begin(request: Request, target: Target) -> Upstream:
    """Call one target and wait for its first event; what fails before that is raised, and the call is closed."""
    provider = target.provider
    batches = provider.stream(Call(request, target.model))
    try:
        async with asyncio.timeout(provider.timeouts.first_event_s):
            first = await _first_batch(batches)
    except StopAsyncIteration:
        raise StreamTruncated("The provider's stream ended before it began.", provider=provider.name) from None
    except TimeoutError:
        await batches.aclose()
        raise ProviderTimeout("The provider did not begin to answer in time.", provider=provider.name) from None
    except BaseException:
        await batches.aclose()
        raise
    return Upstream(target=target, first=first, batches=batches)


async def _first_batch(batches: AsyncGenerator[Batch, None]) -> Batch:
    while True:  # a provider may send comments while it thinks; the caller's timeout bounds that
        batch = await anext(batches)
        if batch.frames:
            failure = _early_failure(batch)
            if failure is not None:
                raise failure.error
            return batch
        if batch.is_last:
            return batch


def _early_failure(batch: Batch) -> Failure | None:
    """A failure before which the model said nothing: another target may still be asked."""
    for frame in batch.frames:
        for event in frame.events:
            if isinstance(event, Failure):
                return event
            if not isinstance(event, MessageStart | UsageReport):
                return None
    return None
