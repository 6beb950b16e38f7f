"""What one stream has cost so far and what its next frame would add. Plain arithmetic: no I/O, no clock."""

import msgspec

from gateway.canonical.events import (
    Frame,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.metering.prices import PriceSchedule, microusd
from gateway.metering.tokens import TokenCounter

# A provider's figure beyond these is not believed; no model reads or writes as much in one exchange.
_INPUT_TOKENS_MAX = 20_000_000
_OUTPUT_TOKENS_MAX = 5_000_000


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a meter. ``estimated`` says that the tokens are our count, not the provider's."""

    usage: Usage
    cost_microusd: int
    estimated: bool


class Meter:
    """Counts what is forwarded. ``input`` and ``output`` are tokens, ``images`` the pictures of the input."""

    __slots__ = (
        "_base_picousd",
        "_count",
        "_output_picousd",
        "_schedule",
        "images",
        "input",
        "output",
        "reported",
        "shows_reasoning",
    )

    def __init__(self, schedule: PriceSchedule, count: TokenCounter, input_tokens: int, images: int = 0) -> None:
        self._schedule = schedule
        self._count = count
        self.images = images
        self.output = 0
        self.shows_reasoning = False
        self.reported: Usage | None = None
        price = schedule.at(input_tokens)
        self.input = input_tokens
        self._output_picousd = price.dearest_output
        self._base_picousd = images * price.image + price.reading_picousd(input_tokens)

    def _set_input(self, usage: Usage) -> None:
        price = self._schedule.at(usage.input)
        self.input = usage.input
        # A reasoning token may be the dearer one, and which is which is only known at the end.
        self._output_picousd = price.dearest_output
        self._base_picousd = self.images * price.image + price.reading_picousd(
            usage.input, usage.cache_read, usage.cache_write
        )

    def weigh_all(self, frames: list[Frame]) -> int:
        """The output tokens that these frames carry."""
        count, tokens = self._count, 0
        for frame in frames:
            tokens += count(frame.events[0].text) if frame.is_plain else self.weigh(frame)  # type: ignore[attr-defined]
        return tokens

    def weigh(self, frame: Frame) -> int:
        """The output tokens that a frame carries."""
        tokens = 0
        for event in frame.events:
            kind = type(event)
            if kind is TextDelta or kind is ReasoningDelta or kind is RefusalDelta:
                text: str = event.text  # type: ignore[attr-defined]
                if text:
                    tokens += self._count(text)
                    self.shows_reasoning = self.shows_reasoning or kind is ReasoningDelta
            elif kind is ToolCallDelta:
                tokens += self._count(event.arguments)  # type: ignore[attr-defined]
            elif kind is ToolCallStart:
                tokens += self._count(event.name)  # type: ignore[attr-defined]
            elif kind is UsageReport:
                self._take_report(event.usage)  # type: ignore[attr-defined]
        return tokens

    def _take_report(self, usage: Usage) -> None:
        if not _is_plausible(usage):
            return
        self.reported = usage
        if usage.input:
            self._set_input(usage)

    def cost_with(self, tokens: int) -> int:
        """What the stream will have cost, in µ$, once ``tokens`` more are forwarded."""
        return -(-(self._base_picousd + (self.output + tokens) * self._output_picousd) // 1_000_000)

    def forwarded(self, tokens: int) -> None:
        """These tokens went to the client."""
        self.output += tokens

    @property
    def tokens(self) -> int:
        """Input and output so far."""
        return self.input + self.output

    @property
    def counted(self) -> Usage:
        """Our own count: the provider's input where it named one, and what was forwarded."""
        known = self.reported
        if known is None:
            return Usage(input=self.input, output=self.output)
        return Usage(input=self.input, output=self.output, cache_read=known.cache_read, cache_write=known.cache_write)

    @property
    def reported_as_sent(self) -> int | None:
        """What the provider says it sent, to compare with our count: without reasoning where it showed none."""
        if self.reported is None or not self._is_whole(self.reported):
            return None
        return self.reported.output - (0 if self.shows_reasoning else self.reported.reasoning)

    def bill(self, *, complete: bool) -> Bill:
        """What the stream cost: by the provider's figure where it ran to its end and reported one, else by ours."""
        if complete and self.reported is not None and self._is_whole(self.reported):
            usage, estimated = self.reported, False
        else:
            usage, estimated = self.counted, True
        price = self._schedule.at(usage.input)
        cost = microusd(price.cost_picousd(usage) + self.images * price.image)
        return Bill(usage=usage, cost_microusd=cost, estimated=estimated)

    def _is_whole(self, reported: Usage) -> bool:
        """Whether a report names both figures: nothing read or nothing said is not believed where we know better."""
        return (reported.input > 0 or not self.input) and (reported.output > 0 or not self.output)


def _is_plausible(usage: Usage) -> bool:
    parts = (usage.input, usage.output, usage.cache_read, usage.cache_write, usage.reasoning)
    return (
        min(parts) >= 0
        and usage.input <= _INPUT_TOKENS_MAX
        and usage.output <= _OUTPUT_TOKENS_MAX
        and usage.cache_read + usage.cache_write <= usage.input
        and usage.reasoning <= usage.output
    )
