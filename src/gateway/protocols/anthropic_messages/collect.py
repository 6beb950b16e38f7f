"""A whole message out of its events.

Deltas are merged by what they are, and fields that are new here by their shape: a string grows what is there. The
input of a call is kept as the text it came in, so that its numbers keep their digits.
"""

import contextlib
from typing import Any

import msgspec

_OBJECT = msgspec.json.Decoder(dict[str, Any])
_UNREADABLE = (ValueError, RecursionError)
_DATA = b"\ndata: "

# What of a delta replaces instead of adding to what is there: a signature comes once, and whole.
_REPLACED = frozenset(("type", "signature"))
_OF_THE_EVENT = frozenset(("type", "delta", "usage"))


class _Block:
    """One content block so far. Texts grow in pieces, to be joined once."""

    __slots__ = ("fields", "pieces")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.pieces: dict[str, list[str]] = {}

    def add(self, delta: dict[str, Any]) -> None:
        """Merge one delta."""
        for name, value in delta.items():
            if name == "citation":
                self.fields["citations"] = [*(self.fields.get("citations") or ()), value]
            elif isinstance(value, str) and name not in _REPLACED:
                self.pieces.setdefault(name, []).append(value)
            elif name != "type":
                self.fields[name] = value

    def whole(self) -> dict[str, Any]:
        """The block with everything that was added."""
        fields = dict(self.fields)
        for name, pieces in self.pieces.items():
            text = "".join(pieces)
            if name == "partial_json":
                fields["input"] = _input(text, fields.get("input"))
            else:
                known = fields.get(name)
                fields[name] = known + text if isinstance(known, str) else text
        return fields


class Collected:
    """The message so far."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self._notices: list[dict[str, Any]] = []

    def take(self, events: bytes) -> None:
        """Merge events as they would have been sent."""
        for event in events.split(b"\n\n"):
            _, found, payload = event.partition(_DATA)
            if found:
                with contextlib.suppress(*_UNREADABLE):  # what a decoder passes over may be unreadable inside
                    self._merge(_OBJECT.decode(payload))

    def add_notice(self, fields: dict[str, Any]) -> None:
        """Something that happened on the way, for the answer's ``x_gateway.events``."""
        self._notices.append(fields)

    def _merge(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._message.update(event["message"])
                for number, block in enumerate(self._message.get("content") or ()):
                    self._blocks[number] = _Block(block)
            case "content_block_start":
                self._blocks[_index(event)] = _Block(event["content_block"])
            case "content_block_delta" if _index(event) in self._blocks:
                self._blocks[_index(event)].add(event["delta"])
            case "message_delta":
                self._message.update(event.get("delta") or {})
                usage = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
                self._message["usage"] = {**(self._message.get("usage") or {}), **usage}
                self._message.update({name: value for name, value in event.items() if name not in _OF_THE_EVENT})

    def encode(self) -> bytes:
        """The message as JSON."""
        message = {**self._message, "content": [self._blocks[index].whole() for index in sorted(self._blocks)]}
        if self._notices:
            message["x_gateway"] = {**(message.get("x_gateway") or {}), "events": self._notices}
        return msgspec.json.encode(message)


def _index(event: dict[str, Any]) -> int:
    """A block's number; -1 where a block of a kind that is new here has something else."""
    index = event.get("index", 0)
    return index if isinstance(index, int) else -1


def _input(text: str, given: Any) -> Any:
    """A call's input: an object, whatever the model said."""
    if not text.strip():
        return given if isinstance(given, dict) else {}
    try:
        _OBJECT.decode(text)
    except _UNREADABLE:
        # Cut off within a call, or the model's mistake: it must not look like a call that could be run.
        return {"_raw": text}
    return msgspec.Raw(text.encode())
