"""Responses that are made while nobody waits: how their events begin, how they end, and what is known of them before.

Such a response exists from the moment it was admitted, so its first events tell of it as ``queued``; there is no queue
here, and it begins at once. OpenAI has no event for one that was cancelled: its last event is ``response.incomplete``,
with a response whose status is ``cancelled``.
Reference: https://platform.openai.com/docs/guides/background
"""

import re
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, GatewayError
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.protocols.openai_objects import error_object
from gateway.protocols.openai_responses.collect import Storage
from gateway.protocols.openai_responses.server import EventEncoder
from gateway.protocols.sse import encode_event
from gateway.protocols.wire import Cut, StreamMeta

_RUNNING = ("queued", "in_progress")
_ENDS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
}
_STOPPED = "stopped"
_LOST = "The gateway that made this response stopped before it was complete; ask again."
_TOO_LARGE = "The response is larger than what is stored of one."
_NUMBER = re.compile(rb'\ndata: \{"type":"[^"]*","sequence_number":(\d+)')
_SEPARATOR = b"\n\n"


class BackgroundEncoder(EventEncoder):
    """Events of a response that goes on without its client. ``queue`` comes first, before anything else is known."""

    def __init__(self, request: Request, meta: StreamMeta, storage: Storage) -> None:
        super().__init__(request, meta, storage)
        self._created = meta.created

    def queue(self) -> bytes:
        """The response as it was admitted."""
        told = self.standing("queued")
        return self._tell("response.created", response=told) + self._tell("response.queued", response=told)

    def standing(self, status: str) -> dict[str, Any]:
        """The response before anything was said."""
        return self._answer.fields(status)

    def _announce(self) -> bytes:
        self._answer.created = self._created
        return self._tell("response.in_progress", response=self._answer.fields("in_progress"))

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """As elsewhere, but one that its owner stopped is called cancelled."""
        self._is_cancelled = cut.reason == _STOPPED
        return super().cut(cut, usage)

    _is_cancelled = False

    def _tell_end(self, status: str, fields: dict[str, Any]) -> bytes:
        if not self._is_cancelled:
            return super()._tell_end(status, fields)
        self.final = self._answer.fields("cancelled", **{**fields, "incomplete_details": None})
        return self._tell("response.incomplete", response=self.final)

    def so_far(self) -> dict[str, Any] | None:
        """Nothing: what broke off without an end is told as lost when somebody asks for it."""
        return None


class _Standing(msgspec.Struct, frozen=True):
    status: str = ""
    background: bool | None = None
    store: bool | None = None


_STANDING = msgspec.json.Decoder(_Standing)


def is_running(response: msgspec.Raw) -> bool:
    """Whether a kept response was not complete when it was kept."""
    return _STANDING.decode(response).status in _RUNNING


def is_background(response: msgspec.Raw) -> bool:
    """Whether a kept response was asked for in the background."""
    return _STANDING.decode(response).background is True


def is_stored(response: msgspec.Raw) -> bool:
    """Whether a response says that it can be asked for later."""
    return _STANDING.decode(response).store is True


def lost(response: msgspec.Raw) -> msgspec.Raw:
    """A response that nobody is making any more, as failed."""
    fields = msgspec.json.decode(response, type=dict[str, Any])
    return msgspec.Raw(msgspec.json.encode(_failed(fields, _LOST, ErrorCode.STREAM_TRUNCATED)))


def unkeepable(response: dict[str, Any]) -> dict[str, Any]:
    """A response that is too large to be kept, without what makes it so."""
    return _failed({**response, "output": []}, _TOO_LARGE, ErrorCode.REQUEST_TOO_LARGE)


def _failed(fields: dict[str, Any], message: str, reason: ErrorCode) -> dict[str, Any]:
    error = {"code": "server_error", "message": message}
    note = {"outcome": "failed", "reason": reason.value}
    return {**fields, "status": "failed", "error": error, "incomplete_details": None, "x_gateway": note}


def after(number: int, payload: bytes) -> tuple[bytes, int]:
    """Those of some events that have a higher ``number``, and the highest; ``payload`` is whole events."""
    kept: list[bytes] = []
    for event in payload.split(_SEPARATOR):
        numbered = _NUMBER.search(event)
        if numbered is not None and int(numbered[1]) > number:
            number = int(numbered[1])
            kept.append(event + _SEPARATOR)
    return b"".join(kept), number


def ending(error: GatewayError, response: msgspec.Raw, number: int) -> bytes:
    """The end of a stream of which the rest cannot be had; the first of its events has this ``number``.

    The response is told as it is; where it failed, the ``error`` comes before it.
    """
    kind = _ENDS.get(_STANDING.decode(response).status, "response.failed")
    told = b""
    if kind == "response.failed":
        told, number = error_event(error, number), number + 1
    last = {"type": kind, "sequence_number": number, "response": response}
    return told + encode_event(kind, msgspec.json.encode(last))


def error_event(error: GatewayError, number: int) -> bytes:
    """An error as an event of this ``number``."""
    event = {"type": "error", "sequence_number": number, "error": error_object(error)}
    return encode_event("error", msgspec.json.encode(event))
