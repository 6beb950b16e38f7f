"""What Anthropic refuses in the messages of a request: malformed blocks, and turns out of order.

Turns of one role are merged before the rules about tools are applied, because the server merges them. Thinking must
come back as it was given out, so ``Issued`` remembers what was.
"""

import re
from itertools import pairwise
from typing import Any, TypeAlias

from .exchange import Rejected, unknown_field

Turn: TypeAlias = tuple[str, list[tuple[str, dict[str, Any]]]]

VERSION_WITHOUT_SAMPLING = "2026-10-21"
BLOCK_FIELDS = {
    "text": "text cache_control citations",
    "image": "source cache_control transformations",
    "document": "source cache_control citations context title",
    "search_result": "source title content cache_control citations",
    "tool_use": "id name input cache_control caller toolset_name",
    "tool_result": "tool_use_id content is_error cache_control toolset_name",
    "thinking": "thinking signature",
    "redacted_thinking": "data",
}
BLOCK_REQUIRED = {
    "text": ("text",),
    "image": ("source",),
    "document": ("source",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
ROLES = ("user", "assistant", "system")
TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
ID_FIELDS = {"tool_use": "id", "tool_result": "tool_use_id"}


class Issued:
    """The thinking that this server signed, and the redacted thinking it gave out."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def note(self, block: dict[str, Any]) -> None:
        """Remembers a block of an answer, if it is thinking."""
        if block["type"] == "thinking":
            self._known |= {(block["signature"], block["thinking"]), (block["signature"], "")}
        elif block["type"] == "redacted_thinking":
            self._known.add(("", block["data"]))

    def check(self, where: str, block: dict[str, Any]) -> None:
        """Raises ``Rejected`` for thinking that is not as it was given out."""
        if block["type"] == "thinking" and (block["signature"], block["thinking"]) not in self._known:
            raise Rejected(f"{where}: Invalid `signature` in `thinking` block")
        if block["type"] == "redacted_thinking" and ("", block["data"]) not in self._known:
            raise Rejected(f"{where}: Invalid `data` in `redacted_thinking` block")


def _blocks(index: int, message: Any, version: str) -> Turn:
    """Role and located blocks of one message."""
    where = f"messages.{index}"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise Rejected(f"{where}.role: Input should be 'user' or 'assistant'")
    if name := unknown_field(message, frozenset(("role", "content"))):
        raise Rejected(f"{where}.{name}: Extra inputs are not permitted")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise Rejected(f"{where}.content: Input should be a valid list")
    if not content:
        raise Rejected(f"{where}: all messages must have non-empty content")
    located = [(f"{where}.content.{position}", block) for position, block in enumerate(content)]
    for place, block in located:
        check_block(place, block)
        _check_place(place, message["role"], block, version)
    return message["role"], located


def check_block(where: str, block: Any) -> None:
    """Raises ``Rejected`` for a block that is malformed wherever it stands."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise Rejected(f"{where}.type: Field required")
    for name in BLOCK_REQUIRED.get(kind, ()):
        if block.get(name) is None:
            raise Rejected(f"{where}.{kind}.{name}: Field required")
    if kind in BLOCK_FIELDS:
        if unknown := unknown_field(block, frozenset(["type", *BLOCK_FIELDS[kind].split()])):
            raise Rejected(f"{where}.{kind}.{unknown}: Extra inputs are not permitted")
    elif not kind.endswith(("_tool_use", "_tool_result", "_reference")):
        raise Rejected(f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
    if kind == "text" and not block["text"]:
        raise Rejected("messages: text content blocks must be non-empty")
    if kind == "tool_use" and not isinstance(block["input"], dict):
        raise Rejected(f"{where}.tool_use.input: Input should be a valid dictionary")
    field = ID_FIELDS.get(kind)
    if field and not TOOL_ID.fullmatch(str(block[field])):
        raise Rejected(f"{where}.{kind}.{field}: String should match pattern '^[a-zA-Z0-9_-]+$'")


def _check_place(where: str, role: str, block: dict[str, Any], version: str) -> None:
    """Which blocks a role may say."""
    kind = block["type"]
    if kind == "tool_result" and role != "user":
        raise Rejected(f"{where}: `tool_result` blocks can only be in `user` messages")
    if kind in ("tool_use", "thinking", "redacted_thinking") and role != "assistant":
        raise Rejected(f"{where}: `{kind}` blocks can only be in `assistant` messages")
    if version != VERSION_WITHOUT_SAMPLING:
        return
    if kind == "document" and role == "assistant":
        raise Rejected(f"{where}: `document` blocks can only be in `user` messages")
    if kind == "text" and role == "user" and block.get("citations"):
        raise Rejected(f"{where}.text.citations: Extra inputs are not permitted")


def _merge(turns: list[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for role, blocks in turns:
        if merged and merged[-1][0] == role:
            merged[-1][1].extend(blocks)
        else:
            merged.append((role, list(blocks)))
    return merged


def _of(turn: Turn, kind: str) -> list[dict[str, Any]]:
    return [block for _, block in turn[1] if block["type"] == kind]


def check_turns(body: dict[str, Any], version: str, issued: Issued) -> None:
    """Raises ``Rejected`` for messages that are malformed or out of order."""
    turns = _merge([_blocks(index, message, version) for index, message in enumerate(body["messages"])])
    for turn in turns:
        for where, block in turn[1]:
            issued.check(where, block)
    calls = [block["id"] for turn in turns for block in _of(turn, "tool_use")]
    if len(calls) != len(set(calls)):
        raise Rejected("messages: `tool_use` ids must be unique")
    empty: Turn = ("user", [])
    for before, after in pairwise([empty, *turns, empty]):
        _check_results(before, after)
    if (body.get("thinking") or {}).get("type") == "enabled":
        _check_thinking_leads(turns)


def _check_results(before: Turn, after: Turn) -> None:
    """Each call of one turn has its result at the head of the next, and there are no other results."""
    calls = [block["id"] for block in _of(before, "tool_use")]
    results = [block["tool_use_id"] for block in _of(after, "tool_result")]
    if stray := [result for result in results if result not in calls]:
        raise Rejected(
            f"messages: unexpected `tool_use_id` found in `tool_result` blocks: {', '.join(stray)}. Each `tool_result` "
            "block must have a corresponding `tool_use` block in the previous message."
        )
    if len(results) != len(set(results)):
        raise Rejected("messages: each tool_use must have a single result. Found multiple `tool_result` blocks")
    head = {block["tool_use_id"] for _, block in after[1][: len(calls)] if block["type"] == "tool_result"}
    if missing := [call for call in calls if call not in head]:
        raise Rejected(
            f"messages: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message."
        )


def _check_thinking_leads(turns: list[Turn]) -> None:
    last = next((turn for turn in reversed(turns) if turn[0] == "assistant"), None)
    if last is None or not _of(last, "tool_use"):
        return
    where, block = last[1][0]
    if block["type"] not in ("thinking", "redacted_thinking"):
        raise Rejected(
            f"{where}.type: Expected `thinking` or `redacted_thinking`, but found `{block['type']}`. When "
            "`thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the "
            "lastmost set of `tool_use` and `tool_result` blocks)."
        )
