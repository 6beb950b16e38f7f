"""What a wire format has to offer, in both of its roles.

A format we speak to clients is a ``ServerRole``, one we speak to providers is a ``ClientRole``; most are both. The
objects are stateless and shared; the state of one stream lives in the ``Encoder`` and ``StreamDecoder`` they make.
Nothing here does I/O: bytes in, events out, and back.
"""

import binascii
import math
import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from gateway.canonical.errors import ErrorCode, GatewayError, ProviderError, RequestError
from gateway.canonical.events import Frame
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage

T = TypeVar("T")

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

# A stream must reach the client as it is made: no cache keeps it, no proxy collects it.
STREAM_HEADERS: Headers = (
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# SDKs sleep for as long as Retry-After says, one of them without any bound; beyond this they are told not to retry.
_RETRY_AFTER_MAX_S = 60

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_MODEL_NAME = re.compile(r"[!-~]{1,256}")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_ENUM = re.compile(r"^Invalid enum value .*", re.DOTALL)

_NESTING_MAX = 64
_CONTAINERS_MAX = 200_000
# Numbers beyond 64 bits: nothing here could write them out again. The first pattern is what may stand between two
# brackets outside of strings, so that the loop over its matches is as short as the body has brackets.
_INTEGER_DIGITS_MAX = 19
_LONG_DIGITS = b"0" * (_INTEGER_DIGITS_MAX + 1)
_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NEXT_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+[\[\]{}]", re.DOTALL)
_LONG_INTEGER = re.compile(
    rb'(?:[^"0-9]++|' + _STRING + rb"|[0-9]++[.eE][0-9eE+.-]*+|[0-9]{1,%d}+(?![0-9]))*+[0-9]" % _INTEGER_DIGITS_MAX,
    re.DOTALL,
)


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer."""

    status: int
    headers: Headers
    body: bytes


class Cut(msgspec.Struct, frozen=True):
    """Why the gateway ends a running stream: ``reason`` for programs, ``message`` for people."""

    reason: str
    message: str


class StreamMeta(msgspec.Struct, frozen=True):
    """What an encoder may put into frames of its own making. ``created`` is in Unix seconds."""

    request_id: str
    created: int
    wire: str | None
    """The provider's wire format; frames of the same name pass untouched."""


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

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        ...

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a provider that did not stream although it was asked to."""
        ...

    def decode_error(self, status: int, body: bytes, provider: str) -> ProviderError:
        """The vendor's error body as ours. Its text is passed on only where it speaks about the request."""
        ...


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A client's body as a typed value; raises ``RequestError`` that names the field in the client's own spelling.

    Where a name stands twice in one object the last one counts, for every reader of the body alike.
    """
    try:
        body.decode("utf-8")  # msgspec passes over the inside of strings that nobody asked for
        _check_bounds(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        where = _WHERE.search(message)
        path = where.group(1) if where else ""
        missing = _MISSING.search(message)
        if missing:
            path = f"{path}.{missing.group(1)}".lstrip(".")
        text = _ENUM.sub("This value is not allowed here", _WHERE.sub("", message))
        raise RequestError(
            f"{path}: {text}." if path else f"{text}.", code=ErrorCode.INVALID_VALUE, param=path or None
        ) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not valid UTF-8 (byte {error.start}).", code=ErrorCode.INVALID_JSON) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code=ErrorCode.INVALID_JSON) from None


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that ``decode_json`` has accepted, each as its JSON text."""
    return _FIELDS.decode(body)


def _check_bounds(body: bytes) -> None:
    """Refuse what would decode and then break whoever walks or re-encodes it. Cheap where a body is small or flat."""
    if body.count(b"[") + body.count(b"{") > _NESTING_MAX:
        _check_nesting(body)
    if _LONG_DIGITS in body.translate(_AS_ZEROS) and _LONG_INTEGER.match(body):
        raise RequestError(
            f"The body has an integer of more than {_INTEGER_DIGITS_MAX} digits.", code=ErrorCode.INVALID_VALUE
        )


def _check_nesting(body: bytes) -> None:
    depth = containers = position = 0
    while bracket := _NEXT_BRACKET.match(body, position):  # not finditer: where a string never ends, it looks n² times
        position = bracket.end()
        if body[position - 1] in b"]}":
            depth -= 1
            continue
        depth += 1
        containers += 1
        if depth > _NESTING_MAX:
            raise RequestError(f"The body is nested deeper than {_NESTING_MAX}.", code=ErrorCode.INVALID_JSON)
        if containers > _CONTAINERS_MAX:
            raise RequestError(f"The body has more than {_CONTAINERS_MAX} objects.", code=ErrorCode.INVALID_JSON)


def check_model_name(model: str) -> str:
    """A model's name as a client may write it: visible ASCII, at most 256 characters."""
    if not _MODEL_NAME.fullmatch(model):
        raise RequestError(
            "The model name must be 1 to 256 visible ASCII characters.", code=ErrorCode.MODEL_NOT_FOUND, param="model"
        )
    return model


def check_base64(text: str, where: str) -> None:
    """Raises ``RequestError`` where a file's text is not base64."""
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} does not hold valid base64.", code=ErrorCode.INVALID_VALUE, param=where) from None


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
