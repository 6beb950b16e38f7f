"""What a request needs held before it may start, and how much more it is given at a time."""

from collections.abc import Iterable

import msgspec

from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.metering.prices import PriceSchedule, microusd

# A slice before a stream's own rate is known: what a fast model says in four seconds.
_FIRST_SLICE_TOKENS = 400


class Quote(msgspec.Struct, frozen=True):
    """Amounts in µ$. ``hold_min`` pays for the input and one token of output, ``slice`` for some seconds of output."""

    hold_min: int
    slice: int


def quote(request: Request, input_tokens: int, schedules: Iterable[PriceSchedule]) -> Quote:
    """A quote that holds whichever of the targets answers in the end."""
    prices = [schedule.at(input_tokens) for schedule in schedules]
    tokens = _FIRST_SLICE_TOKENS * request.choices
    if request.output_tokens_max is not None:
        tokens = min(tokens, request.output_tokens_max * request.choices)
    reading = Usage(input=input_tokens)
    return Quote(
        hold_min=max(microusd(price.cost_picousd(reading) + price.output) for price in prices),
        slice=max(microusd(tokens * price.output) for price in prices),
    )
