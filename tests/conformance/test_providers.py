"""Every format of providers over every shape of answer: the same words, calls, usage, reason, however the bytes fall.

A format is one row of ``SPOKEN``, a vendor's habit one of ``HABITS``. ``test_recut.py`` cuts at every single offset and
looks at what clients get; here it is what the decoders say.
"""

import itertools
import json
import os
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import EventStreamJSONParser
from botocore.session import get_session

from gateway.canonical.errors import (
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    MessageStart,
    Order,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole
from gateway.providers.azure_chat import AzureChatClient
from tests.conformance.cases import CREATED
from tests.conformance.pairs import PLANS, Answer
from tests.protocols.chat_streams import (
    ENDING,
    QUIRKS,
    ROLE,
    TEXT,
    USAGE,
    chunk,
    every,
    sse,
    stream,
)
from tests.protocols.chat_streams import (
    SPOKEN as SAID,
)
from tests.upstream.anthropic_messages import AnthropicMessages
from tests.upstream.azure import AzureChat
from tests.upstream.bedrock import Bedrock, event, exception
from tests.upstream.exchange import Received, Vendor
from tests.upstream.gemini import Gemini
from tests.upstream.openai_chat import OpenAIChat
from tests.upstream.openai_responses import OpenAIResponses


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """A format: who reads it, who speaks it, where, and the figures of a usage that it has no word for."""

    role: ClientRole
    vendor: Callable[[], Vendor]
    path: str = "/"
    query: str = ""
    untold: tuple[str, ...] = ()
    error: type[ProviderError] = ProviderUnavailable


SPOKEN = {
    "openai_chat": Spoken(role=OpenAiChatClient(), vendor=lambda: OpenAIChat(True)),
    "azure": Spoken(role=AzureChatClient(), vendor=lambda: AzureChat("k", "s", ())),
    "openai_responses": Spoken(role=OpenAiResponsesClient(clock=lambda: CREATED), vendor=lambda: OpenAIResponses(True)),
    "anthropic_messages": Spoken(role=AnthropicMessagesClient(clock=lambda: CREATED), vendor=AnthropicMessages),
    "gemini": Spoken(
        role=GeminiClient(clock=lambda: CREATED),
        vendor=Gemini,
        path="/v1beta/models/model-x:streamGenerateContent",
        query="alt=sse",
        untold=("cache_write",),
    ),
    "bedrock_converse": Spoken(
        role=BedrockConverseClient(clock=lambda: CREATED),
        vendor=lambda: Bedrock(None, None),
        path="/model/model-x/converse-stream",
        untold=("reasoning",),
        error=ProviderRateLimited,
    ),
}
ASKED = {
    "model": "model-x",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [],
    "contents": [],
    "max_tokens": 4000,
}


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer said. Arguments of ``calls`` are written anew; ``usage`` is without the vendor's object."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: Unified | None = Unified.STOP
    usage: Usage | None = None
    failure: type[ProviderError] | None = None


def told(name: str, answer: Answer) -> bytes:
    """What the simulated provider streams for a plan."""
    spoken, out = SPOKEN[name], b""
    body = json.dumps(ASKED).encode()
    arrived = Received(
        method="POST", path=spoken.path, query=spoken.query, headers={}, raw=body, body=ASKED, serial=1, status=200
    )
    vendor, plan = spoken.vendor(), answer.plan_of(name)
    for step in vendor.stream(arrived, plan):
        if step.is_closing and plan.fault == "error_event":
            return out + vendor.error_event(arrived, plan)
        if step.is_closing and plan.fault == "truncate":
            return out
        out += step.data
    return out


def expected(name: str, answer: Answer) -> Heard:
    said = answer.of(name)
    if said.error:
        is_cut = answer.plan.fault == "truncate"
        return Heard(text=said.text, finish=None, failure=StreamTruncated if is_cut else SPOKEN[name].error)
    assert said.usage is not None
    usage = msgspec.structs.replace(said.usage, **dict.fromkeys(SPOKEN[name].untold, 0))
    calls = tuple((tool, arguments) for _, tool, arguments in said.calls)
    return Heard(text=said.text, reasoning=said.reasoning, calls=calls, finish=said.finish, usage=usage)


def heard(events: list[Event]) -> Heard:
    """What the events say, each in its legal place."""
    order, calls, found = Order(), list[tuple[str, str]](), dict[str, Any]()
    texts: dict[type[Event], str] = dict.fromkeys((TextDelta, ReasoningDelta, RefusalDelta), "")
    for it in events:
        order.check(it, "up")
        match it:
            case TextDelta() | ReasoningDelta() | RefusalDelta() if not it.choice:
                texts[type(it)] += it.text
            case ToolCallStart():
                assert (it.index, bool(it.id)) == (len(calls), True)
                calls.append((it.name, ""))
            case ToolCallDelta():
                calls[it.index] = (calls[it.index][0], calls[it.index][1] + it.arguments)
            case Finish() if not it.choice:
                found["finish"] = it.reason.unified
            case UsageReport():
                found["usage"] = msgspec.structs.replace(it.usage, raw=None)
            case Failure():
                found["failure"] = type(it.error)
    assert sum(isinstance(it, MessageStart) for it in events) <= 1
    assert sum(isinstance(it, ToolCallEnd) for it in events) == (len(calls) if "finish" in found else 0)
    if "failure" in found:
        found.pop("usage", None)
    whole = tuple((name, compact(arguments)) for name, arguments in calls)
    words = dict(zip(("text", "reasoning", "refusal"), texts.values(), strict=True))
    return Heard(**{"finish": None, **words, "calls": whole, **found})


def compact(arguments: str) -> str:
    return json.dumps(json.loads(arguments or "{}"), ensure_ascii=False, separators=(",", ":"))


def decoded(role: ClientRole, *pieces: bytes) -> list[Event]:
    """The events of bytes that came in these pieces, up to a failure: nobody reads on after one."""
    decoder, frames = role.decoder("up"), []
    for piece in pieces:
        if not decoder.is_done:
            frames += decoder.feed(piece)
    frames += [] if decoder.is_done else decoder.end_of_bytes()
    events = [it for frame in frames for it in frame.events]
    failed = next((number for number, it in enumerate(events) if isinstance(it, Failure)), len(events))
    return events[: failed + 1]


def pieces(data: bytes, lot: random.Random) -> list[bytes]:
    """The data cut at arbitrary places, often in the middle of something."""
    offsets = sorted({0, len(data), *(lot.randrange(len(data)) for _ in range(lot.choice((1, 3, 30))))})
    return [data[start:stop] for start, stop in itertools.pairwise(offsets)]


PLANNED = [
    pytest.param(name, answer, id=f"{name}-{answer.name}")
    for name in SPOKEN
    for answer in PLANS
    if answer.name != "refusal"  # two formats have no word of their own for one
]


@pytest.mark.parametrize(("name", "answer"), PLANNED)
def test_every_format_says_the_same(name: str, answer: Answer) -> None:
    assert heard(decoded(SPOKEN[name].role, told(name, answer))) == expected(name, answer)


USED = Usage(input=12, output=7)
CALLS = (("weather", '{"city":"Zürich"}'), ("now", "{}"))
# How usage differs where a vendor of OpenAI's format tells more, or nothing.
FIGURES = {"deepseek": Usage(input=12, output=7, cache_read=8)}


def chat_error(**fields: Any) -> bytes:
    return b"".join(map(sse, (ROLE, TEXT[0], {"error": {"message": "No.", **fields}})))


def cut_short(failure: type[ProviderError]) -> Heard:
    return Heard(text="Hel", finish=None, failure=failure)


XAI = {**USAGE, "completion_tokens": 1, "total_tokens": 303, "completion_tokens_details": {"reasoning_tokens": 290}}
FILTER = {
    "choices": [],
    "prompt_filter_results": [{"prompt_index": 0}],
    "id": "",
    "model": "",
    "object": "",
    "created": 0,
}
LATER = {
    "choices": [{"index": 0, "content_filter_offsets": {}, "finish_reason": None}],
    "id": "",
    "model": "",
    "object": "",
}
TOTALS = [{**USAGE, "completion_tokens": count, "total_tokens": 12 + count} for count in (1, 4, 7)]
GEMINI_USED = {"usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19}}


def gemini(*parts: Any, finish: str | None = None, **more: Any) -> bytes:
    candidate = {"content": {"role": "model", "parts": list(parts)}, **({"finishReason": finish} if finish else {})}
    payload = {"candidates": [candidate], "modelVersion": "m", "responseId": "r", **more}
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\r\n\r\n"


def converse(*events: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(event(name, fields) for name, fields in events)


def at(index: int, **delta: Any) -> tuple[str, dict[str, Any]]:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta}


BEGUN = ("messageStart", {"role": "assistant"})
METERED = (
    "metadata",
    {"usage": {"inputTokens": 12, "outputTokens": 7, "totalTokens": 19}, "metrics": {"latencyMs": 5}},
)


def stopped(reason: str) -> tuple[str, dict[str, Any]]:
    return "messageStop", {"stopReason": reason}


def tool(index: int, name: str) -> tuple[str, dict[str, Any]]:
    start = {"toolUse": {"toolUseId": f"tooluse_{name}", "name": name}}
    return "contentBlockStart", {"contentBlockIndex": index, "start": start}


# What vendors do that their format does not foresee: format, bytes, and what is understood.
HABITS: dict[str, tuple[str, bytes, Heard]] = {
    **{
        name: (
            "openai_chat",
            data,
            Heard(
                text=said.text,
                reasoning=said.reasoning,
                calls=tuple((tool, arguments) for _, tool, arguments in said.calls),
                finish=Unified(said.finish or ""),
                usage=FIGURES.get(name, USED),
            ),
        )
        for name, (data, said) in QUIRKS.items()
    },
    "xai, output without reasoning": (
        "openai_chat",
        stream(*TEXT, ENDING[0], chunk(usage=XAI)),
        Heard(text=SAID, usage=Usage(input=12, output=291, reasoning=290)),
    ),
    "perplexity, usage that grows": (
        "openai_chat",
        stream(
            *(one for text, usage in zip(TEXT, TOTALS, strict=True) for one in every((text,), usage=usage)), ENDING[0]
        ),
        Heard(text=SAID, usage=USED),
    ),
    "two choices in one chunk": (
        "openai_chat",
        stream(
            {**ROLE, "choices": [{"index": 1, "delta": {"content": "no"}}, *TEXT[0]["choices"]]},
            {**ROLE, "choices": [{"index": number, "delta": {}, "finish_reason": "stop"} for number in (0, 1)]},
            chunk(usage=USAGE),
        ),
        Heard(text="Hel", usage=USED),
    ),
    "no word of usage": ("openai_chat", stream(ROLE, *TEXT, ENDING[0]), Heard(text=SAID)),
    "groq, a call it could not read": (
        "openai_chat",
        chat_error(type="invalid_request_error", code="tool_use_failed", failed_generation="<x"),
        cut_short(ProviderRejected),
    ),
    "vllm, an error with a number": (
        "openai_chat",
        chat_error(type="BadRequestError", code=400) + b"data: [DONE]\n\n",
        cut_short(ProviderRejected),
    ),
    "openrouter, an error with a finish": (
        "openai_chat",
        stream(ROLE, TEXT[0], chunk({"content": ""}, "error", error={"code": 502, "message": "Down."})),
        cut_short(ProviderUnavailable),
    ),
    "a limit within": ("openai_chat", chat_error(code="rate_limit_exceeded"), cut_short(ProviderRateLimited)),
    "no end at all": ("openai_chat", b"".join(map(sse, (ROLE, TEXT[0]))), cut_short(StreamTruncated)),
    "no chunk": ("openai_chat", b"".join(map(sse, (ROLE, TEXT[0], [1]))), cut_short(ProviderProtocolError)),
    "azure, opinions": (
        "azure",
        stream(FILTER, ROLE, *TEXT, ENDING[0], LATER, ENDING[1]),
        Heard(text=SAID, usage=USED),
    ),
    "gemini, a call without id and arguments": (
        "gemini",
        gemini({"functionCall": {"name": "now"}}, finish="STOP", **GEMINI_USED),
        Heard(calls=(("now", "{}"),), finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "gemini, a prompt that is blocked": (
        "gemini",
        b'data: {"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":12}}\r\n\r\n',
        Heard(finish=Unified.CONTENT_FILTER, usage=Usage(input=12)),
    ),
    "gemini, thoughts apart": (
        "gemini",
        gemini({"text": "Hm.", "thought": True})
        + gemini(
            {"text": SAID},
            finish="STOP",
            usageMetadata={
                "promptTokenCount": 12,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 2,
                "totalTokenCount": 19,
            },
        ),
        Heard(text=SAID, reasoning="Hm.", usage=Usage(input=12, output=7, reasoning=2)),
    ),
    "gemini, a bare error": (
        "gemini",
        gemini({"text": "Hel"}) + b'{"error": {"code": 503, "message": "Busy.", "status": "UNAVAILABLE"}}\n',
        cut_short(ProviderUnavailable),
    ),
    "bedrock, usage before the end": (
        "bedrock_converse",
        converse(BEGUN, at(0, text=SAID), METERED, stopped("end_turn")),
        Heard(text=SAID, usage=USED),
    ),
    "bedrock, a call without arguments": (
        "bedrock_converse",
        converse(BEGUN, tool(0, "now"), at(0, toolUse={"input": ""}), ("contentBlockStop", {"contentBlockIndex": 0}))
        + converse(stopped("tool_use"), METERED),
        Heard(calls=(("now", "{}"),), finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "bedrock, a guardrail": (
        "bedrock_converse",
        converse(BEGUN, at(0, text="Hel"), stopped("guardrail_intervened"), METERED),
        Heard(text="Hel", finish=Unified.CONTENT_FILTER, usage=USED),
    ),
    **{
        f"bedrock, {name}": (
            "bedrock_converse",
            converse(BEGUN, at(0, text="Hel")) + exception(name, "No."),
            cut_short(kind),
        )
        for name, kind in {
            "throttlingException": ProviderRateLimited,
            "modelStreamErrorException": ProviderUnavailable,
            "serviceUnavailableException": ProviderUnavailable,
            "internalServerException": ProviderUnavailable,
            "validationException": ProviderRejected,
        }.items()
    },
    "bedrock, a broken frame": (
        "bedrock_converse",
        converse(BEGUN, at(0, text="Hel")) + Bedrock.garbage,
        cut_short(ProviderProtocolError),
    ),
}


@pytest.mark.parametrize(("name", "data", "said"), HABITS.values(), ids=HABITS.keys())
def test_every_habit_of_a_vendor_is_understood(name: str, data: bytes, said: Heard) -> None:
    assert heard(decoded(SPOKEN[name].role, data)) == said


STREAMS = [
    *(pytest.param(name, told(name, answer), id=f"{name}-{answer.name}") for name in SPOKEN for answer in PLANS),
    *(pytest.param(name, data, id=habit) for habit, (name, data, _) in HABITS.items()),
]


@pytest.mark.parametrize(("name", "data"), STREAMS)
def test_cuts_at_arbitrary_bytes_change_no_event(monkeypatch: pytest.MonkeyPatch, name: str, data: bytes) -> None:
    def events(*parts: bytes) -> list[str]:
        numbers = itertools.count(1)
        monkeypatch.setattr(os, "urandom", lambda size: next(numbers).to_bytes(size, "big"))
        return [repr(it) for it in decoded(SPOKEN[name].role, *parts)]

    monkeypatch.setattr("time.time", lambda: float(CREATED))
    whole, lot = events(data), random.Random(len(data))
    assert events(*(data[offset : offset + 1] for offset in range(len(data)))) == whole
    for _ in range(20):
        assert events(*pieces(data, lot)) == whole


def test_the_frames_of_bedrock_are_those_that_aws_reads() -> None:
    shape = (
        get_session().get_service_model("bedrock-runtime").operation_model("ConverseStream").get_event_stream_output()
    )
    name = "bedrock_converse"
    for answer in (one for one in PLANS if one.plan.fault != "error_event"):
        buffer, read = EventStreamBuffer(), list[Any]()
        buffer.add_data(told(name, answer))
        for message in buffer:
            read.append(EventStreamJSONParser().parse(message.to_response_dict(), shape))
        deltas = [one["contentBlockDelta"]["delta"] for one in read if "contentBlockDelta" in one]
        text = "".join(delta.get("text", "") for delta in deltas)
        assert text == heard(decoded(SPOKEN[name].role, told(name, answer))).text
        assert all(set(one) <= set(shape.members) | {"ResponseMetadata"} for one in read)
