"""The bytes the mock upstream answers with, all made beforehand: per model one stream in each of two formats, OpenAI's
and Anthropic's, and one whole answer of OpenAI's.

The model's name is the order: `burst-16` (16 one-word chunks in one write), `burst-4x64` (64 chunks, 4 in each write,
one write after the other), `first-16` (the first word at once, the others 5 ms later), `paced-20x400` and
`slow-0.25x1000` (20 and 0.25 chunks a second). The first word of every answer is FIRST_WORD.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

FIRST_WORD = "lorem"
WORDS = "the of and to in is that for it with as was on be by at this have from or one had not but what all".split()
MODEL_PATTERN = re.compile(r"(?P<kind>burst|first|paced|slow)-(?:(?P<rate>[\d.]+)x)?(?P<chunks>\d+)")
PROMPT_TOKENS = 42
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"x-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Script(NamedTuple):
    """One model's stream: `opening` holds the head, the role and the first word; `rest` all after it, per write."""

    kind: str
    chunks: int
    period_s: float
    opening: bytes
    rest: list[bytes]
    words: list[bytes]
    stamp: tuple[bytes, bytes]
    frame: Callable[[bytes], bytes]
    closing: bytes


def dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def frame(payload: bytes) -> bytes:
    """One server-sent event in one HTTP chunk, as OpenAI sends it."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def usage_of(chunks: int) -> dict[str, object]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": chunks,
        "total_tokens": PROMPT_TOKENS + chunks,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def chunk_of(model: str, choices: list[object], usage: object) -> bytes:
    body = {
        "id": "chatcmpl-Bench0000000000000000000001",
        "object": "chat.completion.chunk",
        "created": 1763000000,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_bench",
        "choices": choices,
    }
    return dump(body if usage is False else body | {"usage": usage})


def choice(delta: dict[str, object], finish: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


class Wording(NamedTuple):
    """How a format says a stream: what comes before its first word, each word, and what comes after the last."""

    opening: bytes
    word: Callable[[str], bytes]
    frame: Callable[[bytes], bytes]
    closing: bytes


def openai_wording(model: str, chunks: int, with_usage: bool) -> Wording:
    usage: object = None if with_usage else False
    role = frame(chunk_of(model, choice({"role": "assistant", "content": "", "refusal": None}), usage))
    closing = frame(chunk_of(model, choice({}, "stop"), usage))
    if with_usage:
        closing += frame(chunk_of(model, [], usage_of(chunks)))
    closing += frame(b"[DONE]")
    return Wording(role, lambda word: chunk_of(model, choice({"content": word}), usage), frame, closing)


def named(payload: bytes) -> bytes:
    """The same as Anthropic sends it: the event's name stands before it, and within it."""
    kind = json.loads(payload)["type"].encode()
    event = b"event: " + kind + b"\ndata: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def anthropic_wording(model: str, chunks: int) -> Wording:
    usage = {"input_tokens": PROMPT_TOKENS, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    message: dict[str, object] = {
        "id": "msg_bench",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
    }
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    opened = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    ended: dict[str, object] = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    ended |= {"usage": {**usage, "output_tokens": chunks}}

    def word(text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return dump({"type": "content_block_delta", "index": 0, "delta": delta})

    begun = ({"type": "message_start", "message": message}, opened, {"type": "ping"})
    closing = ({"type": "content_block_stop", "index": 0}, ended, {"type": "message_stop"})
    opening, close = (b"".join(named(dump(event)) for event in events) for events in (begun, closing))
    return Wording(opening, word, named, close)


@lru_cache(maxsize=256)
def script_of(model: str, with_usage: bool, is_anthropic: bool = False) -> Script:
    """The stream of a model, or ValueError when its name is none of ours."""
    match = MODEL_PATTERN.fullmatch(model)
    if match is None:
        raise ValueError(f"model {model!r} is not burst-N, burst-KxN, first-N, paced-RxN or slow-RxN")
    chunks, rate = int(match["chunks"]), float(match["rate"] or 1)
    said = anthropic_wording(model, chunks) if is_anthropic else openai_wording(model, chunks, with_usage)
    opening = STREAM_HEAD + said.opening + said.frame(said.word(FIRST_WORD))
    words = [said.frame(said.word(" " + word)) for word in WORDS]
    before, after = said.word(" @STAMP").split(b"STAMP")
    closing = said.closing + b"0\r\n\r\n"
    rest = [words[index % len(words)] for index in range(1, chunks)]
    size = int(rate) if match["kind"] == "burst" and match["rate"] else chunks
    writes = [b"".join(rest[at : at + size]) for at in range(0, len(rest), size)] or [b""]
    writes[-1] += closing
    return Script(match["kind"], chunks, 1 / rate, opening, writes, words, (before, after), said.frame, closing)


@lru_cache(maxsize=256)
def answer_of(model: str) -> bytes:
    """The whole non-streaming response of a model."""
    chunks = script_of(model, True).chunks
    text = " ".join([FIRST_WORD, *(WORDS[index % len(WORDS)] for index in range(1, chunks))])
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    body = {
        "id": "chatcmpl-Bench0000000000000000000001",
        "object": "chat.completion",
        "created": 1763000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage_of(chunks),
        "service_tier": "default",
        "system_fingerprint": "fp_bench",
    }
    return respond(200, dump(body))


def respond(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body
