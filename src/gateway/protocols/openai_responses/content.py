"""The inside of one response of a provider's, item by item, as canonical events.

Streamed and whole items come through here alike. An item is told in pieces and once more when it is done; its pieces
count, and what a server left out of them is taken from the whole. Items of hosted tools bear no canonical events: the
provider runs them itself and a client has nothing to answer.
"""

from typing import Any

import msgspec

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
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
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.protocols.openai_responses.issued import mark

_INCOMPLETE = {"max_output_tokens": Unified.LENGTH, "content_filter": Unified.CONTENT_FILTER}
_KNOWN = frozenset(("message", "function_call", "reasoning"))
_BETWEEN_SUMMARIES = "\n\n"


class PartShape(msgspec.Struct, frozen=True):
    """A part of a message, or of what is shown of reasoning."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None


class ItemShape(msgspec.Struct, frozen=True):
    """An item of a kind we know."""

    type: str
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | dict[str, Any] | None = None
    content: list[PartShape] | None = None
    summary: list[PartShape] | None = None
    encrypted_content: str | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str = ""


class _Details(msgspec.Struct, frozen=True):
    reason: str | None = None


class ResponseShape(msgspec.Struct, frozen=True):
    """A response, in a stream or by itself."""

    id: str | None = None
    model: str | None = None
    created_at: float | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Details | None = None
    output: list[msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None


class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class _UsageShape(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


_kind = msgspec.json.Decoder(_Kind).decode
_item = msgspec.json.Decoder(ItemShape).decode


class _Item:
    """One item as far as it came. ``told`` is the kind of its last piece, ``part`` that piece's number."""

    __slots__ = ("call", "is_open", "kind", "part", "told")

    def __init__(self, kind: str, call: int = -1) -> None:
        self.kind = kind
        self.call = call
        self.told = ""
        self.part = 0
        self.is_open = True


class ResponseContent:
    """The state of one response. Raises ``ValueError`` or ``RecursionError`` for what is not in the format."""

    __slots__ = ("_calls", "_created", "_is_started", "_items")

    def __init__(self, created: int) -> None:
        self._created = created
        self._is_started = False
        self._items: dict[int, _Item] = {}
        self._calls = 0

    def start(self, response: ResponseShape | None = None) -> list[Event]:
        """The response begins; said once, whatever comes first."""
        if self._is_started:
            return []
        self._is_started = True
        shape = response or ResponseShape()
        created = int(shape.created_at) if shape.created_at and 0 < shape.created_at < 1e12 else self._created
        return [MessageStart(shape.id or "", shape.model or "", created)]

    def open_item(self, index: int, raw: bytes) -> list[Event]:
        """An item begins. What it holds already is told when it is done."""
        if _kind(raw).type not in _KNOWN:
            return []
        shape = _item(raw)
        if shape.type != "function_call":
            self._items[index] = _Item(shape.type)
            return []
        call = self._items[index] = _Item(shape.type, self._calls)
        self._calls += 1
        name = f"{shape.namespace}__{shape.name}" if shape.namespace else shape.name or ""
        return [ToolCallStart(call.call, shape.call_id or shape.id or f"call_{call.call}", name)]

    def say(self, index: int, text: str, *, is_refusal: bool = False) -> list[Event]:
        """More of a message."""
        item = self._items.setdefault(index, _Item("message"))
        item.told = "text"
        return [RefusalDelta(text) if is_refusal else TextDelta(text)]

    def think(self, index: int, text: str, kind: str, part: int) -> list[Event]:
        """More of what is shown of reasoning: of the ``kind`` that comes first, where a server shows both."""
        item = self._items.setdefault(index, _Item("reasoning"))
        if item.told not in ("", kind):
            return []
        between = _BETWEEN_SUMMARIES if item.told and part != item.part else ""
        item.told, item.part = kind, part
        return [ReasoningDelta(between + text)]

    def argue(self, index: int, arguments: str) -> list[Event]:
        """More of a call's arguments; those of a hosted tool's call are nobody's business."""
        item = self._items.get(index)
        if item is None or item.call < 0 or not item.is_open:
            return []
        item.told = "arguments"
        return [ToolCallDelta(item.call, arguments)]

    def close_item(self, index: int, raw: bytes) -> list[Event]:
        """An item is done, and told once more as a whole."""
        if _kind(raw).type not in _KNOWN:
            return []
        shape = _item(raw)
        opened = [] if index in self._items else self.open_item(index, raw)
        item = self._items[index]
        if not item.is_open:
            return []
        item.is_open = False
        match shape.type:
            case "function_call":
                return [*opened, *_rest_of_call(item, shape)]
            case "reasoning":
                return [*opened, *_rest_of_reasoning(item, shape)]
        return [*opened, *(_words(shape) if not item.told else ())]

    def whole_items(self, response: ResponseShape) -> list[Event]:
        """All items of a response of which nothing came before."""
        if self._items:
            return []
        output = response.output or ()
        return [event for index, raw in enumerate(output) for event in self.close_item(index, bytes(raw))]

    def finish(self, response: ResponseShape) -> list[Event]:
        """The end: calls that were left open, the totals, the reason."""
        events: list[Event] = [*self.start(response), *self.whole_items(response)]
        events += [ToolCallEnd(item.call) for item in self._items.values() if item.is_open and item.call >= 0]
        if response.usage is not None and (usage := _usage(response.usage)) is not None:
            events.append(UsageReport(usage))
        if response.status == "incomplete":
            reason = (response.incomplete_details and response.incomplete_details.reason) or ""
            return [*events, Finish(FinishReason(_INCOMPLETE.get(reason, Unified.OTHER), reason))]
        return [*events, Finish(FinishReason(Unified.TOOL_CALLS if self._calls else Unified.STOP, "completed"))]


def _rest_of_call(item: _Item, shape: ItemShape) -> list[Event]:
    end = ToolCallEnd(item.call)
    given = shape.arguments
    arguments = given if isinstance(given, str) else "" if given is None else msgspec.json.encode(given).decode()
    return [end] if item.told or not arguments else [ToolCallDelta(item.call, arguments), end]


def _rest_of_reasoning(item: _Item, shape: ItemShape) -> list[Event]:
    shown: list[Event] = []
    if not item.told:
        texts = [part.text for part in (shape.summary or shape.content or ()) if part.text]
        shown = [ReasoningDelta(_BETWEEN_SUMMARIES.join(texts))] if texts else []
    issued = mark(shape.id or "", shape.encrypted_content) if shape.encrypted_content else ""
    if item.told or shown:
        return [*shown, ReasoningEnd(issued)]
    return [RedactedReasoning(issued)] if issued else []


def _words(shape: ItemShape) -> list[Event]:
    events: list[Event] = []
    for part in shape.content or ():
        if part.refusal:
            events.append(RefusalDelta(part.refusal))
        elif part.text:
            events.append(TextDelta(part.text))
    return events


def _usage(raw: dict[str, Any]) -> Usage | None:
    """Totals; ``None`` where the figures are no figures, and our own count stands."""
    try:
        shape = msgspec.convert(raw, _UsageShape)
    except msgspec.ValidationError:
        return None
    read, written = shape.input_tokens_details or _InputDetails(), shape.output_tokens_details or _OutputDetails()
    return Usage(
        input=shape.input_tokens or 0,
        output=shape.output_tokens or 0,
        cache_read=read.cached_tokens or 0,
        cache_write=read.cache_write_tokens or 0,
        reasoning=written.reasoning_tokens or 0,
        raw=raw,
    )
