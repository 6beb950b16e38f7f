"""Every format that clients speak × everything that an answer may be: streamed, whole, and read back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    Order,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.config import Config
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole, Encoder, StreamMeta
from gateway.surface import inference_roles
from tests.conformance.cases import CASES, CREATED, Case, Understood
from tests.conformance.losses import ANSWERS, DEFECTS, understood_by
from tests.conformance.readers import ELSEWHERE, FORMATS, Format, refused

META = StreamMeta("r1", CREATED, None)
BOTH_ROLES: dict[str, ClientRole] = {
    "openai_chat": OpenAiChatClient(),
    "openai_responses": OpenAiResponsesClient(clock=lambda: CREATED),
    "anthropic_messages": AnthropicMessagesClient(clock=lambda: CREATED),
}

by_format = pytest.mark.parametrize("name", FORMATS)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def encoder(spoken: Format, *, stream: bool = True) -> Encoder:
    """The encoder for the answer to a client's request; where usage has to be asked for, it is."""
    body = json.loads(spoken.ask(stream=stream))
    if stream and "stream" in body and spoken.title.startswith(("OpenAI Chat", "OpenAI Completions")):
        body["stream_options"] = {"include_usage": True}
    return spoken.role.encoder(spoken.role.decode_request(json.dumps(body).encode(), {}), META)


def streamed(spoken: Format, case: Case) -> Understood:
    """What a client of the format understands of the case."""
    if case.error is not None and case.ending == "refuse":
        return refused(spoken.role.encode_error(case.error))
    chosen = encoder(spoken)
    output = b"".join(chosen.encode(Frame((event,))) for event in case.events)
    if case.error is not None:
        return spoken.stream(output + chosen.fail(case.error))
    return spoken.stream(output + chosen.end(case.usage))


def expect_defect(asking: pytest.FixtureRequest, name: str, case: str) -> None:
    """Mark the test as one that fails until the defect is mended."""
    if (name, case) in DEFECTS:
        asking.applymarker(pytest.mark.xfail(raises=AssertionError, strict=True, reason=DEFECTS[name, case]))


@by_case
@by_format
def test_a_client_understands_everything_but_what_is_declared_lost(
    request: pytest.FixtureRequest, name: str, case: Case
) -> None:
    expect_defect(request, name, case.name)
    assert streamed(FORMATS[name], case) == understood_by(ANSWERS[name], case.understood)


@pytest.mark.parametrize("case", [case for case in CASES if case.ending == "end"], ids=lambda case: case.name)
@pytest.mark.parametrize("name", [name for name, spoken in FORMATS.items() if spoken.whole is not None])
def test_a_whole_answer_says_what_its_stream_says(request: pytest.FixtureRequest, name: str, case: Case) -> None:
    expect_defect(request, name, case.name)
    spoken = FORMATS[name]
    assert spoken.whole is not None
    chosen = encoder(spoken, stream=False)
    assert b"".join(chosen.encode(Frame((event,))) for event in case.events) == b""
    assert spoken.whole(chosen.end(case.usage)) == understood_by(ANSWERS[name], case.understood)


@pytest.mark.parametrize("case", [case for case in CASES if case.ending == "fail"], ids=lambda case: case.name)
@pytest.mark.parametrize("name", [name for name, spoken in FORMATS.items() if spoken.whole is not None])
def test_a_whole_answer_that_failed_is_an_error_and_no_half_of_an_answer(name: str, case: Case) -> None:
    spoken = FORMATS[name]
    assert case.error is not None
    chosen = encoder(spoken, stream=False)
    output = b"".join(chosen.encode(Frame((event,))) for event in case.events)
    assert output + chosen.fail(case.error) == b""
    assert refused(spoken.role.encode_error(case.error)) == Understood(error=case.error.message)


@by_case
def test_a_case_is_a_legal_stream(case: Case) -> None:
    order = Order()
    for event in case.events:
        order.check(event, "up")
    assert order.is_finished == (case.ending == "end")


def test_every_path_that_models_answer_is_read_here_or_says_why_not() -> None:
    assert {spoken.path for spoken in FORMATS.values()} | ELSEWHERE.keys() == inference_roles(Config()).keys()
    assert all(spoken.role.name == name for name, spoken in FORMATS.items())


@by_format
def test_no_loss_is_declared_that_does_not_happen(name: str) -> None:
    for loss in ANSWERS[name]:
        assert any(loss.change(case.understood) != case.understood for case in CASES), loss.what


