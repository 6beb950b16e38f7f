"""A whole Chat Completions answer out of its chunks.

Merging is by shape, not by name, so that fields a vendor invents are kept: strings of a delta grow, lists with an
``index`` merge by it, anything else is replaced by the latest.
"""

from typing import Any

import msgspec

_OBJECT = msgspec.json.Decoder(dict[str, Any])

# Strings that name rather than grow.
_REPLACED = frozenset(("role", "id", "type", "name", "index", "format"))


class _Text:
    """A string that grows without being copied each time."""

    __slots__ = ("pieces",)

    def __init__(self, first: str) -> None:
        self.pieces = [first]


class Answer:
    """The answer so far."""

    def __init__(self) -> None:
        """``texts`` are the pieces of each choice's text, to be appended to in place of merging a chunk."""
        self.texts: dict[int, list[str]] = {}
        self._top: dict[str, Any] = {}
        self._messages: dict[int, dict[str, Any]] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []

    def take(self, frames: bytes) -> None:
        """Merge chunks as they would have been sent; comments and the terminator are passed over."""
        for frame in frames.split(b"\n\n"):
            if frame.startswith(b"data: {"):
                self._merge_chunk(_OBJECT.decode(frame[6:]))

    def add_event(self, event: dict[str, Any]) -> None:
        """Something that happened on the way, for the answer's ``x_gateway.events``."""
        self._events.append(event)

    def _merge_chunk(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.pop("choices", None) or ():
            self._merge_choice(choice)
        for name, value in chunk.items():
            if value is not None and (value != "" or name not in self._top):
                self._top[name] = value

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        index = choice.pop("index", 0)
        message = self._messages.setdefault(index, {"role": "assistant", "content": None, "refusal": None})
        _merge(message, choice.pop("delta", None) or {})
        content = message["content"]
        if isinstance(content, _Text):
            self.texts[index] = content.pieces
        else:
            self.texts.pop(index, None)
        kept = self._choices.setdefault(index, {"finish_reason": None, "logprobs": None})
        logprobs = choice.pop("logprobs", None)
        if isinstance(logprobs, dict):
            kept["logprobs"] = kept["logprobs"] or {}
            for name, items in logprobs.items():
                if items:
                    kept["logprobs"][name] = (kept["logprobs"].get(name) or []) + items
        kept.update({name: value for name, value in choice.items() if value is not None})

    def encode(self) -> bytes:
        """The answer as JSON."""
        choices = []
        for index in sorted(self._messages):
            message = _plain(self._messages[index])
            for call in message.get("tool_calls") or ():
                call.pop("index", None)
            if message.get("tool_calls") and not message["content"]:
                message["content"] = None
            choices.append({"index": index, "message": message, **self._choices[index]})
        if self._events:
            known = self._top.get("x_gateway")
            self._top["x_gateway"] = {**(known if isinstance(known, dict) else {}), "events": self._events}
        return msgspec.json.encode({**self._top, "object": "chat.completion", "choices": choices})


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and name not in _REPLACED:
            if isinstance(known, _Text):
                known.pieces.append(value)
            else:
                into[name] = _Text(value)
        elif isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value)
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value)
        elif isinstance(value, list):
            into[name] = _merge_list(known if isinstance(known, list) else [], value)
        elif value != "" or known is None:
            into[name] = value


def _merge_list(known: list[Any], items: list[Any]) -> list[Any]:
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        place = next((entry for entry in known if index is not None and entry.get("index") == index), None)
        if place is not None:
            _merge(place, item)
        elif isinstance(item, dict):
            fresh: dict[str, Any] = {}
            _merge(fresh, item)
            known.append(fresh)
        else:
            known.append(item)
    return known


def _plain(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
