"""Every client format × every provider format: the request on its way there, and the answer on its way back.

The provider's side is the simulated one of the other suites: its rules judge the request, and its renderer of plans
makes the answer.
"""

import json
from itertools import product
from typing import Any

import pytest

from gateway.canonical.errors import RequestError
from gateway.canonical.events import Failure, UsageReport
from gateway.canonical.request import Loss, Request
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole, StreamMeta
from tests.conformance.answers import PLANS, Answer
from tests.conformance.cases import CREATED
from tests.conformance.losses import ANSWERS, DEFECTS, PROVIDERS, UNREPAIRED, understood_by
from tests.conformance.pairs import REQUESTS, Unsent
from tests.conformance.readers import FORMATS, refused
from tests.conformance.requests import (
    ASKED,
    BODIES,
    EXPECTED,
    MODELS,
    PATHS,
    TAKEN,
    VENDORS,
    expected_of,
    received,
)
from tests.upstream.exchange import Rejected
from tests.upstream.plan import Plan, ToolCall

PROVIDER_ROLES: dict[str, ClientRole] = {
    "openai_chat": OpenAiChatClient(),
    "openai_responses": OpenAiResponsesClient(clock=lambda: CREATED),
    "anthropic_messages": AnthropicMessagesClient(clock=lambda: CREATED),
    "gemini": GeminiClient(clock=lambda: CREATED),
    "bedrock_converse": BedrockConverseClient(clock=lambda: CREATED),
}
# AWS answers so as well where the gateway's account has no access to the model.
OF_THE_ACCOUNT = (("bedrock_converse", 404),)
PAIRS = list(product(BODIES, PROVIDER_ROLES))
OWN = [it.fields for it in REQUESTS if it.client == it.provider]

by_pair = pytest.mark.parametrize(("client", "provider"), PAIRS, ids=lambda name: name)


def wished(client: str, **more: Any) -> Request:
    """The conversation as a client of the format asks to have it answered."""
    return FORMATS[client].role.decode_request(json.dumps({**BODIES[client], **more}).encode(), {})


def asked(client: str, provider: str, **more: Any) -> bytes:
    """The body for the provider; raises ``RequestError`` as the gateway does."""
    request = wished(client, **more)
    role = PROVIDER_ROLES[provider]
    if request.untranslatable and request.format != role.name:  # as providers/http_provider.py does
        raise RequestError("cannot be sent to this model", param=request.untranslatable[0])
    return role.encode_request(request, MODELS[provider])


def provider_bytes(provider: str, body: bytes, plan: Plan) -> bytes:
    """What the simulated provider streams for a plan; an error ends it where one is ordered."""
    vendor, arrived, out = VENDORS[provider](), received(body, provider), b""
    for step in vendor.stream(arrived, plan):
        if step.is_closing and plan.fault == "error_event":
            return out + vendor.error_event(arrived, plan)
        if step.is_closing and plan.fault == "truncate":
            return out
        out += step.data
    return out


def relayed(client: str, provider: str, plan: Plan, size: int) -> bytes:
    """What the client gets for a plan, if the provider's bytes come in pieces of ``size``."""
    body = {**BODIES.get(client, FORMATS[client].body), "stream": True}
    if client in ("openai_chat", "openai_completions"):
        body["stream_options"] = {"include_usage": True}
    server, role = FORMATS[client].role, PROVIDER_ROLES[provider]
    request = server.decode_request(json.dumps(body).encode(), {})
    sent = role.encode_request(request, MODELS[provider])
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
    assert ASKED[provider](TAKEN[provider](asked(client, provider))) == expected_of(provider)


@pytest.mark.parametrize(("client", "provider"), [pair for pair in PAIRS if pair[1] not in PATHS])
def test_a_provider_is_always_asked_for_a_stream_with_usage(client: str, provider: str) -> None:
    body = json.loads(asked(client, provider, stream=False))
    assert body["stream"] is True and body["model"] == MODELS[provider]
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
    chat, responses, gemini = (
        json.loads(asked(it.client, it.provider, **it.fields)) for it in REQUESTS if "thinking" in it.fields
    )
    assert chat["reasoning_effort"] == "medium"
    assert responses["reasoning"] == {"effort": "medium", "summary": "auto"}
    assert gemini["generationConfig"]["thinkingConfig"] == {"includeThoughts": True, "thinkingLevel": "MEDIUM"}


@pytest.mark.parametrize("answer", PLANS, ids=lambda answer: answer.name)
@pytest.mark.parametrize("provider", PROVIDER_ROLES)
@pytest.mark.parametrize("client", FORMATS)
def test_an_answer_arrives_but_for_what_is_declared_lost(
    request: pytest.FixtureRequest, client: str, provider: str, answer: Answer
) -> None:
    if (client, answer.name) in DEFECTS and client != provider:  # what the provider sent passes untouched
        why = DEFECTS[client, answer.name]
        request.applymarker(pytest.mark.xfail(raises=AssertionError, strict=True, reason=why))
    expected = understood_by((*PROVIDERS[provider], *ANSWERS[client]), answer.of(provider))
    for size in (7, 10**6):
        assert FORMATS[client].stream(relayed(client, provider, answer.plan_of(provider), size)) == expected


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


def lost(unsent: Unsent, fields: dict[str, Any]) -> set[Loss]:
    """What ``x-gateway-warnings`` names, as providers/http_provider.py collects it."""
    request = wished(unsent.client, **fields)
    beside = (*request.untranslatable, *request.untold)
    told = PROVIDER_ROLES[unsent.provider].losses(request, MODELS[unsent.provider])
    return {*(Loss("dropped", name) for name in beside), *told}


@pytest.mark.parametrize(
    "unsent",
    [it for it in REQUESTS if it.client != it.provider and it.refused is None and it.fate != "rejected"],
    ids=lambda it: f"{it.client}-{it.provider}-{it.what}",
)
def test_what_is_dropped_or_changed_is_named_to_the_client(unsent: Unsent) -> None:
    named = lost(unsent, unsent.fields)
    assert named - lost(unsent, unsent.instead) or named - lost(unsent, {})


@pytest.mark.parametrize(
    "unsent", [it for it in REQUESTS if it.client != it.provider and it.fields not in OWN], ids=lambda it: it.what
)
def test_a_provider_of_the_clients_own_format_is_asked_for_all_of_it(unsent: Unsent) -> None:
    fields = {**BODIES[unsent.client], **unsent.fields, "x_vendor": {"new": [1]}}
    body = json.loads(asked(unsent.client, unsent.client, **fields))
    assert {name: body.get(name) for name in fields} == {**fields, "model": MODELS[unsent.client]}


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
@by_pair
def test_an_error_before_the_answer_is_one_of_the_clients_format(client: str, provider: str, status: int) -> None:
    vendor, arrived = VENDORS[provider](), received(json.dumps(BODIES[client]).encode(), provider)
    rejected = vendor.ordered_error(status)
    error = PROVIDER_ROLES[provider].decode_error(status, vendor.error(arrived, rejected), "up")
    reply = FORMATS[client].role.encode_error(error)
    assert refused(reply).error == error.message
    assert (reply.status < 500) == (status in (400, 404, 429))
    is_of_the_request = status in (400, 404) and (provider, status) not in OF_THE_ACCOUNT
    assert (error.message == rejected.message) == is_of_the_request, "only what is said of the request is passed on"


def with_gaps(client: str) -> dict[str, Any]:
    """A conversation whose calls were never answered, and which has a result of no call."""
    body = BODIES[client]
    match client:
        case "openai_chat":
            stray = {"role": "tool", "tool_call_id": "call_z", "content": "x"}
            return {"messages": [*body["messages"][:3], body["messages"][-1], stray]}
        case "openai_responses":
            stray = {"type": "function_call_output", "call_id": "call_z", "output": "x"}
            return {"input": [*body["input"][:4], body["input"][-1], stray]}
    question, calls, results = body["messages"]
    stray = {"type": "tool_result", "tool_use_id": "call_z", "content": "x"}
    return {"messages": [question, calls, {**results, "content": [stray, *results["content"][2:]]}]}


@pytest.mark.parametrize(
    ("client", "provider"), [(client, provider) for client, provider in PAIRS if client != provider]
)
def test_a_conversation_with_gaps_is_repaired(request: pytest.FixtureRequest, client: str, provider: str) -> None:
    if provider in UNREPAIRED:
        request.applymarker(pytest.mark.xfail(raises=Rejected, strict=True, reason=UNREPAIRED[provider]))
    said = ASKED[provider](TAKEN[provider](asked(client, provider, **with_gaps(client)))).said
    assert [fact[:2] for fact in said if fact[0] == "result"] == [("result", "call_a"), ("result", "call_b")]
    assert [fact for fact in said if fact[0] != "result"] == [fact for fact in EXPECTED.said if fact[0] != "result"]


def test_a_response_is_told_anew() -> None:
    """The gateway's ids, and only what it has a word for."""
    server, role = FORMATS["openai_responses"].role, PROVIDER_ROLES["openai_responses"]
    request = server.decode_request(json.dumps({**BODIES["openai_responses"], "stream": False}).encode(), {})
    encoder = server.encoder(request, StreamMeta("r1", CREATED, role.name))
    data = provider_bytes("openai_responses", role.encode_request(request, "m"), Plan(text=("Hi",)))
    note = b'"annotations":[{"type":"url_citation","url":"https://x","title":"x","start_index":0,"end_index":1}]'
    for frame in role.decoder("up").feed(data.replace(b'"annotations":[]', note)):
        encoder.encode(frame)
    answer = json.loads(encoder.end(Usage()))
    (item,) = answer["output"]
    assert answer["id"].encode() not in data and item["id"].encode() not in data
    assert item["content"] == [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]


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


def kinds(provider: str, body: dict[str, Any]) -> list[str]:
    """What a provider was sent of its own answer, in its own words; a signature has a star."""
    match provider:
        case "anthropic_messages":
            return [block["type"] for block in body["messages"][1]["content"]]
        case "openai_responses":
            return [item.get("type", "message") for item in body["input"]]
        case "gemini":
            parts = body["contents"][1]["parts"]
            return [kind if kind != "thoughtSignature" else f"* {part[kind]}" for part in parts for kind in part]
    return [name for block in body["messages"][1]["content"] for name in block.get("reasoningContent", block)]


GIVEN_BACK = {
    "anthropic_messages": ["thinking", "redacted_thinking", "tool_use"],
    "openai_responses": ["message", "reasoning", "reasoning", "function_call", "function_call_output"],
    "gemini": ["functionCall", "* c2lnbmVk"],
    "bedrock_converse": ["reasoningText", "redactedContent", "toolUse"],
}


@by_pair
def test_an_answer_can_be_given_back_with_its_reasoning(client: str, provider: str) -> None:
    sign = "c2lnbmVk" if provider == "gemini" else ""
    plan = Plan(reasoning=("Hm.", " Yes."), signature=sign, redacted="c2VjcmV0", tool_calls=(ToolCall(name="now"),))
    server, vendor = FORMATS[client].role, VENDORS[provider]()
    room = "max_output_tokens" if client == "openai_responses" else "max_tokens"
    first = received(asked(client, provider), provider)
    request = server.decode_request(json.dumps({**BODIES[client], "stream": False}).encode(), {})
    encoder = server.encoder(request, StreamMeta("r1", CREATED, provider))
    decoder = PROVIDER_ROLES[provider].decoder("up")
    for step in vendor.stream(first, plan):
        for frame in decoder.feed(step.data):
            encoder.encode(frame)
    more = given_back(client, encoder.end(Usage()))
    second = received(asked(client, provider, **more, **{room: 4000}), provider)
    if (client, provider) != ("openai_chat", "openai_chat"):  # which knows no reasoning in a message
        vendor.check(second)
    if provider in GIVEN_BACK:
        assert kinds(provider, second.body) == GIVEN_BACK[provider]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_loss_of_a_provider_is_declared_that_does_not_happen(provider: str) -> None:
    for loss in PROVIDERS[provider]:
        assert any(loss.change(it.of(provider)) != it.of(provider) for it in PLANS), loss.what
