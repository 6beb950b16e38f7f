"""A model's card, and the form in which cards are written: one list of entries, each for some names or patterns.

The shipped file, the one ``gateway models refresh`` writes and the one it reads have this form. A field that an entry
leaves out is unknown, and unknown restricts nothing.
"""

import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from gateway.metering.prices import Price, PriceSchedule, picousd, picousd_per_token

Capability: TypeAlias = Literal["tools", "images", "documents", "audio", "reasoning", "json_schema"]
Refusable: TypeAlias = Literal[
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "parallel_tool_calls",
    "reasoning_effort",
]
CAPABILITIES: tuple[Capability, ...] = ("tools", "images", "documents", "audio", "reasoning", "json_schema")

_Tokens = Annotated[int, Meta(ge=1, le=1_000_000_000)]
_USD_MAX = 1_000_000
_Name = Annotated[str, Meta(pattern=r"\A[!-~]+/[!-~]+\Z", max_length=256)]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model; ``None`` for what is not.

    ``context_tokens`` is the longest prompt it takes. ``capabilities`` are all it has. ``refuses`` names parameters
    that it answers with an error. ``source`` says where this is from, ``as_of`` when it was looked up there.
    """

    context_tokens: int | None = None
    output_tokens_max: int | None = None
    capabilities: frozenset[Capability] | None = None
    refuses: frozenset[Refusable] | None = None
    price: PriceSchedule | None = None
    source: str = ""
    as_of: datetime.date | None = None

    def lacks(self, capability: Capability) -> bool:
        """Whether it is known not to have it."""
        return self.capabilities is not None and capability not in self.capabilities


NOTHING_KNOWN = ModelCard()


def merged(card: ModelCard, better: ModelCard) -> ModelCard:
    """What ``better`` knows, and ``card`` where that knows nothing."""
    if better == NOTHING_KNOWN:
        return card
    known = {name: value for name in ModelCard.__struct_fields__ if (value := getattr(better, name)) not in (None, "")}
    return msgspec.structs.replace(card, **known)


class RateEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Prices in USD per million tokens; ``image`` and ``request`` in USD each."""

    input: Decimal
    output: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None
    image: Decimal | None = None
    request: Decimal | None = None

    def __post_init__(self) -> None:
        for name in RateEntry.__struct_fields__:
            usd = getattr(self, name)
            if usd is not None and not (usd.is_finite() and 0 <= usd <= _USD_MAX):
                raise ValueError(f"{name} is no price")


_Rates = TypeVar("_Rates", bound=RateEntry)


class TierEntry(RateEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all tokens of a request cost whose input has at least so many tokens."""

    from_input_tokens: _Tokens


class LongEntry(RateEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Prices of which some may be higher for long prompts."""

    tiers: tuple[TierEntry, ...] = ()


class PriceEntry(LongEntry, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model's prices, and those of the vendor's other service tiers; ``ignore`` where each costs the same."""

    service_tiers: dict[str, LongEntry] | Literal["ignore"] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, entry in () if self.service_tiers == "ignore" else self.service_tiers.items():
            if entry.output is None:
                raise ValueError(f"the service tier {name} has no price for output")


class CardEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Facts about the models of some names, ``vendor/model``; a ``*`` stands for anything."""

    models: Annotated[tuple[_Name, ...], Meta(min_length=1)]
    context_tokens: _Tokens | None = None
    output_tokens_max: _Tokens | None = None
    capabilities: tuple[Capability, ...] | None = None
    refuses: tuple[Refusable, ...] | None = None
    price: PriceEntry | None = None
    source: str = ""
    as_of: datetime.date | None = None

    def card(self) -> ModelCard:
        """The card of each of its models."""
        return ModelCard(
            context_tokens=self.context_tokens,
            output_tokens_max=self.output_tokens_max,
            capabilities=None if self.capabilities is None else frozenset(self.capabilities),
            refuses=None if self.refuses is None else frozenset(self.refuses),
            price=None if self.price is None else _schedule(self.price),
            source=self.source,
            as_of=self.as_of,
        )


class CardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole file; ``source`` and ``as_of`` are those of entries that name none."""

    cards: tuple[CardEntry, ...]
    source: str = ""
    as_of: datetime.date | None = None


def entries_of(value: Any) -> tuple[CardEntry, ...]:
    """The entries of a file that was read as YAML or JSON; raises ``msgspec.ValidationError``."""
    file = msgspec.convert(value, CardFile)
    return tuple(
        msgspec.structs.replace(entry, source=entry.source or file.source, as_of=entry.as_of or file.as_of)
        for entry in file.cards
    )


def _schedule(entry: LongEntry) -> PriceSchedule:
    tiers = sorted([_complete(tier, entry) for tier in entry.tiers], key=lambda tier: tier.from_input_tokens)
    return PriceSchedule(
        _price(entry),
        tuple((tier.from_input_tokens, _price(tier)) for tier in tiers),
        is_input_only=entry.output is None,
        service_tiers=_service_tiers(entry) if isinstance(entry, PriceEntry) else {},
    )


def _service_tiers(entry: PriceEntry) -> dict[str, PriceSchedule] | None:
    if entry.service_tiers == "ignore":
        return None
    return {name: _schedule(_complete(rates, entry)) for name, rates in entry.service_tiers.items()}


def _complete(rates: _Rates, like: RateEntry) -> _Rates:
    """With what would be free for want of a price."""
    unset = [name for name in ("output", "image", "request") if getattr(rates, name) is None]
    return msgspec.structs.replace(rates, **{name: getattr(like, name) for name in unset})


def _price(rates: RateEntry) -> Price:
    def rate(usd: Decimal | None) -> int | None:
        return None if usd is None else picousd_per_token(usd)

    return Price(
        input=picousd_per_token(rates.input),
        output=rate(rates.output) or 0,
        cache_read=rate(rates.cache_read),
        cache_write=rate(rates.cache_write),
        reasoning=rate(rates.reasoning),
        image=picousd(rates.image or Decimal(0)),
        request=picousd(rates.request or Decimal(0)),
    )
