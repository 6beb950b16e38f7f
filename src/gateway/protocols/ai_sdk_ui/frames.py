"""The frames of ``WebSocketChatTransport`` of AI SDK 7: what a page asks over a WebSocket, and how it is answered.

Reference: the transport itself, https://github.com/vercel/ai/blob/main/packages/ai/src/ui/websocket-chat-transport.ts.
A client breaks the connection off for a frame without a ``requestId`` or of a type it does not know, and passes over
one whose ``requestId`` it does not know; what belongs to no request is therefore said with an empty one. ``auth`` is
ours.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.protocols.bodies import invalid_value

Id = Annotated[str, Meta(min_length=1, max_length=1000)]
Sequence = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Send(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="send"):
    """A chat's messages, to be answered; ``body`` has the settings."""

    requestId: Id
    id: Id
    messages: msgspec.Raw
    trigger: Literal["submit-message", "regenerate-message"]
    messageId: str | None = None
    headers: dict[str, str] = {}
    body: dict[str, msgspec.Raw] = {}

    def to_post(self) -> bytes:
        """The body that the same page would post over HTTP."""
        fields: dict[str, Any] = {**self.body, "id": self.id, "messages": self.messages, "trigger": self.trigger}
        if self.messageId is not None:
            fields["messageId"] = self.messageId
        return msgspec.json.encode(fields)


class Resume(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="resume"):
    """The stream that a chat is at, once more: all of it, or what follows the chunk ``lastSequence``."""

    requestId: Id
    id: Id
    lastSequence: Sequence | None = None
    headers: dict[str, str] = {}


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="abort"):
    """No more of a request's answer is wanted."""

    requestId: Id


class Auth(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="auth"):
    """The connection's credential, where the handshake had none."""

    token: str


Asked: TypeAlias = Send | Resume | Abort | Auth

_ASKED: msgspec.json.Decoder[Asked] = msgspec.json.Decoder(Asked)


class _Addressed(msgspec.Struct, frozen=True):
    requestId: str = ""


_ADDRESSED = msgspec.json.Decoder(_Addressed)


def decode_frame(frame: str | bytes) -> Asked:
    """What a client asks; raises ``RequestError`` that says what of it is wrong."""
    try:
        return _ASKED.decode(frame)
    except msgspec.ValidationError as error:
        raise invalid_value(error) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The frame is not valid JSON: {error}.", code=ErrorCode.INVALID_JSON) from None
    except RecursionError:
        raise RequestError("The frame is nested too deeply.", code=ErrorCode.INVALID_JSON) from None


def addressed(frame: str | bytes) -> str:
    """The ``requestId`` of a frame that is wrong in another way; empty where it has none."""
    try:
        return _ADDRESSED.decode(frame).requestId[:1000]
    except (msgspec.MsgspecError, RecursionError):
        return ""


class Frames:
    """Frames that answer one request."""

    __slots__ = ("_chunk", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._chunk = '{"type":"chunk","requestId":' + msgspec.json.encode(request_id).decode() + ',"sequence":'

    def start(self) -> str:
        """The answer begins."""
        return self._bare("start")

    def chunk(self, sequence: int, chunk: bytes) -> str:
        """The chunk is JSON already, and stays as it is."""
        return f'{self._chunk}{sequence},"chunk":{chunk.decode()}}}'

    def end(self) -> str:
        """The answer is complete."""
        return self._bare("end")

    def no_active(self) -> str:
        """There is nothing to resume."""
        return self._bare("no-active")

    def error(self, message: str, code: str | None = None) -> str:
        """The request failed. The transport shows ``errorText``; ``code`` is for whoever reads frames himself."""
        return msgspec.json.encode(
            {"type": "error", "requestId": self._request_id, "errorText": message}
            | ({} if code is None else {"code": code})
        ).decode()

    def refused(self, body: bytes) -> str:
        """An error of the same role's over HTTP, as a frame."""
        error = msgspec.json.decode(body)["error"]
        return self.error(error["message"], error["code"])

    def _bare(self, kind: str) -> str:
        return msgspec.json.encode({"type": kind, "requestId": self._request_id}).decode()
