"""What a request needs held before it may start, how much more it is given at a time, and how far it may go.

A stream that is metered while it flows needs its input and its first tokens; the rest is held as it comes. Where
tokens are billed that nobody sees (hidden reasoning), or where hanging up saves nothing, the longest answer is held
before the call, and the provider is told the bound that this pays for.
"""

from collections.abc import Iterable

import msgspec

from gateway.metering.prices import PriceSchedule, microusd

# A slice before a stream's own rate is known: what a fast model says in four seconds.
_FIRST_SLICE_TOKENS = 400
# The longest answer that is held for a model whose own bound nobody named. It is sent to the provider, so it has to
# be within what every model that reasons takes: the least is Claude Opus 4's 32,000.
FULL_TOKENS = 32_000
# A full hold that the balance cannot pay is cut down to what it can, but not below an answer of this length.
_FULL_TOKENS_MIN = 256
# Every model takes a bound of this size; a larger one may be more than a model allows, which providers refuse.
_SAFE_BOUND_TOKENS = 4_096


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How one target is paid: its price, whether its longest answer is held, and how long that is, where known."""

    price: PriceSchedule
    is_held_full: bool = False
    output_tokens_max: int | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for, in tokens. ``output`` is per choice, ``None`` where the client set no bound."""

    input: int
    output: int | None
    choices: int = 1
    images: int = 0
    marks_cache: bool = False


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """``least`` and ``most`` are what to hold, in µ$; ``tokens`` what token limits are charged with at first."""

    least: int
    most: int
    is_full: bool
    tokens: int


def quote(wanted: Wanted, targets: Iterable[Terms]) -> Quote:
    """A quote that holds whichever of the targets answers in the end."""
    least = most = 0
    is_full = False
    slice_tokens = _FIRST_SLICE_TOKENS if wanted.output is None else min(wanted.output, _FIRST_SLICE_TOKENS)
    for terms in targets:
        output = slice_tokens
        first = 1
        if terms.is_held_full:
            output = longest(wanted, terms)
            first = min(output, _FULL_TOKENS_MIN)
        is_full = is_full or terms.is_held_full
        least = max(least, _cost(wanted, terms, first))
        most = max(most, _cost(wanted, terms, output))
    return Quote(
        least=least, most=max(least, most), is_full=is_full, tokens=wanted.input + slice_tokens * wanted.choices
    )


def longest(wanted: Wanted, terms: Terms) -> int:
    """The longest answer that is asked for, per choice, where the whole of it is held."""
    known = [bound for bound in (wanted.output, terms.output_tokens_max) if bound is not None]
    return min(known, default=FULL_TOKENS)


def _cost(wanted: Wanted, terms: Terms, output: int) -> int:
    price = terms.price.at(wanted.input)
    return microusd(_input_picousd(wanted, terms) + output * wanted.choices * price.dearest_output)


def _input_picousd(wanted: Wanted, terms: Terms) -> int:
    price = terms.price.at(wanted.input)
    dearest = price.dearest_input if wanted.marks_cache else price.input
    return price.request + wanted.input * dearest + wanted.images * price.image


def cost_max(wanted: Wanted, terms: Terms, bound: int | None) -> int | None:
    """What a request can cost at most, in µ$, where a bound on its output was sent; input as far as it was counted."""
    return None if bound is None else _cost(wanted, terms, bound)


def bound(wanted: Wanted, terms: Terms, payable: int, tokens_max: int | None) -> int | None:
    """The bound on output tokens per choice to send to the provider, or ``None`` to leave it to the request.

    ``payable`` is what the account could pay for this request, in µ$; ``tokens_max`` what its tier allows a request,
    input and output together. At least 1.
    """
    price = terms.price.at(wanted.input).dearest_output
    is_full = terms.is_held_full and price > 0  # for what costs nothing, nothing is held
    allowed: list[int] = []
    if price:
        allowed.append((payable * 1_000_000 - _input_picousd(wanted, terms)) // (price * wanted.choices))
    if is_full:
        allowed.append(longest(wanted, terms))
    if tokens_max is not None:
        allowed.append((tokens_max - wanted.input) // wanted.choices)
    if not allowed:
        return None
    affordable = max(1, min(allowed))
    if wanted.output is not None:
        return affordable if affordable < wanted.output else None
    if terms.output_tokens_max is not None:
        return affordable if affordable < terms.output_tokens_max or is_full else None
    return affordable if affordable <= _SAFE_BOUND_TOKENS or is_full else None
