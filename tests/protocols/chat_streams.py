"""Streams of Chat Completions with every quirk we know of, and the strictest client we can think of to read them."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.canonical.events import Event, Failure, Frame, Order
from gateway.metering.meter import Bill, Meter
from gateway.metering.prices import Price, PriceSchedule
from gateway.metering.tokens import counter
from gateway.protocols.ai_sdk_4 import DataStreamEncoder
from gateway.protocols.openai_chat import NAME
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_chat.server import AnswerEncoder, ChunkEncoder
from gateway.protocols.wire import Encoder, StreamMeta

CLIENT = OpenAiChatClient()
META, FOREIGN = StreamMeta("req1", 1_700_000_000, NAME), StreamMeta("req1", 1_700_000_000, None)
SCHEDULE = PriceSchedule(Price(input=150_000, output=600_000, cache_read=75_000))
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
DONE = b"data: [DONE]\n\n"


def sse(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1_700_000_001, "model": "m"}
    return {**head, "choices": choices, **more}


def call(index: int | None = None, id: Any = None, name: str | None = None, args: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", args)) if value is not None}
    fields = {"index": index, "id": id, "function": function}
    return {key: value for key, value in fields.items() if value is not None}


ROLE = chunk({"role": "assistant", "content": ""})
TEXT = [chunk({"content": text}) for text in ("Hel", "lo ", "Zü😀\u2028!")]
ENDING = [chunk({}, "stop"), chunk(usage=USAGE)]
CALLS = [("call_a", "weather", '{"city":"Zürich"}'), ("call_b", "now", "{}")]
SPOKEN = "Hello Zü😀\u2028!"


class Said(msgspec.Struct):
    """What a client has read: the official ones concatenate whatever they are sent."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[tuple[str, str, str]] = []
    finish: str | None = None


def heard(output: bytes, *, include_usage: bool = True) -> dict[int, Said]:
    """Read a stream as strictly as the strictest client does; returns what each choice said."""
    assert output.endswith(DONE) and output.count(b"[DONE]") == 1
    frames = output.split(b"\n\n")
    assert frames.pop() == b"" and frames.pop() == b"data: [DONE]"
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames), "one line per event"
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
    with_usage = [number for number, one in enumerate(chunks) if one.get("usage")]
    assert with_usage == ([len(chunks) - 1] if include_usage else [])
    assert not include_usage or chunks[-1]["choices"] == []
    said: dict[int, Said] = {}
    roles: dict[int, str] = {}
    for one in chunks:
        for choice in one["choices"]:
            index, delta = choice["index"], choice["delta"]
            at = said.setdefault(index, Said())
            assert at.finish is None, "nothing follows the finish of a choice"
            roles[index] = roles.get(index, "") + (delta.get("role") or "")
            at.text += delta.get("content") or ""
            at.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            at.refusal += delta.get("refusal") or ""
            for fragment in delta.get("tool_calls") or ():
                function = fragment["function"]
                if fragment["index"] == len(at.calls):
                    assert isinstance(fragment["id"], str) and fragment["id"]
                    at.calls.append((fragment["id"], function["name"], ""))
                else:
                    assert not fragment.get("id") and not function.get("name"), "ids and names are concatenated"
                identity, name, arguments = at.calls[fragment["index"]]
                assert isinstance(function.get("arguments") or "", str)
                at.calls[fragment["index"]] = (identity, name, arguments + (function.get("arguments") or ""))
            at.finish = choice.get("finish_reason")
    assert set(roles.values()) <= {"assistant", ""}, "a role is concatenated"
    return said


def decode(*chunks: bytes) -> list[list[Frame]]:
    """The frames of each read, the end of the bytes included."""
    decoder = CLIENT.decoder("up")
    return [*(decoder.feed(one) for one in chunks), decoder.end_of_bytes()]


def events_of(*chunks: bytes) -> list[Event]:
    return [event for read in decode(*chunks) for frame in read for event in frame.events]


def relayed(encoder: Encoder, *chunks: bytes) -> tuple[bytes, Bill, list[str]]:
    """What a client gets for these bytes, what it is charged, and what went wrong; the exchange in small."""
    meter, order, out, failures = Meter(SCHEDULE, counter(), 10), Order(), [], []
    for read in decode(*chunks):
        for frame in read:
            failed = [event.error for event in frame.events if isinstance(event, Failure)]
            if failed:
                failures.append(type(failed[0]).__name__)
                out.append(encoder.fail(failed[0]))
                return b"".join(out), meter.bill(complete=False), failures
            for event in frame.events:
                order.check(event, "up")
            meter.forwarded(meter.weigh(frame))
            out.append(encoder.encode(frame))
    out.append(encoder.end(meter.reported or meter.counted))
    return b"".join(out), meter.bill(complete=True), failures


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "chunks as they came": lambda: ChunkEncoder(META, include_usage=True),
    "chunks without usage": lambda: ChunkEncoder(META, include_usage=False),
    "chunks of our own": lambda: ChunkEncoder(FOREIGN, include_usage=True),
    "a whole answer": lambda: AnswerEncoder(ChunkEncoder(META, include_usage=True)),
    "a data stream": lambda: DataStreamEncoder(FOREIGN),
}
FRAGMENTS = [
    chunk({"tool_calls": [call(0, "call_a", "weather", "")]}),
    chunk({"tool_calls": [call(0, args='{"city":')]}),
    chunk({"tool_calls": [call(0, args='"Zürich"}')]}),
    chunk({"tool_calls": [call(1, "call_b", "now", "{}")]}),
]
WHOLE_CALLS = [CALLS[0], CALLS[1]]


def stream(*chunks: dict[str, Any], end: bytes = DONE) -> bytes:
    return b"".join(map(sse, chunks)) + end


