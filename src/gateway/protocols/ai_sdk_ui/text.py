"""The text stream protocol: the answer's text and nothing else.

``TextStreamChatTransport`` and ``useCompletion({ streamProtocol: "text" })`` of AI SDK 4 and later read it. The format
has no place for reasoning, tools, usage, notices or heartbeats; where the answer ends early, that is said in its text,
since a reader cannot tell an early end from a regular one.
"""

from gateway.canonical.errors import GatewayError
from gateway.canonical.events import Frame, RefusalDelta, TextDelta
from gateway.canonical.usage import Usage
from gateway.protocols.wire import STREAM_HEADERS, Cut, Notice


class TextEncoder:
    """The text of one answer."""

    headers = ((b"content-type", b"text/plain; charset=utf-8"), *STREAM_HEADERS)
    heartbeat = b""

    def encode(self, frame: Frame) -> bytes:
        """What of a frame is text."""
        texts = [
            event.text for event in frame.events if isinstance(event, TextDelta | RefusalDelta) and event.choice == 0
        ]
        return "".join(texts).encode()

    def notice(self, notice: Notice) -> bytes:
        """Nothing: it would be read as part of the answer."""
        return b""

    def end(self, usage: Usage) -> bytes:
        """Nothing follows the text."""
        return b""

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """The reason as a last line."""
        return _last_line(cut.message)

    def fail(self, error: GatewayError) -> bytes:
        """The error as a last line."""
        return _last_line(error.message)


def _last_line(message: str) -> bytes:
    return f"\n\n[{message}]".encode()
