"""A response as it grows: its items, and the object that says how it stands.

Nothing here knows whether the client watches. The encoder tells the items what comes and asks for the object whenever
the format wants all of it, which is at the beginning and at the end.
"""

from typing import Any, Literal

import msgspec

from gateway.canonical.request import Request
from gateway.canonical.usage import Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]
PartKind = Literal["output_text", "refusal"]

# What the client asked for and is told again, with what holds where it did not ask.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}


class Place(msgspec.Struct, frozen=True):
    """Where an item stands: its id, and its number in the output."""

    id: str
    index: int


class Storage(msgspec.Struct, frozen=True):
    """What a response says of the ones before it, and whether it can be asked for later."""

    previous: str | None = None
    is_kept: bool = False
    is_background: bool = False


class TextPart:
    """Text, or a refusal, that grows without being copied each time."""

    __slots__ = ("index", "kind", "pieces")

    def __init__(self, kind: PartKind, index: int) -> None:
        self.kind = kind
        self.index = index
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    def fields(self) -> dict[str, Any]:
        """The part as the format spells it."""
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class MessageItem:
    """What the model says; its last part may still grow."""

    def __init__(self, place: Place) -> None:
        self.id = place.id
        self.output_index = place.index
        self.parts: list[TextPart] = []

    def open_part(self, kind: PartKind) -> TextPart:
        """A fresh part at the end."""
        self.parts.append(TextPart(kind, len(self.parts)))
        return self.parts[-1]

    def fields(self, status: ItemStatus) -> dict[str, Any]:
        """The item as the format spells it."""
        content = [part.fields() for part in self.parts]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class ReasoningItem:
    """A block of reasoning. ``sealed`` is what its provider has to see again."""

    def __init__(self, place: Place) -> None:
        self.id = place.id
        self.output_index = place.index
        self.pieces: list[str] = []
        self.sealed: str | None = None

    @property
    def text(self) -> str:
        """All that was shown of it so far."""
        return "".join(self.pieces)

    def fields(self, status: ItemStatus) -> dict[str, Any]:
        """The item as the format spells it."""
        summary = [{"type": "summary_text", "text": self.text}] if self.pieces and status != "in_progress" else []
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "summary": summary}
        return item if self.sealed is None else {**item, "encrypted_content": self.sealed}


class CallItem:
    """A function call; ``own`` is the function's namespace, empty where it has none, and its name."""

    def __init__(self, place: Place, call_id: str, own: tuple[str, str]) -> None:
        self.id = place.id
        self.output_index = place.index
        self.call_id = call_id
        self.namespace, self.name = own
        self.pieces: list[str] = []

    @property
    def arguments(self) -> str:
        """The JSON text so far; a call without arguments has an empty object."""
        return "".join(self.pieces)

    def fields(self, status: ItemStatus) -> dict[str, Any]:
        """The item as the format spells it."""
        arguments = self.arguments if status == "in_progress" else self.arguments or "{}"
        item = {"id": self.id, "type": "function_call", "status": status}
        called = {"arguments": arguments, "call_id": self.call_id, "name": self.name}
        return {**item, **called, "namespace": self.namespace} if self.namespace else {**item, **called}


Item = MessageItem | ReasoningItem | CallItem


class Answer:
    """The response so far. Items are listed once they are done, in the order in which they began.

    The ids of its items begin as its own does, so that an item's id tells in which response it is.
    """

    def __init__(self, request: Request, stream_id: str, created: int, storage: Storage) -> None:
        self.model = request.model
        self.created = created
        self.count = 0
        self._stream_id = stream_id
        self._storage = storage
        self._done: dict[int, dict[str, Any]] = {}
        self._echo = {name: _asked(request, name, default) for name, default in _ECHOED.items()}

    def next_place(self, prefix: Literal["msg", "rs", "fc"]) -> Place:
        """Where the next item goes."""
        self.count += 1
        return Place(f"{prefix}_{self._stream_id}{self.count - 1:04x}", self.count - 1)

    def finish(self, item: Item, status: ItemStatus) -> dict[str, Any]:
        """An item is done; returns it as the format spells it."""
        fields = self._done[item.output_index] = item.fields(status)
        return fields

    def fields(self, status: str, usage: Usage | None = None, **more: Any) -> dict[str, Any]:
        """The response object. ``more`` replaces or adds fields."""
        return {
            "id": f"resp_{self._stream_id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": self._storage.is_background,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [self._done[index] for index in sorted(self._done)],
            "previous_response_id": self._storage.previous,
            "store": self._storage.is_kept,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            **self._echo,
            **more,
        }


def _asked(request: Request, name: str, default: Any) -> Any:
    raw = request.raw.get(name)
    return default if raw is None or bytes(raw) == b"null" else msgspec.Raw(raw)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }
