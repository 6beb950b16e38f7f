"""Every client format × every provider format: the request on its way there, and the answer on its way back.

The provider's side is the simulated one of the other suites: its rules judge the request, and its renderer of plans
makes the answer. There is no provider format ``openai_responses`` yet, so the pairs are three by two.
"""

import json
from itertools import product
from typing import Any

import pytest

from gateway.canonical.errors import RequestError
from gateway.canonical.events import Failure, UsageReport
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.wire import ClientRole, StreamMeta
from tests.conformance.cases import CREATED
from tests.conformance.losses import ANSWERS, DEFECTS, PROVIDERS, understood_by
from tests.conformance.pairs import PLANS, REQUESTS, Answer, Unsent
from tests.conformance.readers import FORMATS, refused
from tests.conformance.requests import ASKED, BODIES, EXPECTED, TAKEN, received
from tests.upstream.anthropic_messages import AnthropicMessages
from tests.upstream.exchange import Rejected, Vendor
from tests.upstream.openai_chat import OpenAIChat
from tests.upstream.plan import Plan, ToolCall

PROVIDER_ROLES: dict[str, ClientRole] = {
    "openai_chat": OpenAiChatClient(),
    "anthropic_messages": AnthropicMessagesClient(clock=lambda: CREATED),
}
PAIRS = list(product(BODIES, PROVIDER_ROLES))

by_pair = pytest.mark.parametrize(("client", "provider"), PAIRS, ids=lambda name: name)


def asked(client: str, provider: str, **more: Any) -> bytes:
    """The body for the provider; raises ``RequestError`` as the gateway does."""
    request: Request = FORMATS[client].role.decode_request(json.dumps({**BODIES[client], **more}).encode(), {})
    role = PROVIDER_ROLES[provider]
    if request.untranslatable and request.format != role.name:  # as providers/http_provider.py does
        raise RequestError("cannot be sent to this model", param=request.untranslatable[0])
    return role.encode_request(request, "model-x")


def vendor_of(provider: str) -> Vendor:
    return OpenAIChat(strict_fields=True) if provider == "openai_chat" else AnthropicMessages()


def provider_bytes(provider: str, body: bytes, plan: Plan) -> bytes:
    """What the simulated provider streams for a plan; an error ends it where one is ordered."""
    vendor, arrived, out = vendor_of(provider), received(body), b""
    for step in vendor.stream(arrived, plan):
        if step.is_closing and plan.fault == "error_event":
            return out + vendor.error_event(arrived, plan)
        if step.is_closing and plan.fault == "truncate":
            return out
        out += step.data
    return out


def relayed(client: str, provider: str, plan: Plan, size: int) -> bytes:
    """What the client gets for a plan, if the provider's bytes come in pieces of ``size``."""
    body = {**BODIES[client], "stream": True}
    if client == "openai_chat":
        body["stream_options"] = {"include_usage": True}
    server, role = FORMATS[client].role, PROVIDER_ROLES[provider]
    request = server.decode_request(json.dumps(body).encode(), {})
    sent = role.encode_request(request, "model-x")
    encoder = server.encoder(request, StreamMeta("r1", CREATED, role.name))
    decoder, usage, out = role.decoder("up"), Usage(), b""
    data = provider_bytes(provider, sent, plan)
    frames = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
    for frame in [*frames, *decoder.end_of_bytes()]:
        failed = [event.error for event in frame.events if isinstance(event, Failure)]
        if failed:
            return out + encoder.fail(failed[0])
        reports = [event.usage for event in frame.events if isinstance(event, UsageReport)]
        usage = reports[-1] if reports else usage
        out += encoder.encode(frame)
    return out + encoder.end(usage)


@by_pair
def test_a_conversation_with_tools_arrives_as_it_was_written(client: str, provider: str) -> None:
    assert ASKED[provider](TAKEN[provider](asked(client, provider))) == EXPECTED


