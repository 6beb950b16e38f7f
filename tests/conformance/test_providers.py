"""Every format of providers over every shape of answer: the same words, calls, usage, reason, however the bytes fall.

A format is one row of ``SPOKEN``, a vendor's habit one of ``habits.py``. ``test_recut.py`` cuts at every single offset
and looks at what clients get; here it is what the decoders say.
"""

import itertools
import json
import os
import random
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import EventStreamJSONParser
from botocore.session import get_session

from gateway.canonical.errors import (
    ProviderError,
    ProviderRateLimited,
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
    UsageReport,
)
from gateway.config import BuiltInType
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole
from gateway.providers.azure_chat import AzureChatClient
from gateway.providers.quirky_chat import QuirkyChatClient
from gateway.providers.rows import ROWS
from gateway.providers.vertex import VertexAnthropicClient
from tests.conformance.answers import PLANS, Answer
from tests.conformance.cases import CREATED
from tests.conformance.habits import HABITS, Heard
from tests.conformance.losses import UNHEARD
from tests.upstream.anthropic_messages import AnthropicMessages
from tests.upstream.azure import AzureChat
from tests.upstream.bedrock import Bedrock
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


# What reads the answers of each type that a configuration can name.
BY_TYPE = {
    "openai": "openai_chat",
    "openai_responses": "openai_responses",
    "anthropic": "anthropic_messages",
    "gemini": "gemini",
    "vertex": "gemini",
    "vertex_anthropic": "anthropic_messages",
    "bedrock": "bedrock_converse",
    "azure": "azure",
}


def request_to(spoken: Spoken) -> Received:
    """The request as it arrives."""
    body = json.dumps(ASKED).encode()
    return Received(
        method="POST", path=spoken.path, query=spoken.query, headers={}, raw=body, body=ASKED, serial=1, status=200
    )


def told(name: str, answer: Answer) -> bytes:
    """What the simulated provider streams for a plan."""
    spoken, out = SPOKEN[name], b""
    arrived, vendor, plan = request_to(spoken), spoken.vendor(), answer.plan_of(name)
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


@pytest.mark.parametrize("name", SPOKEN)
def test_a_whole_answer_says_the_same_after_empty_lines_too(name: str) -> None:
    spoken = SPOKEN[name]
    for answer in (one for one in PLANS if one.plan.fault == "none" and one.name != "refusal"):
        body = spoken.vendor().whole(request_to(spoken), answer.plan_of(name)).body
        for lines in (b"", b"\n\n"):
            events = [it for frame in spoken.role.decode_response(lines + body, "up") for it in frame.events]
            assert heard(events) == expected(name, answer), answer.name


def test_every_type_of_provider_is_read_here() -> None:
    assert BY_TYPE.keys() == set(get_args(BuiltInType)) and set(BY_TYPE.values()) == set(SPOKEN)
    assert {row.type for row in ROWS.values()} <= BY_TYPE.keys()
    # Two roles that write requests of their own kind, and read as the others do.
    assert QuirkyChatClient.decoder is OpenAiChatClient.decoder
    assert VertexAnthropicClient.decoder is AnthropicMessagesClient.decoder


@pytest.mark.parametrize(("name", "data", "said"), HABITS.values(), ids=HABITS.keys())
def test_every_habit_of_a_vendor_is_understood(name: str, data: bytes, said: Heard) -> None:
    assert heard(decoded(SPOKEN[name].role, data)) == said


STREAMS = [
    *(pytest.param(name, told(name, answer), id=f"{name}-{answer.name}") for name in SPOKEN for answer in PLANS),
    *(pytest.param(name, data, id=habit) for habit, (name, data, _) in HABITS.items()),
]


def test_what_is_declared_unheard_is_among_the_habits() -> None:
    shown = [(name, habit) for name, said in UNHEARD.items() for habit in said.values()]
    assert shown and all(HABITS[habit][0] == name for name, habit in shown)


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
