"""Responses over a WebSocket: what a client sends, and what it is sent.

A ``response.create`` has the fields of a request beside its ``type``, and perhaps a ``stream_id`` that comes back with
every event. It always streams.
Reference: https://platform.openai.com/docs/guides/websocket-mode
"""

import re
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.protocols.bodies import decode_json
from gateway.protocols.openai_objects import error_object

_LIMIT_REACHED = "websocket_connection_limit_reached"
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_TRUE, _FALSE = b"true", b"false"


class Create(msgspec.Struct, frozen=True):
    """A request: the ``body`` that it would have over HTTP, and the lane in which it is answered."""

    body: bytes
    stream_id: str | None


class _Address(msgspec.Struct, frozen=True):
    stream_id: Any = None


class _Error(msgspec.Struct, frozen=True):
    error: dict[str, Any]


def decode_frame(frame: str | bytes) -> Create:
    """Raises ``RequestError`` for what cannot be asked."""
    if isinstance(frame, bytes):
        raise RequestError("Frames are JSON text.", code=ErrorCode.INVALID_JSON)
    fields = decode_json(frame.encode(), _FIELDS)
    kind = _text(fields.pop("type", None))
    if kind == "response.steer":
        raise RequestError("A response cannot be steered here.", code=ErrorCode.UNSUPPORTED_VALUE, param="type")
    if kind != "response.create":
        raise RequestError("type must be response.create.", code=ErrorCode.INVALID_VALUE, param="type")
    stream_id = _stream_id(fields.pop("stream_id", None))
    if bytes(fields.get("background", b"")) == _TRUE:
        raise RequestError(
            "A response over a WebSocket cannot be in the background; ask for it with POST.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param="background",
        )
    if bytes(fields.pop("generate", _TRUE)) == _FALSE:
        raise RequestError(
            "A request cannot be prepared without an answer here; leave generate out.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param="generate",
        )
    fields["stream"] = msgspec.Raw(_TRUE)
    return Create(msgspec.json.encode(fields), stream_id)


def lane_of(frame: str | bytes) -> str | None:
    """The ``stream_id`` of a frame that may be nonsense."""
    try:
        name = msgspec.json.decode(frame, type=_Address).stream_id
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def _text(raw: msgspec.Raw | None) -> str | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError:
        return None


def _stream_id(raw: msgspec.Raw | None) -> str | None:
    if raw is None or bytes(raw) == b"null":
        return None
    name = _text(raw)
    if name is None or not _NAME.fullmatch(name):
        raise RequestError(
            "stream_id must be a text of 1 to 256 characters.", code=ErrorCode.INVALID_VALUE, param="stream_id"
        )
    return name


class Frames:
    """The frames of one request."""

    def __init__(self, stream_id: str | None) -> None:
        self._stream_id = stream_id
        self._suffix = b"}" if stream_id is None else b',"stream_id":' + msgspec.json.encode(stream_id) + b"}"

    def event(self, payload: bytes) -> str:
        """An event of the stream; ``payload`` is its JSON, an object with at least a type."""
        return (payload[:-1] + self._suffix).decode()

    def refused(self, status: int, body: bytes) -> str:
        """An error instead of a stream; ``body`` is what it would be over HTTP."""
        return self._error(status, msgspec.json.decode(body, type=_Error).error)

    def error(self, status: int, error: RequestError) -> str:
        """An error of a frame."""
        return self._error(status, error_object(error))

    def too_old(self, life_s: float) -> str:
        """The connection has been open for as long as it may."""
        message = f"A connection may be open for {life_s / 60:g} minutes; open a new one."
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": _LIMIT_REACHED}
        return self._error(400, error)

    def _error(self, status: int, error: dict[str, Any]) -> str:
        told: dict[str, Any] = {"type": "error", "status": status, "error": error}
        if self._stream_id is not None:
            told["stream_id"] = self._stream_id
        return msgspec.json.encode(told).decode()
