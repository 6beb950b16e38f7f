"""The strictest reader of UI message streams we can think of: ai@5.0.0, which knows few fields and forgives nothing."""

import json
from typing import Any

import pytest

# From `uiMessageChunkSchema` of ai@5.0.0: what a part must have, and what it may have.
STRICT: dict[str, tuple[set[str], set[str]]] = {
    "start": (set(), {"messageId", "messageMetadata"}),
    "start-step": (set(), set()),
    "finish-step": (set(), set()),
    "finish": (set(), {"messageMetadata"}),
    "abort": (set(), set()),
    "error": ({"errorText"}, set()),
    "message-metadata": ({"messageMetadata"}, set()),
    **{f"{kind}-start": ({"id"}, {"providerMetadata"}) for kind in ("text", "reasoning")},
    **{f"{kind}-delta": ({"id", "delta"}, {"providerMetadata"}) for kind in ("text", "reasoning")},
    **{f"{kind}-end": ({"id"}, {"providerMetadata"}) for kind in ("text", "reasoning")},
    "tool-input-start": ({"toolCallId", "toolName"}, {"providerExecuted", "dynamic"}),
    "tool-input-delta": ({"toolCallId", "inputTextDelta"}, set()),
    "tool-input-available": ({"toolCallId", "toolName", "input"}, {"providerExecuted", "providerMetadata", "dynamic"}),
    "tool-output-available": ({"toolCallId", "output"}, {"providerExecuted", "dynamic"}),
    "tool-output-error": ({"toolCallId", "errorText"}, {"providerExecuted", "dynamic"}),
}
NEWER: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "5": {
        "finish": (set(), {"messageMetadata", "finishReason"}),
        "tool-input-error": ({"toolCallId", "toolName", "input", "errorText"}, set()),
    },
    "6": {"abort": (set(), {"reason"})},
}
DONE = "data: [DONE]"


def known(compat: str) -> dict[str, tuple[set[str], set[str]]]:
    levels = {"5-strict": (), "5": ("5",), "6": ("5", "6"), "7": ("5", "6")}[compat]
    return STRICT | {kind: fields for level in levels for kind, fields in NEWER[level].items()}


def chunks(output: bytes, compat: str = "5-strict") -> list[dict[str, Any]]:
    """The parts of a whole stream; fails where a client would, or would wait for ever."""
    text = output.decode()
    assert "\r" not in text and text.endswith("\n\n")
    frames = [frame for frame in text.split("\n\n")[:-1] if not frame.startswith(":")]
    assert frames[-1] == DONE and frames.count(DONE) == 1
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames[:-1]), "one line per event"
    found = [json.loads(frame[6:], parse_constant=lambda name: pytest.fail(name)) for frame in frames[:-1]]
    for chunk in found:
        _check_fields(chunk, compat)
    return found


def _check_fields(chunk: dict[str, Any], compat: str) -> None:
    kind = chunk["type"]
    must, may = ({"data"}, {"id", "transient"}) if kind.startswith("data-") else known(compat)[kind]
    assert must <= chunk.keys() - {"type"} <= must | may, chunk
    for name in must - {"data", "messageMetadata", "input", "output"}:
        assert isinstance(chunk[name], str), chunk


def message(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message on the user's screen, put together as `processUIMessageStream` does it."""
    parts: list[dict[str, Any]] = []
    active: dict[str, dict[str, Any]] = {}
    calls: dict[str, dict[str, Any]] = {}
    built: dict[str, Any] = {"role": "assistant", "parts": parts}
    is_over = False
    for chunk in found:
        assert not is_over, "nothing follows the end"
        kind = chunk["type"]
        head, _, tail = kind.rpartition("-")
        if kind.startswith("data-"):
            if not chunk.get("transient"):
                parts.append({"type": kind, "data": chunk["data"]})
        elif head in ("text", "reasoning"):
            _take(chunk, head, tail, parts, active)
        elif head.startswith("tool-"):
            _take_call(chunk, tail, parts, calls)
        else:
            built |= {"id": chunk["messageId"]} if "messageId" in chunk else {}
            built |= {"metadata": chunk["messageMetadata"]} if "messageMetadata" in chunk else {}
            built |= {"error": chunk["errorText"]} if kind == "error" else {}
            if kind == "start-step":
                parts.append({"type": "step-start"})
            is_over = kind in ("finish", "abort", "error")
    assert is_over and not active, "everything that was opened is closed"
    return built


def _take(
    chunk: dict[str, Any], kind: str, what: str, parts: list[dict[str, Any]], active: dict[str, dict[str, Any]]
) -> None:
    own = {"providerMetadata": chunk["providerMetadata"]} if "providerMetadata" in chunk else {}
    number = sum(part["type"] in ("text", "reasoning") for part in parts)
    if what == "start":
        assert chunk["id"] == str(number), "ids are dense"
        active[chunk["id"]] = {"type": kind, "text": "", **own}
        parts.append(active[chunk["id"]])
        return
    part = active[chunk["id"]]
    assert part["type"] == kind
    part |= own
    if what == "end":
        del active[chunk["id"]]
    else:
        assert chunk["delta"], "an empty delta says nothing"
        part["text"] += chunk["delta"]


def _take_call(chunk: dict[str, Any], what: str, parts: list[dict[str, Any]], calls: dict[str, dict[str, Any]]) -> None:
    identity = chunk["toolCallId"]
    if what == "start":
        assert identity not in calls
        calls[identity] = {
            "type": f"tool-{chunk['toolName']}",
            "toolCallId": identity,
            "state": "input-streaming",
            "typed": "",
        }
        parts.append(calls[identity])
    elif what == "delta":
        calls[identity]["typed"] += chunk["inputTextDelta"]
    elif what == "available":
        calls[identity] |= {"state": "input-available", "input": chunk["input"]}
    else:
        calls[identity] |= {"state": "output-error", "errorText": chunk["errorText"]}
        calls[identity] |= {"rawInput": chunk["input"]} if "input" in chunk else {}
