"""Chat Completions for vendors that take less than OpenAI, or want more back: a handful of named differences.

Each is applied to the body that would go to OpenAI, so a vendor without a quirk pays nothing for those of others.
What a quirk takes away is what the vendor refuses with 400 or 422, never something that it would have read.
"""

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from gateway.canonical.request import Loss, Reasoning, Request
from gateway.protocols.openai_chat.client import OpenAiChatClient

# Fields and the members of messages stay as they came, but for those that a quirk looks into.
_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGES = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_CALLS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | None)
_TEXT = msgspec.json.Decoder(str | None)

_PLAIN_FIELDS = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "prefix"))
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_EMPTY = msgspec.Raw(b'""')


class Quirk(StrEnum):
    """How a vendor differs."""

    NO_STREAM_OPTIONS = "no_stream_options"
    """Tells the usage unasked, and refuses to be asked."""
    MAX_TOKENS_ONLY = "max_tokens_only"
    """Knows the bound by its older name alone."""
    SHORT_TOOL_IDS = "short_tool_ids"
    """Takes ids of calls of nine letters and digits."""
    PLAIN_HISTORY = "plain_history"
    """Refuses messages with members that it does not know, such as its own `reasoning_content`."""
    REASONING_BACK = "reasoning_back"
    """Wants `reasoning_content` in every turn of the model's, as it was said."""


class QuirkyChatClient(OpenAiChatClient):
    """The client role of Chat Completions towards a vendor with ``quirks``."""

    def __init__(self, quirks: frozenset[Quirk]) -> None:
        self._quirks = quirks

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body for OpenAI, changed by the quirks."""
        body: dict[str, Any] = dict(_BODY.decode(super().encode_request(request, model)))
        if Quirk.NO_STREAM_OPTIONS in self._quirks:
            body.pop("stream_options", None)
        if Quirk.MAX_TOKENS_ONLY in self._quirks and "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        messages = _MESSAGES.decode(body["messages"])
        if Quirk.REASONING_BACK in self._quirks:
            _give_back(messages, request, is_own=request.format == self.name)
        if Quirk.SHORT_TOOL_IDS in self._quirks:
            for message in messages:
                _shorten(message)
        if Quirk.PLAIN_HISTORY in self._quirks:
            messages = [
                {name: value for name, value in message.items() if name in _PLAIN_FIELDS} for message in messages
            ]
        body["messages"] = messages
        return msgspec.json.encode(body)

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What is left out of a request in another format; not the reasoning, where the vendor wants it."""
        lost = super().losses(request, model)
        if Quirk.REASONING_BACK not in self._quirks:
            return lost
        return tuple(loss for loss in lost if loss.field != "messages.reasoning")


def _give_back(messages: list[dict[str, msgspec.Raw]], request: Request, *, is_own: bool) -> None:
    """What a client of another format kept of the reasoning; where nothing was kept, an empty text will do."""
    said = [message for message in messages if bytes(message["role"]) == b'"assistant"']
    thoughts: Iterator[str] = iter(()) if is_own else _thoughts(request)
    for message in said:
        thought = next(thoughts, "")
        if bytes(message.get("reasoning_content", b"null")) == b"null":
            message["reasoning_content"] = msgspec.Raw(msgspec.json.encode(thought)) if thought else _EMPTY


def _thoughts(request: Request) -> Iterator[str]:
    for message in request.messages:
        if message.role == "assistant" and message.parts:
            yield "".join(part.text for part in message.parts if isinstance(part, Reasoning))


def _shorten(message: dict[str, msgspec.Raw]) -> None:
    if "tool_call_id" in message:
        message["tool_call_id"] = _short(message["tool_call_id"])
    calls = _CALLS.decode(message.get("tool_calls", b"null"))
    if calls:
        shortened = [{**call, "id": _short(call["id"])} if "id" in call else call for call in calls]
        message["tool_calls"] = msgspec.Raw(msgspec.json.encode(shortened))


def _short(call_id: msgspec.Raw) -> msgspec.Raw:
    """The id itself where it is short, else a digest: the same for a call and for its result."""
    text = _TEXT.decode(call_id) or ""
    if _SHORT_ID.fullmatch(text):
        return call_id
    return msgspec.Raw(msgspec.json.encode(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]))
