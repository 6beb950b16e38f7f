"""What Gemini answers, as canonical events: its stream, and a whole answer where it did not stream.

There is no last event: the bytes end. An end is complete once every candidate has a reason for it, or the prompt was
blocked. Usage stands on every chunk and counts from the beginning, so the last word on each figure is the total.
Format: https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent
"""

import uuid
from typing import Any

import msgspec

from gateway.canonical.errors import ProviderError, ProviderProtocolError, StreamTruncated
from gateway.canonical.events import Event, Failure, Frame, MessageStart, Unified, UsageReport
from gateway.canonical.usage import Usage
from gateway.protocols.gemini.content import CandidateContent
from gateway.protocols.gemini.errors import provider_error
from gateway.protocols.gemini.framing import Payloads, split
from gateway.protocols.gemini.shapes import Chunk
from gateway.protocols.sse import EventTooLarge

_CHUNK = msgspec.json.Decoder(Chunk)
_TOKENS_MAX = 2**53


class GeminiDecoder:
    """The state of one stream. A ``StreamDecoder``."""

    __slots__ = (
        "_choices",
        "_created",
        "_is_closed",
        "_is_started",
        "_payloads",
        "_provider",
        "_seed",
        "_usage",
        "is_done",
    )

    def __init__(self, provider: str, *, created: int) -> None:
        self.is_done = False
        self._provider = provider
        self._created = created
        self._payloads = Payloads()
        self._is_closed = False
        self._is_started = False
        self._seed = ""
        self._choices: dict[int, CandidateContent] = {}
        self._usage: dict[str, Any] = {}

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes as they came; after a failure they are passed over."""
        if self._is_closed:
            return []
        try:
            payloads = self._payloads.feed(chunk)
        except EventTooLarge:
            return [self._broken("an event larger than the gateway accepts")]
        return self.take(payloads)

    def end_of_bytes(self) -> list[Frame]:
        """The connection closed: complete once all that began has ended."""
        if self._is_closed:
            return []
        try:
            frames = self.take(self._payloads.flush())
        except EventTooLarge:
            frames = []
        if not self._is_closed and not self._is_complete:
            error = StreamTruncated("The provider's stream ended before it was complete.", provider=self._provider)
            frames.append(self._failure(error))
        self._is_closed = self.is_done = True
        return frames

    def take(self, payloads: list[bytes]) -> list[Frame]:
        """A frame for each payload that says something."""
        frames: list[Frame] = []
        for payload in payloads:
            if self._is_closed:
                break
            frame = self._frame(payload)
            if frame.events:
                frames.append(frame)
        return frames

    @property
    def _is_complete(self) -> bool:
        return bool(self._choices) and all(choice.is_finished for choice in self._choices.values())

    def _frame(self, payload: bytes) -> Frame:
        try:
            if not payload.isascii():
                payload.decode()  # msgspec passes over the inside of strings that nobody asked for
            chunk = _CHUNK.decode(payload)
            if chunk.error:
                return self._failure(provider_error(None, chunk.error, self._provider))
            return Frame(tuple(self._events(chunk)))
        except (ValueError, RecursionError):
            return self._broken("a chunk that is not of its format")

    def _events(self, chunk: Chunk) -> list[Event]:
        events: list[Event] = []
        if not self._is_started:
            self._is_started = True
            self._seed = chunk.response_id or uuid.uuid4().hex
            events.append(MessageStart(chunk.response_id or "", chunk.model_version or "", self._created))
        for candidate in chunk.candidates or ():
            events += self._choice(candidate.index or 0).take(candidate)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason and not self._choices:
            events += self._choice(0).finish(chunk.prompt_feedback.block_reason, Unified.CONTENT_FILTER)
        if chunk.usage_metadata is not None:
            reported = {name: value for name, value in chunk.usage_metadata.items() if value is not None}
            self._usage = {**self._usage, **reported}
            events.append(UsageReport(usage_of(self._usage)))
        return events

    def _choice(self, index: int) -> CandidateContent:
        if index not in self._choices:
            self._choices[index] = CandidateContent(index, self._seed)
        return self._choices[index]

    def _broken(self, what: str) -> Frame:
        return self._failure(ProviderProtocolError(f"The provider sent {what}.", provider=self._provider))

    def _failure(self, error: ProviderError) -> Frame:
        self._is_closed = True
        return Frame((Failure(error),))


def decode_whole(body: bytes, provider: str, *, created: int) -> list[Frame]:
    """An answer that was not streamed: one object, or an array of what would have been events."""
    decoder = GeminiDecoder(provider, created=created)
    payloads = split(body)
    return [*decoder.take([body] if payloads is None else payloads), *decoder.end_of_bytes()]


def usage_of(raw: dict[str, Any]) -> Usage:
    """Totals by our reading: Gemini counts thoughts beside the answer, and what tools put into the prompt beside it."""

    def figure(name: str) -> int:
        value = raw.get(name)
        return value if type(value) is int and 0 <= value <= _TOKENS_MAX else 0

    thoughts = figure("thoughtsTokenCount")
    prompt = figure("promptTokenCount") + figure("toolUsePromptTokenCount")
    return Usage(
        input=prompt,
        output=figure("candidatesTokenCount") + thoughts,
        cache_read=min(figure("cachedContentTokenCount"), prompt),
        reasoning=thoughts,
        raw=raw,
    )
