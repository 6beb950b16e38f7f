"""What a wire format has to offer, in both of its roles.

A format we speak to clients is a ``ServerRole``, one we speak to providers is a ``ClientRole``; most are both. The
objects are stateless and shared; the state of one stream lives in the ``Encoder`` and ``StreamDecoder`` they make.
Nothing here does I/O: bytes in, events out, and back.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from gateway.canonical.errors import GatewayError, ProviderError
from gateway.canonical.events import Frame
from gateway.canonical.request import Loss, Request
from gateway.canonical.usage import Usage

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# A stream must reach the client as it is made: no cache keeps it, no proxy collects it.
STREAM_HEADERS: Headers = (
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# SDKs sleep for as long as Retry-After says, one of them without any bound; beyond this they are told not to retry.
_RETRY_AFTER_MAX_S = 60


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer."""

    status: int
    headers: Headers
    body: bytes


class Cut(msgspec.Struct, frozen=True):
    """Why the gateway ends a running stream: ``reason`` for programs, ``message`` for people."""

    reason: str
    message: str


class Notice(msgspec.Struct, frozen=True, omit_defaults=True, rename={"kind": "event"}):
    """Something a client may want to know while its stream goes on: ``budget``, ``warning`` or ``downgrade``.

    ``reason`` is for programs, ``message`` for people. ``share`` says how much of ``limit`` is used up (0.8, 0.95).
    """

    kind: str
    reason: str
    message: str
    share: float | None = None
    limit: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What a client sees of it, without what is not set; the kind is called ``event``."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


class StreamMeta(msgspec.Struct, frozen=True):
    """What an encoder may put into frames of its own making. ``created`` is in Unix seconds.

    ``stream_id`` is unique and nobody's choice, unlike ``request_id``, which a client may name.
    ``wants_notices`` is for formats whose clients may trip over a notice they did not ask for. ``input_tokens`` is our
    count, for formats that name it before the provider does. ``cost_microusd`` tells what the answer has cost so far;
    it is asked at the end, by formats that can say it.
    """

    request_id: str
    created: int
    wire: str | None
    """The provider's wire format; frames of the same name pass untouched."""
    wants_notices: bool = False
    input_tokens: int = 0
    cost_microusd: Callable[[], int] | None = None
    stream_id: str = ""


class Allowance(msgspec.Struct, frozen=True):
    """What is left of a limit on requests or tokens, and when all of it is there again, in seconds from now."""

    counts: Literal["requests", "tokens"]
    limit: int
    left: int
    reset_s: float


class Encoder(Protocol):
    """Events of one exchange to bytes for one client.

    ``headers`` are those of a successful answer. ``heartbeat`` may be sent between any two frames; it is empty where
    the format has nothing harmless to send.
    """

    @property
    def headers(self) -> Headers: ...

    @property
    def heartbeat(self) -> bytes: ...

    def encode(self, frame: Frame) -> bytes:
        """One frame, in the client's format; empty where the client gets nothing for it."""
        ...

    def notice(self, notice: Notice) -> bytes:
        """A notice, before, between or after frames; empty where it cannot be carried or has to wait for a frame."""
        ...

    def end(self, usage: Usage) -> bytes:
        """The close of a stream that ran to its end."""
        ...

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """A clean end before the model was done; open parts are closed first."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """An error within the stream. Nothing follows it."""
        ...


class ServerRole(Protocol):
    """A format in which clients talk to us."""

    name: str

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """Raises ``RequestError`` that names the field."""
        ...

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """A fresh encoder: a streaming one, or one that collects where the client wants a whole answer."""
        ...

    def encode_error(self, error: GatewayError) -> Reply:
        """An error before the first byte, as an HTTP answer."""
        ...

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """How the caller's rate limits stand, in the headers that clients of the format read."""
        ...


class ResumableRole(ServerRole, Protocol):
    """A format whose clients come back for a stream they lost.

    ``nothing_to_resume`` is the status that tells them there is none, ``heartbeat`` what an encoder's is.
    """

    heartbeat: bytes
    nothing_to_resume: int

    def broken_off(self, error: GatewayError) -> bytes:
        """The end of a stream of which the rest cannot be had."""
        ...


class StreamDecoder(Protocol):
    """Bytes of one provider's stream to frames.

    ``is_done`` turns true when the provider announced the end. Bad input is a ``Failure`` event, never an exception,
    so that what came before it in the same read is not lost.
    """

    is_done: bool

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes as they came."""
        ...

    def end_of_bytes(self) -> list[Frame]:
        """The connection closed: what was left, and a ``Failure`` if the stream was not complete."""
        ...


class ClientRole(Protocol):
    """A format in which we talk to providers. ``name`` equals the ``ServerRole``'s where the frames are the same."""

    name: str

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body of a streaming call. Raises ``RequestError`` for what the format cannot carry."""
        ...

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes of a request in another format; may raise where it would.

        Fields of the body that no canonical form has (``untold``, ``untranslatable``, ``headers``) are not its concern.
        """
        ...

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        ...

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a provider that did not stream although it was asked to."""
        ...

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """The vendor's error body as ours. Its text is passed on only where it speaks about the request.

        ``headers`` are the answer's, their names in lower case or in a mapping that does not care.
        """
        ...


def retry_headers(error: GatewayError) -> Headers:
    """``Retry-After`` where waiting helps, ``x-should-retry: false`` where it does not."""
    if error.should_retry is False:
        return ((b"x-should-retry", b"false"),)
    if error.retry_after_s is None:
        return ()
    seconds = max(1, math.ceil(error.retry_after_s))
    headers: Headers = ((b"retry-after", str(seconds).encode()),)
    if seconds > _RETRY_AFTER_MAX_S:
        headers += ((b"x-should-retry", b"false"),)
    return headers


def json_reply(status: int, body: Any, headers: Headers = ()) -> Reply:
    """A JSON answer."""
    return Reply(status, ((b"content-type", b"application/json"), *headers), msgspec.json.encode(body))
