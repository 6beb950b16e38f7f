"""A provider that needs nothing: no network, no key, always the same answers.

It lets a laptop without internet try every way a stream can go. Each piece it says is exactly one token of
``o200k``, so that what a client counts is what the meter counts.
"""

import asyncio
import hashlib
import itertools
import math
import time
import uuid
from collections.abc import AsyncGenerator, Iterator

import msgspec

from gateway.canonical.errors import ErrorCode, ProviderUnavailable, RequestError
from gateway.canonical.events import (
    Batch,
    Embeddings,
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.request import Loss, Message, Request, Text, Tokens, ToolResult
from gateway.canonical.usage import Usage
from gateway.metering.tokens import count_input, counter
from gateway.providers.provider import Call, Hangup, Timeouts

_ANSWER = (
    "Hello from the demo model . Every word you see was paid for before it was sent : the gateway held credit , "
    "counted this token , and only then let it pass . When the credit ends , so does the answer , in the middle of "
    "a sentence if it must . Ask again with another model to see how it thinks , calls tools or fails ."
)
_THOUGHT = "The user wants to see some thinking . I will think for a moment and then answer ."
_VECTOR_LENGTH, _VECTOR_LENGTH_MAX = 256, 4096
_ENDLESS = "This is the song that does not end ; it goes on and on , my friend ."
_AFTER_TOOL = "The tool has answered and so can I ."


class _Model(msgspec.Struct, frozen=True):
    delay_s: float
    says: str = _ANSWER
    thinks: str = ""
    calls_tool: bool = False
    fails: bool = False
    endless: bool = False
    embeds: bool = False


_MODELS = {
    "fast": _Model(0.002),
    "slow": _Model(0.2),
    "reasoning": _Model(0.02, thinks=_THOUGHT),
    "tool": _Model(0.02, calls_tool=True),
    "error": _Model(0.02, fails=True),
    "endless": _Model(0.02, says=_ENDLESS, endless=True),
    "embed": _Model(0.02, embeds=True),
}


class DemoProvider:
    """The models ``fast``, ``slow``, ``reasoning``, ``tool``, ``error`` and ``endless``; ``embed`` makes vectors."""

    name = "demo"
    vendor = "demo"
    wire: str | None = None
    timeouts = Timeouts()
    hangup = Hangup()
    models = tuple(_MODELS)

    def knows(self, model: str) -> bool:
        """Whether the model is one of ``models``."""
        return model in _MODELS

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        """Never: it bills what it sends."""
        return False

    def losses(self, call: Call) -> tuple[Loss, ...]:
        """None that would be worth a word: it is no model, and nothing changes what it says."""
        return ()

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """The model's answer, a batch per token."""
        model = _MODELS[call.model]
        _check_kind(model, call)
        input_tokens = await count_input(call.request, counter())
        yield Batch([Frame((MessageStart(uuid.uuid4().hex, f"demo/{call.model}", int(time.time())),))])
        if call.request.embedding is not None:
            await asyncio.sleep(model.delay_s)
            report = UsageReport(Usage(input=input_tokens))
            yield Batch([Frame((await _embeddings(call.request),)), Frame((report,))], is_last=True)
            return
        said = thought = 0
        reason = FinishReason(Unified.STOP)
        for event in _events(model, call.request):
            if said == call.request.output_tokens_max:
                reason = FinishReason(Unified.LENGTH)
                break
            if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
                said += 1
                thought += isinstance(event, ReasoningDelta)
                await asyncio.sleep(model.delay_s)
            elif isinstance(event, ToolCallEnd):
                reason = FinishReason(Unified.TOOL_CALLS)
            yield Batch([Frame((event,))])
            if isinstance(event, Failure):
                return
        usage = Usage(input=input_tokens, output=said, reasoning=thought)
        yield Batch([Frame((Finish(reason),)), Frame((UsageReport(usage),))], is_last=True)

    async def aclose(self) -> None:
        """Nothing to give up."""


def _events(model: _Model, request: Request) -> Iterator[Event]:
    if model.thinks:
        yield from (ReasoningDelta(piece) for piece in _pieces(model.thinks))
        yield ReasoningEnd("demo-signature")
    if model.calls_tool and not _has_tool_result(request):
        yield from _tool_call(request)
        return
    words = _pieces(_AFTER_TOOL if model.calls_tool else model.says)
    if model.endless:
        again = [f" {words[0]}", *words[1:]]
        yield from (TextDelta(piece) for piece in itertools.chain(words, itertools.cycle(again)))
    if model.fails:
        words = words[:5]
    yield from (TextDelta(piece) for piece in words)
    if model.fails:
        yield Failure(ProviderUnavailable("The demo provider fails on purpose.", provider="demo"))


def _check_kind(model: _Model, call: Call) -> None:
    wanted = call.request.embedding
    if model.embeds != (wanted is not None):
        what = "makes embeddings and nothing else" if model.embeds else "makes no embeddings; demo/embed does"
        raise RequestError(f"demo/{call.model} {what}.", code=ErrorCode.UNSUPPORTED_VALUE, param="model")
    if wanted is not None and (wanted.dimensions or 0) > _VECTOR_LENGTH_MAX:
        text = f"demo/embed makes at most {_VECTOR_LENGTH_MAX} dimensions."
        raise RequestError(text, code=ErrorCode.INVALID_VALUE, param="dimensions")


async def _embeddings(request: Request) -> Embeddings:
    wanted = request.embedding.dimensions if request.embedding is not None else None
    vectors = []
    for message in request.messages:
        vectors.append(_vector(message, wanted or _VECTOR_LENGTH))
        await asyncio.sleep(0)  # others are served in between
    return Embeddings(tuple(vectors))


def _vector(message: Message, length: int) -> msgspec.Raw:
    """Each word adds 1 at four places of its own or takes it away, so texts that share words are near."""
    words: list[str] = []
    for part in message.parts:
        if isinstance(part, Text):
            words += part.text.lower().split() or [part.text]
        elif isinstance(part, Tokens):
            words += map(str, part.ids)
    numbers = [0.0] * length
    for word in words:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for at in range(0, 16, 4):
            place, sign = divmod(int.from_bytes(digest[at : at + 4], "big"), 2)
            numbers[place % length] += 1.0 if sign else -1.0
    norm = math.sqrt(sum(number * number for number in numbers))
    if not norm:  # words that took each other away
        numbers[0] = norm = 1.0
    return msgspec.Raw(msgspec.json.encode([number / norm for number in numbers]))


def _tool_call(request: Request) -> Iterator[Event]:
    name = request.tools[0].name if request.tools else "get_weather"
    yield ToolCallStart(0, f"call_{uuid.uuid4().hex[:24]}", name)
    yield from (ToolCallDelta(0, fragment) for fragment in ('{"', "city", '":"', "Paris", '"}'))
    yield ToolCallEnd(0)


def _pieces(text: str) -> list[str]:
    """Words with the space before them, except the first and before punctuation."""
    words = text.split(" ")
    return [words[0], *(word if word in ".,:;" else " " + word for word in words[1:])]


def _has_tool_result(request: Request) -> bool:
    return any(isinstance(part, ToolResult) for part in request.messages[-1].parts)