def other_choice(one: dict[str, Any], index: int) -> dict[str, Any]:
    return {**one, "choices": [{**choice, "index": index} for choice in one["choices"]]}


def calling(*calls: dict[str, Any], finish: str = "tool_calls") -> bytes:
    return stream(ROLE, *(chunk({"tool_calls": [one]}) for one in calls), chunk({}, finish), chunk(usage=USAGE))


PLAIN = Said(text=SPOKEN, finish="stop")
CALLED = Said(calls=WHOLE_CALLS, finish="tool_calls")
THOUGHT = Said(text=SPOKEN, reasoning="Hm.", finish="stop")
CITY = '{"city":"Zürich"}'
LAST = chunk({"content": "Zü😀\u2028!"}, "stop", usage=USAGE)
A, B = call(0, "call_a", "weather", CITY), call(1, "call_b", "now", "{}")


def every(chunks: Iterable[dict[str, Any]], delta: dict[str, Any] | None = None, **more: Any) -> list[dict[str, Any]]:
    """The same chunks, each with more in it: ``delta`` within its choice's delta, the rest at its top."""
    return [
        {**one, "choices": [{**it, "delta": {**(delta or {}), **it["delta"]}} for it in one["choices"]], **more}
        for one in chunks
    ]


def part(kind: str, inner: Any) -> dict[str, Any]:
    return {"type": kind, kind: inner}


# Every quirk of the compatible servers, as bytes, and what a client must have read in the end.
QUIRKS: dict[str, tuple[bytes, Said]] = {
    "openai": (stream(ROLE, *TEXT, *ENDING), PLAIN),
    "openai calls": (stream(ROLE, *FRAGMENTS, chunk({}, "tool_calls"), chunk(usage=USAGE)), CALLED),
    "groq": (
        stream(
            *(chunk({"role": "assistant"}, x_groq={"id": "r"}), chunk({"reasoning": "Hm."}), *TEXT),
            chunk({}, "stop", x_groq={"usage": USAGE}, usage=USAGE),
        ),
        THOUGHT,
    ),
    "deepseek": (
        b": keep-alive\n\n"
        + stream(
            *every((ROLE, chunk({"reasoning_content": "Hm.", "content": None}), *TEXT), usage=None),
            chunk({"content": ""}, "stop", usage={**USAGE, "prompt_cache_hit_tokens": 8}),
        ),
        THOUGHT,
    ),
    "vllm": (stream(*every((ROLE, *TEXT, chunk({"content": ""}, "stop")), usage=USAGE), chunk(usage=USAGE)), PLAIN),
    "ollama, every call index 0": (calling(A, {**B, "index": 0}), CALLED),
    "ollama, no index": (calling(*({k: v for k, v in one.items() if k != "index"} for one in (A, B))), CALLED),
    "openrouter": (
        b": OPENROUTER PROCESSING\n\n" * 2
        + stream(ROLE, chunk({"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text"}]}), *TEXT, *ENDING),
        THOUGHT,
    ),
    "xai": (stream(*TEXT, *ENDING).replace(b',"finish_reason":null', b""), PLAIN),
    "mistral": (
        stream(
            ROLE,
            chunk({"tool_calls": [call(None, *one) for one in CALLS]}, "tool_calls", usage=USAGE),
        ),
        CALLED,
    ),
    "mistral, names repeated": (
        calling(call(0, "call_a", "weather", '{"city":'), call(0, None, "", '"Zürich"}'), B),
        CALLED,
    ),
    "mistral, parts": (
        stream(
            *(ROLE, chunk({"content": [part("thinking", [part("text", "Hm.")])]})),
            *(chunk({"content": [part("text", "Hello "), {"type": "reference"}]}), LAST),
        ),
        THOUGHT,
    ),
    "moonshot": (
        stream(ROLE, chunk({"content": "Hello "}), LAST).replace(b'"object":"chat.completion.chunk",', b""),
        PLAIN,
    ),
    "anthropic, index from 1": (
        calling(call(1, "call_a", "weather", ""), call(1, args=CITY), {**B, "index": 2}),
        CALLED,
    ),
    "perplexity": (stream(*every((ROLE, *TEXT, chunk({}, "stop")), usage=USAGE, citations=["x"])), PLAIN),
    "cerebras": (calling(A, B).replace(b',"finish_reason":null', b""), CALLED),
    "no terminator": (stream(ROLE, *TEXT, *ENDING, end=b""), PLAIN),
    "crlf, no space": (stream(ROLE, *TEXT, *ENDING).replace(b"\n", b"\r\n").replace(b"data: ", b"data:"), PLAIN),
    "several data lines": (stream(ROLE, *TEXT, *ENDING).replace(b',"choices"', b',\ndata: "choices"'), PLAIN),
    "role on every chunk": (stream(*every((ROLE, *TEXT), {"role": "assistant"}), *ENDING), PLAIN),
    "ids repeated": (
        calling(call(0, "call_a", "weather", '{"city":'), call(0, "call_a", "weather", '"Zürich"}'), B),
        CALLED,
    ),
    "stop in spite of calls": (calling(A, B, finish="stop"), CALLED),
    "arguments as an object": (
        calling(call(0, "call_a", "weather", {"city": "Zürich"}), call(1, "call_b", "now", {})),
        CALLED,
    ),
    "empty finish reasons": (stream(ROLE, *TEXT, *ENDING).replace(b":null}", b':""}'), PLAIN),
    "odd numbers": (stream(*every((ROLE, *TEXT), id=7, created=1.7e9), *ENDING), PLAIN),
    "text after the end": (stream(ROLE, *TEXT, ENDING[0], chunk({"content": "more"}), ENDING[1]), PLAIN),
}