@by_pair
def test_a_provider_is_always_asked_for_a_stream_with_usage(client: str, provider: str) -> None:
    body = json.loads(asked(client, provider, stream=False))
    assert body["stream"] is True and body["model"] == "model-x"
    assert provider != "openai_chat" or body["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("provider", PROVIDER_ROLES)
@pytest.mark.parametrize(
    ("client", "wish"),
    [
        ("openai_responses", {"parallel_tool_calls": True, "tool_choice": "auto", "tools": None}),
        ("openai_responses", {"parallel_tool_calls": False, "tool_choice": "auto", "tools": []}),
        ("anthropic_messages", {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "tools": []}),
    ],
)
def test_a_wish_about_calls_is_left_out_where_there_are_no_tools(
    client: str, provider: str, wish: dict[str, Any]
) -> None:
    if client != provider:  # to its own kind the body goes as it is, to be judged there
        TAKEN[provider](asked(client, provider, **wish))


def test_a_budget_for_thinking_becomes_an_effort() -> None:
    (unsent,) = (it for it in REQUESTS if "thinking" in it.fields)
    assert json.loads(asked(unsent.client, unsent.provider, **unsent.fields))["reasoning_effort"] == "medium"


@pytest.mark.parametrize("size", [7, 10**6], ids=["in small pieces", "at once"])
@pytest.mark.parametrize("answer", PLANS, ids=lambda answer: answer.name)
@by_pair
def test_an_answer_arrives_but_for_what_is_declared_lost(
    request: pytest.FixtureRequest, client: str, provider: str, answer: Answer, size: int
) -> None:
    if (client, answer.name) in DEFECTS and client != provider:  # what the provider sent passes untouched
        why = DEFECTS[client, answer.name]
        request.applymarker(pytest.mark.xfail(raises=AssertionError, strict=True, reason=why))
    understood = FORMATS[client].stream(relayed(client, provider, answer.plan_of(provider), size))
    assert understood == understood_by((*PROVIDERS[provider], *ANSWERS[client]), answer.of(provider))


@pytest.mark.parametrize("unsent", REQUESTS, ids=lambda it: f"{it.client}-{it.provider}-{it.what}")
def test_what_a_request_loses_is_what_is_declared(unsent: Unsent) -> None:
    if unsent.refused is not None:
        with pytest.raises(RequestError) as caught:
            asked(unsent.client, unsent.provider, **unsent.fields)
        assert caught.value.param == unsent.refused
        return
    sent, plain = (asked(unsent.client, unsent.provider, **fields) for fields in (unsent.fields, unsent.instead))
    if unsent.fate == "rejected":
        with pytest.raises(Rejected):
            TAKEN[unsent.provider](sent)
        return
    TAKEN[unsent.provider](sent)
    assert json.loads(sent) == json.loads(plain)


@pytest.mark.parametrize("unsent", [it for it in REQUESTS if it.client in PROVIDER_ROLES], ids=lambda it: it.what)
def test_a_provider_of_the_clients_own_format_is_asked_for_all_of_it(unsent: Unsent) -> None:
    fields = {**BODIES[unsent.client], **unsent.fields, "x_vendor": {"new": [1]}}
    body = json.loads(asked(unsent.client, unsent.client, **fields))
    assert {name: body.get(name) for name in fields} == {**fields, "model": "model-x"}


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
@by_pair
def test_an_error_before_the_answer_is_one_of_the_clients_format(client: str, provider: str, status: int) -> None:
    vendor, arrived = vendor_of(provider), received(json.dumps(BODIES[client]).encode())
    rejected = vendor.ordered_error(status)
    error = PROVIDER_ROLES[provider].decode_error(status, vendor.error(arrived, rejected), "up")
    reply = FORMATS[client].role.encode_error(error)
    assert refused(reply).error == error.message
    assert (reply.status < 500) == (status in (400, 404, 429))
    assert (error.message == rejected.message) == (status in (400, 404)), (
        "only what is said of the request is passed on"
    )


def given_back(client: str, output: bytes) -> dict[str, Any]:
    """The next request of a client that appends the whole answer, as it is, and the results of its calls."""
    answer, body = json.loads(output), BODIES[client]
    plain = {"tool_choice": None, "temperature": None, "top_p": None}
    match client:
        case "openai_chat":
            message = answer["choices"][0]["message"]
            results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in message["tool_calls"]]
            return {"messages": [body["messages"][1], message, *results], "reasoning_effort": "low", **plain}
        case "openai_responses":
            calls = [item["call_id"] for item in answer["output"] if item["type"] == "function_call"]
            results = [{"type": "function_call_output", "call_id": call, "output": "x"} for call in calls]
            return {"input": [body["input"][0], *answer["output"], *results], "reasoning": {"effort": "low"}, **plain}
    blocks = answer["content"]
    results = [
        {"type": "tool_result", "tool_use_id": it["id"], "content": "x"} for it in blocks if it["type"] == "tool_use"
    ]
    turns = [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    return {"messages": [body["messages"][0], *turns], "thinking": thinking, **plain}


@by_pair
def test_an_answer_can_be_given_back_with_its_reasoning(client: str, provider: str) -> None:
    plan = Plan(reasoning=("Hm.", " Yes."), redacted="c2VjcmV0", tool_calls=(ToolCall(name="now"),))
    server, vendor = FORMATS[client].role, vendor_of(provider)
    room = "max_output_tokens" if client == "openai_responses" else "max_tokens"
    first = received(asked(client, provider))
    request = server.decode_request(json.dumps({**BODIES[client], "stream": False}).encode(), {})
    encoder = server.encoder(request, StreamMeta("r1", CREATED, provider))
    decoder = PROVIDER_ROLES[provider].decoder("up")
    for step in vendor.stream(first, plan):
        for frame in decoder.feed(step.data):
            encoder.encode(frame)
    more = given_back(client, encoder.end(Usage()))
    second = received(asked(client, provider, **more, **{room: 4000}))
    if provider == "anthropic_messages" or client != provider:  # OpenAI knows no reasoning in a message
        vendor.check(second)
    if provider == "anthropic_messages":
        kinds = [block["type"] for block in second.body["messages"][1]["content"]]
        assert kinds == ["thinking", "redacted_thinking", "tool_use"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_loss_of_a_provider_is_declared_that_does_not_happen(provider: str) -> None:
    for loss in PROVIDERS[provider]:
        assert any(loss.change(it.of(provider)) != it.of(provider) for it in PLANS), loss.what