# The law: what is encoded is decoded again, for every format that has both roles.

words = st.text(min_size=1, max_size=8)
signatures = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=8)
FINISHES = {
    "openai_chat": {"stop": Unified.STOP, "length": Unified.LENGTH, "content_filter": Unified.CONTENT_FILTER},
    "openai_responses": {
        "completed": Unified.STOP,
        "max_output_tokens": Unified.LENGTH,
        "content_filter": Unified.CONTENT_FILTER,
    },
    "anthropic_messages": {
        "end_turn": Unified.STOP,
        "max_tokens": Unified.LENGTH,
        "refusal": Unified.CONTENT_FILTER,
    },
}
CALLED = {"openai_chat": "tool_calls", "openai_responses": "completed", "anthropic_messages": "tool_use"}
# What not all of them can say and hear: Anthropic has no refusals, Chat Completions no blocks of reasoning.
OWN: dict[str, tuple[str, ...]] = {
    "openai_chat": ("refusal",),
    "openai_responses": ("refusal", "block", "redacted"),
    "anthropic_messages": ("block", "redacted"),
}


@st.composite
def answers(draw: st.DrawFn, name: str) -> list[Event]:
    """Events in the one spelling that a decoder of the format gives them."""
    events: list[Event] = [MessageStart("", "m", CREATED)]
    calls = 0
    for kind in draw(st.lists(st.sampled_from(("text", "reasoning", "call", *OWN[name])), max_size=8)):
        match kind:
            case "text":
                events.append(TextDelta(draw(words)))
            case "refusal":
                events.append(RefusalDelta(draw(words)))
            case "redacted":
                events.append(RedactedReasoning(draw(words)))
            case "block" | "reasoning":
                events.append(ReasoningDelta(draw(words)))
                if name != "openai_chat":
                    events.append(ReasoningEnd(draw(signatures) if kind == "block" else ""))
            case "call":
                events += draw(called(calls, name))
                calls += 1
    if name == "openai_chat":  # which has no end of a call before the end of all
        events = [event for event in events if not isinstance(event, ToolCallEnd)]
        events += map(ToolCallEnd, range(calls))
    raw = CALLED[name] if calls else draw(st.sampled_from(sorted(FINISHES[name])))
    return [*events, Finish(FinishReason(Unified.TOOL_CALLS if calls else FINISHES[name][raw], raw))]


@st.composite
def called(draw: st.DrawFn, index: int, name: str) -> list[Event]:
    given_: dict[str, Any] = draw(st.dictionaries(words, st.integers() | words, min_size=1, max_size=3))
    text = json.dumps(given_, ensure_ascii=False)
    at = draw(st.integers(1, len(text) - 1))
    deltas = [ToolCallDelta(index, piece) for piece in (text[:at], text[at:])]
    return [ToolCallStart(index, f"call_{index}", draw(words)), *deltas, ToolCallEnd(index)]


@pytest.mark.parametrize("name", BOTH_ROLES)
@given(data=st.data(), used=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), size=st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_what_is_encoded_is_decoded(name: str, data: st.DataObject, used: tuple[int, int], size: int) -> None:
    said = data.draw(answers(name))
    chosen, decoder = encoder(FORMATS[name]), BOTH_ROLES[name].decoder("up")
    output = b"".join(chosen.encode(Frame((event,))) for event in said) + chosen.end(
        Usage(input=used[0], output=used[1])
    )
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    frames = [frame for piece in pieces for frame in decoder.feed(piece)] + decoder.end_of_bytes()
    events = [event for frame in frames for event in frame.events]
    assert decoder.is_done and not any(isinstance(event, Failure) for event in events)
    usage = [event.usage for event in events if isinstance(event, UsageReport)][-1]
    assert (usage.input, usage.output) == used
    start, *heard = [event for event in events if not isinstance(event, UsageReport)]
    assert isinstance(start, MessageStart) and start.model == "m"
    assert [as_said(event) for event in heard] == said[1:]


def as_said(event: Event) -> Event:
    """What a provider of Responses sealed is heard with its item's id; here the provider is the gateway itself."""
    match event:
        case ReasoningEnd(signature) if signature.startswith("responses:"):
            return ReasoningEnd(signature.split(":", 2)[2].removeprefix("signature."))
        case RedactedReasoning(data) if data.startswith("responses:"):
            return RedactedReasoning(data.split(":", 2)[2].removeprefix("redacted."))
    return event
