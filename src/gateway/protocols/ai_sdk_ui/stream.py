"""One answer as a UI message stream: server-sent events, each a JSON object with a ``type``.

The parser is the client's ``processUIMessageStream``: a delta needs its part's start, a tool's output its call, an
error's text is a string, and whatever it does not know ends the stream. Parts are numbered from 0 within an answer;
at most one text or reasoning is open at a time, and a call's arguments may grow beside it.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from gateway.canonical.errors import GatewayError
from gateway.canonical.events import (
    Event,
    Finish,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from gateway.canonical.usage import Usage
from gateway.protocols.ai_sdk_ui import Compat
from gateway.protocols.ai_sdk_ui.parts import SIGNER
from gateway.protocols.sse import encode_data
from gateway.protocols.wire import STREAM_HEADERS, Cut, Notice, StreamMeta

_FINISH = {
    Unified.STOP: "stop",
    Unified.LENGTH: "length",
    Unified.TOOL_CALLS: "tool-calls",
    Unified.CONTENT_FILTER: "content-filter",
    Unified.ERROR: "error",
    Unified.OTHER: "other",
}
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.encode
_DONE = encode_data(b"[DONE]")
_NAMELESS = "unknown"  # a part has to come back as one that names its call
_NOT_AN_OBJECT = "The arguments are not a JSON object."
_LINE_ENDS = str.maketrans("\r\n", "  ")


class _Call:
    """A tool call whose arguments are still coming."""

    __slots__ = ("fragments", "id", "name")

    def __init__(self, identity: str, name: str) -> None:
        self.id = identity
        self.name = name
        self.fragments: list[str] = []


class UiMessageEncoder:
    """One message, or one more step of the message that the conversation ends with.

    ``call_ids`` are those of the conversation: a page finds a call by its id, and some providers count theirs from 0
    in each answer.
    """

    headers = (
        (b"content-type", b"text/event-stream"),
        (b"x-vercel-ai-ui-message-stream", b"v1"),
        *STREAM_HEADERS,
    )
    heartbeat = b": keep-alive\n\n"

    def __init__(
        self,
        meta: StreamMeta,
        *,
        compat: Compat = "5-strict",
        continues: bool = False,
        call_ids: Collection[str] = (),
    ) -> None:
        self._meta = meta
        self._compat = compat
        self._continues = continues
        self._taken = set(call_ids)
        self._has_begun = False
        self._finish = "other"
        self._parts = 0
        self._kind = ""  # of the part that is open: text, reasoning or none
        self._id = ""
        self._delta_head = b""
        self._calls: dict[int, _Call] = {}

    def encode(self, frame: Frame) -> bytes:
        """Events for one frame."""
        return b"".join([self._encode_event(event) for event in frame.events])

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, 0) | RefusalDelta(text, 0):
                return self._say("text", text)
            case ReasoningDelta(text, 0):
                return self._say("reasoning", text)
            case ReasoningEnd(signature, 0):
                return self._end_reasoning(signature)
            case RedactedReasoning(data, 0):
                return self._close() + self._open("reasoning", {"redactedData": data}) + self._close()
            case ToolCallStart(index, identity, name, 0):
                return self._start_call(index, identity, name)
            case ToolCallDelta(index, arguments, 0) if arguments:
                call = self._calls[index]
                call.fragments.append(arguments)
                return _chunk("tool-input-delta", toolCallId=call.id, inputTextDelta=arguments)
            case ToolCallEnd(index, 0):
                return self._end_call(self._calls.pop(index))
            case MessageStart():
                return self._begin()
            case Finish(reason, 0):
                self._finish = _FINISH[reason.unified]
        return b""

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        # An id of ours would make a second message of one that goes on.
        start = {} if self._continues else {"messageId": f"msg-{self._meta.request_id}"}
        return _chunk("start", **start) + _chunk("start-step")

    # Text and reasoning.

    def _say(self, kind: str, text: str) -> bytes:
        if self._kind == kind:
            return self._delta_head + _encode(text) + b"}\n\n" if text else b""
        if not text:
            return self._begin()
        return self._close() + self._open(kind) + self._delta_head + _encode(text) + b"}\n\n"

    def _open(self, kind: str, own: dict[str, str] | None = None) -> bytes:
        self._kind, self._id = kind, str(self._parts)
        self._parts += 1
        self._delta_head = f'data: {{"type":"{kind}-delta","id":"{self._id}","delta":'.encode()
        return self._begin() + _chunk(f"{kind}-start", id=self._id, **_metadata(own))

    def _close(self, own: dict[str, str] | None = None) -> bytes:
        if not self._kind:
            return b""
        kind, self._kind = self._kind, ""
        return _chunk(f"{kind}-end", id=self._id, **_metadata(own))

    def _end_reasoning(self, signature: str) -> bytes:
        if self._kind == "reasoning":
            return self._close({"signature": signature} if signature else None)
        if not signature:
            return b""
        # A block whose text the provider keeps to itself still has to come back.
        return self._close() + self._open("reasoning") + self._close({"signature": signature})

    # Tool calls.

    def _start_call(self, index: int, identity: str, name: str) -> bytes:
        if not identity or identity in self._taken:
            identity = f"{identity or 'call'}-{self._meta.request_id}-{index}"
        self._taken.add(identity)
        call = self._calls[index] = _Call(identity, name or _NAMELESS)
        return self._close() + self._begin() + _chunk("tool-input-start", toolCallId=call.id, toolName=call.name)

    def _end_call(self, call: _Call) -> bytes:
        text = "".join(call.fragments)
        named = {"toolCallId": call.id, "toolName": call.name}
        try:
            _OBJECT.decode(text if text.strip() else "{}")
        except (msgspec.MsgspecError, RecursionError):
            if self._compat == "5-strict":  # 5.0.7 has a word of its own for it; without one the page runs no tool
                return _chunk("tool-output-error", toolCallId=call.id, errorText=_NOT_AN_OBJECT)
            return _chunk("tool-input-error", **named, input=text, errorText=_NOT_AN_OBJECT)
        # The model's own text, so that numbers keep their digits; an event is one line.
        arguments = msgspec.Raw((text.translate(_LINE_ENDS) if text.strip() else "{}").encode())
        return _chunk("tool-input-available", **named, input=arguments)

    # Beside and after what the model says.

    def notice(self, notice: Notice) -> bytes:
        """A transient data part: ``onData`` gets it, the message does not keep it."""
        return _chunk(f"data-gateway-{notice.kind}", data=notice.fields, transient=True)

    def end(self, usage: Usage) -> bytes:
        """The end of the step and of the message, with what it used and cost."""
        finish: dict[str, Any] = {} if self._compat == "5-strict" else {"finishReason": self._finish}
        finish["messageMetadata"] = self._about(self._finish, usage)
        return self._begin() + self._end_parts() + _chunk("finish-step") + _chunk("finish", **finish) + _DONE

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """A data part that stays in the message, and an abort: no error, since what was said is good."""
        abort = {"reason": cut.message} if self._compat in ("6", "7") else {}
        return (
            self._begin()
            + self._close()
            + _chunk("data-gateway-cut", data={"reason": cut.reason, "message": cut.message})
            + _chunk("message-metadata", messageMetadata=self._about("length", usage))
            + _chunk("finish-step")
            + _chunk("abort", **abort)
            + _DONE
        )

    def fail(self, error: GatewayError) -> bytes:
        """What went wrong."""
        return self._close() + failure(error)

    def _end_parts(self) -> bytes:
        output = self._close() + b"".join([self._end_call(call) for call in self._calls.values()])
        self._calls.clear()
        return output

    def _about(self, finish: str, usage: Usage) -> dict[str, Any]:
        """The message's metadata, with the names of the SDK's own ``LanguageModelUsage``."""
        about: dict[str, Any] = {
            "finishReason": finish,
            "usage": {
                "inputTokens": usage.input,
                "outputTokens": usage.output,
                "totalTokens": usage.total,
                "reasoningTokens": usage.reasoning,
                "cachedInputTokens": usage.cache_read,
            },
        }
        if self._meta.cost_microusd is not None:
            cost = self._meta.cost_microusd()
            about["costUsd"] = f"{cost // 1_000_000}.{cost % 1_000_000:06}"
        return about


def failure(error: GatewayError) -> bytes:
    """For programs a transient data part, for people the error that ends the stream."""
    told = {"code": error.code.value, "message": error.message}
    return _chunk("data-gateway-error", data=told, transient=True) + _chunk("error", errorText=error.message) + _DONE


def _metadata(own: dict[str, str] | None) -> dict[str, Any]:
    return {"providerMetadata": {SIGNER: own}} if own else {}


def _chunk(kind: str, **fields: Any) -> bytes:
    return encode_data(_encode({"type": kind, **fields}))
