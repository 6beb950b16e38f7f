"""Prices: what the operator wrote, else what a renewed list says, else the price book's, else the model has none.

The price book is the data that ships with the ``genai-prices`` package; nothing is fetched at run time.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

import msgspec
from genai_prices import data_snapshot
from genai_prices.types import ModelPrice, Tier, TieredPrices

from gateway.canonical.usage import Usage

_PICOUSD_PER_MICROUSD = 1_000_000
_MICROUSD_PER_USD = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Pico-USD (10⁻¹² USD) per token of each kind, per picture of the input (``image``) and per request.

    ``None`` for a kind means that it costs what ordinary input (or output, for reasoning) costs.
    """

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    image: int = 0
    request: int = 0

    @property
    def dearest_output(self) -> int:
        """What a token of output can cost at most, whatever it turns out to be."""
        output, reasoning = self.output, self.reasoning
        return output if reasoning is None or reasoning < output else reasoning

    @property
    def dearest_input(self) -> int:
        """What a token of input can cost at most."""
        return max(self.input, self.cache_read or 0, self.cache_write or 0)

    def cost_picousd(self, usage: Usage) -> int:
        """What this usage costs, exactly; pictures are counted elsewhere."""
        said = max(usage.output - usage.reasoning, 0)
        return (
            self.reading_picousd(usage.input, usage.cache_read, usage.cache_write)
            + said * self.output
            + usage.reasoning * (self.output if self.reasoning is None else self.reasoning)
        )

    def reading_picousd(self, tokens: int, cache_read: int = 0, cache_write: int = 0) -> int:
        """What an input of so many tokens costs, with those among them that a cache had or was given."""
        if not (cache_read or cache_write):
            return self.request + tokens * self.input
        return (
            self.request
            + max(tokens - cache_read - cache_write, 0) * self.input
            + cache_read * (self.input if self.cache_read is None else self.cache_read)
            + cache_write * (self.input if self.cache_write is None else self.cache_write)
        )


class PriceSchedule(msgspec.Struct, frozen=True):
    """A model's prices; some charge all tokens of a long prompt more.

    ``tiers`` lists (input tokens from which it applies, price), ascending. ``is_input_only`` says that nobody named a
    price for output: fit for embeddings, and for nothing that writes. ``service_tiers`` has the prices of the vendor's
    other tiers by their names; ``None`` means that each costs the same.
    """

    base: Price
    tiers: tuple[tuple[int, Price], ...] = ()
    is_input_only: bool = False
    service_tiers: "Mapping[str, PriceSchedule] | None" = {}

    def at(self, input_tokens: int) -> Price:
        """The price of a request with this much input."""
        price = self.base
        for start, tier in self.tiers:
            if input_tokens >= start:
                price = tier
        return price

    def in_service_tier(self, name: str) -> "PriceSchedule | None":
        """The prices in one of the vendor's service tiers, ``None`` where nobody named them."""
        return self if self.service_tiers is None else self.service_tiers.get(name)


FREE = PriceSchedule(Price(input=0, output=0), service_tiers=None)


def microusd(picousd: int) -> int:
    """Pico-USD as micro-USD, rounded up: the one rounding of a stream."""
    return -(-picousd // _PICOUSD_PER_MICROUSD)


def picousd_per_token(usd_per_million: Decimal) -> int:
    """USD per million tokens as pico-USD per token, rounded up below the sixth decimal place."""
    return int((usd_per_million * 1_000_000).to_integral_value(ROUND_CEILING))


def picousd(usd: Decimal) -> int:
    """USD as pico-USD, rounded up."""
    return int((usd * 1_000_000_000_000).to_integral_value(ROUND_CEILING))


def usd_string(amount_microusd: int) -> str:
    """Micro-USD as a decimal string with six places, e.g. ``"12.345678"``."""
    sign = "-" if amount_microusd < 0 else ""
    whole, fraction = divmod(abs(amount_microusd), _MICROUSD_PER_USD)
    return f"{sign}{whole}.{fraction:06d}"


def microusd_of(amount_usd: Decimal) -> int:
    """A decimal amount in USD as micro-USD; raises ``ValueError`` where it has more than six decimal places."""
    amount = amount_usd * _MICROUSD_PER_USD
    if not amount.is_finite() or amount != amount.to_integral_value():
        raise ValueError("amounts have at most six decimal places")
    return int(amount)


class PriceBook:
    """Looks a model's price up: the operator's word first, the shipped book second."""

    def __init__(
        self,
        own: Mapping[str, PriceSchedule],
        *,
        free_if_unpriced: bool = False,
        everything: PriceSchedule | None = None,
        renewed: Callable[[str, str], PriceSchedule | None] | None = None,
    ) -> None:
        """``own`` maps ``provider/model`` or ``provider/*`` to a price; ``everything`` is the price of all there is.

        ``renewed`` is asked for a vendor's model before the book.
        """
        self._own = dict(own)
        self._everything = everything
        self._renewed = renewed
        self._free_if_unpriced = free_if_unpriced
        self._found: dict[tuple[str, str], PriceSchedule | None] = {}

    def find(self, provider: str, model: str, *, vendor: str | None = None) -> PriceSchedule | None:
        """The price of a provider's model, or ``None``; ``vendor`` is the book's name for the provider."""
        if self._everything is not None:
            return self._everything
        own = self._own.get(f"{provider}/{model}") or self._own.get(f"{provider}/*")
        if own is not None:
            return own
        key = (vendor or provider, model)
        if key not in self._found:
            if len(self._found) >= 4096:
                self._found.clear()
            renewed = self._renewed(*key) if self._renewed is not None else None
            self._found[key] = renewed or _from_book(*key)
        return self._found[key] or (FREE if self._free_if_unpriced else None)


def _from_book(vendor: str, model: str) -> PriceSchedule | None:
    try:
        _, found = data_snapshot.get_snapshot().find_provider_model(model, None, vendor, None)
    except LookupError:
        return None
    prices = found.get_prices(datetime.now(tz=UTC))
    if prices.input_mtok is None:
        return None
    starts = sorted({tier.start for kind in _KINDS for tier in _tiers(getattr(prices, kind))})
    # The book's tiers apply beyond their start, ours from theirs on.
    tiers = tuple((start + 1, _price_at(prices, start + 1)) for start in starts)
    return PriceSchedule(_price_at(prices, 0), tiers, is_input_only=prices.output_mtok is None)


_KINDS = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "output_reasoning_mtok")


def _tiers(price: object) -> list[Tier]:
    return list(price.tiers) if isinstance(price, TieredPrices) else []


def _price_at(prices: ModelPrice, input_tokens: int) -> Price:
    rates: list[int | None] = []
    for kind in _KINDS:
        rate = getattr(prices, kind)
        if isinstance(rate, TieredPrices):
            applicable = [tier.price for tier in rate.tiers if input_tokens > tier.start]
            rate = applicable[-1] if applicable else rate.base
        rates.append(None if rate is None else picousd_per_token(rate))
    per_thousand = prices.requests_kcount
    return Price(
        input=rates[0] or 0,
        output=rates[1] or 0,
        cache_read=rates[2],
        cache_write=rates[3],
        reasoning=rates[4],
        request=picousd(per_thousand / 1000) if isinstance(per_thousand, Decimal) else 0,
    )
