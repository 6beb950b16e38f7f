"""What Bedrock answers, as canonical events: AWS's binary event stream, and a whole answer where it did not stream.

botocore finds the messages in the bytes and checks both of their checksums; what they say is read here. The usage comes
in a message of its own, before or after the one that says why the model stopped: only after both is the stream done.
Nothing here raises: what is broken becomes a ``Failure``.
Framing: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html
"""

import struct
import uuid
from collections.abc import Callable

import msgspec
from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError

from gateway.canonical.errors import ProviderError, ProviderProtocolError, StreamTruncated
from gateway.canonical.events import Event, Failure, Frame, MessageStart
from gateway.protocols.bedrock_converse.content import ConverseContent
from gateway.protocols.bedrock_converse.errors import stream_error
from gateway.protocols.bedrock_converse.shapes import (
    BlockDeltaEvent,
    BlockStartEvent,
    BlockStopEvent,
    MessageStopEvent,
    MetadataEvent,
    WholeAnswer,
)

# What bytes can make botocore raise: its own errors, and those of headers that lie about their lengths.
_UNREADABLE_FRAME = (ParserError, struct.error, KeyError, UnicodeDecodeError)
_UNREADABLE = (ValueError, RecursionError)

_block_start = msgspec.json.Decoder(BlockStartEvent).decode
_block_delta = msgspec.json.Decoder(BlockDeltaEvent).decode
_block_stop = msgspec.json.Decoder(BlockStopEvent).decode
_message_stop = msgspec.json.Decoder(MessageStopEvent).decode
_metadata = msgspec.json.Decoder(MetadataEvent).decode
_whole_answer = msgspec.json.Decoder(WholeAnswer).decode


class ConverseDecoder:
    """The state of one stream. A ``StreamDecoder``."""

    __slots__ = (
        "_buffer",
        "_content",
        "_created",
        "_has_usage",
        "_is_closed",
        "_is_started",
        "_provider",
        "_readers",
        "is_done",
    )

    def __init__(self, provider: str, *, created: int) -> None:
        self.is_done = False
        self._provider = provider
        self._created = created
        self._buffer = EventStreamBuffer()
        self._content = ConverseContent()
        self._has_usage = False
        self._is_started = False
        self._is_closed = False
        self._readers: dict[object, Callable[[bytes], list[Event]]] = {
            "contentBlockDelta": self._extend_block,
            "contentBlockStart": self._open_block,
            "contentBlockStop": self._close_block,
            "messageStart": lambda payload: [],
            "messageStop": self._stop,
            "metadata": self._report,
        }

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes as they came; after the end or a failure they are passed over."""
        if self._is_closed:
            return []
        frames: list[Frame] = []
        self._buffer.add_data(chunk)
        while not self._is_closed and not self.is_done:
            try:
                message = next(self._buffer, None)
            except _UNREADABLE_FRAME:
                frames.append(self._fail("The provider sent bytes that are no event stream."))
                break
            if message is None:
                break
            frame = self._frame(message)
            if frame.events:
                frames.append(frame)
        return frames

    def end_of_bytes(self) -> list[Frame]:
        """The connection closed. Once the model stopped nothing of its answer can be missing."""
        if self._is_closed or self._content.is_finished:
            return []
        error = StreamTruncated("The provider's stream ended before the answer did.", provider=self._provider)
        return [self._failure(error)]

    def _frame(self, message: EventStreamMessage) -> Frame:
        headers, payload = message.headers, message.payload
        match headers.get(":message-type"):
            case "exception":
                name = str(headers.get(":exception-type", ""))
                return self._failure(stream_error(name, payload, self._provider))
            case "error":
                return self._failure(stream_error(str(headers.get(":error-code", "")), b"", self._provider))
        reader = self._readers.get(headers.get(":event-type"))
        if reader is None:  # newer than we are
            return Frame(())
        try:
            events = reader(payload)
        except _UNREADABLE:
            return self._fail("The provider sent an event that is not in its own format.")
        if not self._is_started:
            self._is_started = True
            events = [_start(self._created), *events]
        self.is_done = self._content.is_finished and self._has_usage
        return Frame(tuple(events))

    def _open_block(self, payload: bytes) -> list[Event]:
        event = _block_start(payload)
        return self._content.open_block(event.content_block_index, event.start)

    def _extend_block(self, payload: bytes) -> list[Event]:
        event = _block_delta(payload)
        return self._content.extend_block(event.content_block_index, event.delta)

    def _close_block(self, payload: bytes) -> list[Event]:
        return self._content.close_block(_block_stop(payload).content_block_index)

    def _stop(self, payload: bytes) -> list[Event]:
        return self._content.finish(_message_stop(payload).stop_reason)

    def _report(self, payload: bytes) -> list[Event]:
        self._has_usage = True
        return self._content.report(_metadata(payload).usage)

    def _fail(self, message: str) -> Frame:
        return self._failure(ProviderProtocolError(message, provider=self._provider))

    def _failure(self, error: ProviderError) -> Frame:
        self._is_closed = True
        return Frame((Failure(error),))


def decode_answer(body: bytes, provider: str, *, created: int) -> list[Frame]:
    """A whole answer, as frames; a ``Failure`` where it is none."""
    content = ConverseContent()
    try:
        answer = _whole_answer(body)
        events: list[Event] = [_start(created)]
        for index, block in enumerate(answer.output.message.content):
            events += content.whole_block(index, block)
        events += [*content.finish(answer.stop_reason), *content.report(answer.usage)]
    except _UNREADABLE:
        broken = ProviderProtocolError("The provider's answer is not in its own format.", provider=provider)
        return [Frame((Failure(broken),))]
    return [Frame(tuple(events))]


def _start(created: int) -> MessageStart:
    """Bedrock names neither the message nor, in the stream, its model."""
    return MessageStart(f"msg_{uuid.uuid4().hex}", "", created)
