"""The inside of one candidate, part by part, as canonical events.

A call comes whole, often without an id: then it gets one in an alphabet that every vendor takes. Code that Gemini ran
itself, and pictures that it made, bear no canonical events.
"""

import hashlib
import re

import msgspec

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from gateway.protocols.gemini.issued import END, TEXT, THOUGHT, mark, of_call
from gateway.protocols.gemini.shapes import Candidate, FunctionCall, PartShape

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EMPTY = ("", "{}", "null")
_UNSAID = ("", "FINISH_REASON_UNSPECIFIED")
# https://ai.google.dev/api/generate-content#FinishReason
_UNIFIED = {
    "STOP": Unified.STOP,
    "MAX_TOKENS": Unified.LENGTH,
    "CONTINUATION": Unified.LENGTH,
    "SAFETY": Unified.CONTENT_FILTER,
    "RECITATION": Unified.CONTENT_FILTER,
    "BLOCKLIST": Unified.CONTENT_FILTER,
    "PROHIBITED_CONTENT": Unified.CONTENT_FILTER,
    "SPII": Unified.CONTENT_FILTER,
    "MODEL_ARMOR": Unified.CONTENT_FILTER,
    "IMAGE_SAFETY": Unified.CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": Unified.CONTENT_FILTER,
    "IMAGE_RECITATION": Unified.CONTENT_FILTER,
    "MALFORMED_FUNCTION_CALL": Unified.ERROR,
}


class CandidateContent:
    """The state of one choice. ``seed`` makes the ids of its calls."""

    __slots__ = ("_call_ids", "_choice", "_is_thinking", "_seed", "is_finished")

    def __init__(self, choice: int, seed: str) -> None:
        self.is_finished = False
        self._choice = choice
        self._seed = seed
        self._is_thinking = False
        self._call_ids: list[str] = []

    def take(self, candidate: Candidate) -> list[Event]:
        """What a chunk adds; nothing once the choice has finished."""
        if self.is_finished:
            return []
        events: list[Event] = []
        for part in (candidate.content.parts if candidate.content is not None else None) or ():
            events += self._part(part)
        if (reason := candidate.finish_reason or "") not in _UNSAID:
            events += self.finish(reason, _UNIFIED.get(reason, Unified.OTHER))
        return events

    def finish(self, reason: str, unified: Unified) -> list[Event]:
        """The end. Gemini says ``STOP`` after calls too; an agent that trusts it would never run its tools."""
        if unified is Unified.STOP and self._call_ids:
            unified = Unified.TOOL_CALLS
        self.is_finished = True
        return [*self._end_thought(), Finish(FinishReason(unified, reason), self._choice)]

    def _part(self, part: PartShape) -> list[Event]:
        if part.function_call is not None:
            return self._call(part.function_call, part.thought_signature or "")
        if part.inline_data:  # its signature belongs to what no client is sent
            return []
        text, signature = part.text or "", part.thought_signature or ""
        if part.thought:
            return self._thought(text, signature)
        if not text and not signature:
            return []
        before = self._sign(TEXT if text else END, signature)
        return [*before, TextDelta(text, self._choice)] if text else before

    def _thought(self, text: str, signature: str) -> list[Event]:
        events: list[Event] = []
        if text:
            self._is_thinking = True
            events.append(ReasoningDelta(text, self._choice))
        return [*events, *self._sign(THOUGHT, signature)] if signature else events

    def _call(self, call: FunctionCall, signature: str) -> list[Event]:
        if not call.name:  # what ends a call whose arguments came in pieces, which are never asked for
            return []
        index, identity = len(self._call_ids), self._identity(call.id or "")
        self._call_ids.append(identity)
        events = self._sign(of_call(identity), signature)
        events.append(ToolCallStart(index, identity, call.name, self._choice))
        arguments = msgspec.json.format(bytes(call.args), indent=-1).decode() if call.args else ""
        if arguments not in _EMPTY:
            events.append(ToolCallDelta(index, arguments, self._choice))
        events.append(ToolCallEnd(index, self._choice))
        return events

    def _identity(self, given: str) -> str:
        if _CALL_ID.fullmatch(given) and given not in self._call_ids:
            return given
        text = f"{self._seed}:{self._choice}:{len(self._call_ids)}"
        return "call_" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def _sign(self, place: str, signature: str) -> list[Event]:
        """The end of a thought, with the signature of the part that follows it; a block of its own without one."""
        if not signature:
            return self._end_thought()
        marked = mark(place, signature)
        if self._is_thinking:
            self._is_thinking = False
            return [ReasoningEnd(marked, self._choice)]
        return [RedactedReasoning(marked, self._choice)]

    def _end_thought(self) -> list[Event]:
        if not self._is_thinking:
            return []
        self._is_thinking = False
        return [ReasoningEnd("", self._choice)]
