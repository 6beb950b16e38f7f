"""What a provider is not asked for as the client did: found before the call, and named in the client's own words."""

import json
from itertools import product
from typing import Any, cast

import msgspec
import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Message, Reasoning, Request, Text
from gateway.config import Config
from gateway.losses import keeping, warning_headers
from gateway.metering.prices import Price, PriceSchedule
from gateway.metering.quote import Terms
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.wire import ClientRole
from gateway.providers.demo import DemoProvider
from gateway.providers.endpoint import build_endpoint
from gateway.providers.http_provider import HttpProvider
from gateway.providers.transport import Transport
from gateway.router import Target
from gateway.routing.deployments import Deployments
from gateway.surface import inference_roles
from tests.conformance.pairs import REQUESTS, Unsent
from tests.conformance.requests import BODIES, TAKEN

Object = dict[str, Any]
CHAT, COMPLETIONS, MESSAGES, UI, SDK4 = "chat", "completions", "messages", "ui", "sdk4"
OPENAI, ANTHROPIC = "openai_chat", "anthropic_messages"

_HI = [{"role": "user", "content": "Hi"}]
_UI = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]
CLIENTS: dict[str, tuple[str, Object]] = {
    CHAT: ("/v1/chat/completions", {"model": "m", "messages": _HI}),
    COMPLETIONS: ("/v1/completions", {"model": "m", "prompt": "Hi"}),
    MESSAGES: ("/v1/messages", {"model": "m", "messages": _HI, "max_tokens": 99}),
    UI: ("/api/chat", {"model": "m", "messages": _UI, "id": "c1", "trigger": "submit-message"}),
    SDK4: ("/api/ai/chat-stream", {"model": "m", "messages": _HI, "id": "c1"}),
}
ROLES: dict[str, ClientRole] = {OPENAI: OpenAiChatClient(), ANTHROPIC: AnthropicMessagesClient()}
SERVERS = inference_roles(Config())
_FREE = Terms(price=PriceSchedule(Price(input=0, output=0)))


def target(provider: str) -> Target:
    """A model of a provider that nobody calls."""
    endpoint = build_endpoint(provider, "openai", base_url="http://127.0.0.1", key=None, vendor=provider)
    http = HttpProvider(endpoint, ROLES[provider], cast(Transport, None))
    return Target(http, "model-x", _FREE, "o200k_base", Deployments().of("up/model-x"))


def request_of(client: str, **fields: Any) -> Request:
    path, body = CLIENTS[client]
    return SERVERS[path].decode_request(json.dumps({**body, **fields}).encode(), {})


def warnings(request: Request, provider: str, **asked: Any) -> list[str]:
    """The entries of the header."""
    headers = warning_headers(request, target(provider), msgspec.structs.replace(request, **asked))
    return dict(headers).get(b"x-gateway-warnings", b"").decode().split(", ") if headers else []


def turn(*content: Object, role: str = "user") -> list[Object]:
    return [*_HI, {"role": role, "content": list(content)}, *_HI]


_PICTURE = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}}
_CACHE = {"cache_control": {"type": "ephemeral"}}
_TOOL = {"name": "now", "input_schema": {"type": "object"}}
_CALL = {"type": "tool_use", "id": "c1", "name": "now", "input": {}}
_RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "x", "is_error": True, **_CACHE}
_DRAWING = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
_THINKS = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
_PAUSED = [*_HI, {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "now"}}]}]
_PAUSED += [{"role": "tool", "tool_call_id": "c1", "content": "x"}]

ROWS: list[tuple[str, str, Object, list[str]]] = [
    # Chat Completions → Anthropic
    (CHAT, ANTHROPIC, {"seed": 7}, ["dropped:seed"]),
    (CHAT, ANTHROPIC, {"seed": 0}, ["dropped:seed"]),
    (
        CHAT,
        ANTHROPIC,
        {"frequency_penalty": 0.5, "presence_penalty": -1},
        ["dropped:frequency_penalty", "dropped:presence_penalty"],
    ),
    (CHAT, ANTHROPIC, {"frequency_penalty": 0, "presence_penalty": 0.0}, []),
    (CHAT, ANTHROPIC, {"logit_bias": {"1": 5}}, ["dropped:logit_bias"]),
    (CHAT, ANTHROPIC, {"logprobs": True, "top_logprobs": 2}, ["dropped:logprobs", "dropped:top_logprobs"]),
    (CHAT, ANTHROPIC, {"logprobs": False, "logit_bias": {}, "metadata": {}, "store": False}, []),
    (CHAT, ANTHROPIC, {"service_tier": "auto", "n": 1, "stop": None, "x_vendor": None, "top_logprobs": 0}, []),
    (
        CHAT,
        ANTHROPIC,
        {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "verbosity": "low"},
        ["dropped:metadata", "dropped:store", "dropped:service_tier", "dropped:verbosity"],
    ),
    (CHAT, ANTHROPIC, {"prompt_cache_key": "k", "x_vendor": 1}, ["dropped:prompt_cache_key", "dropped:x_vendor"]),
    (CHAT, ANTHROPIC, {"response_format": {"type": "json_object"}}, ["dropped:response_format"]),
    (CHAT, ANTHROPIC, {"response_format": {"type": "text"}}, []),
    (CHAT, ANTHROPIC, {"stop": ["\n", "x"]}, ["dropped:stop"]),
    (CHAT, ANTHROPIC, {"stop": list("abcdefgh")}, []),
    (CHAT, ANTHROPIC, {"tool_choice": "required"}, ["dropped:tool_choice"]),
    (CHAT, ANTHROPIC, {"tool_choice": "auto", "parallel_tool_calls": False}, []),
    (CHAT, ANTHROPIC, {"messages": turn({"type": "text", "text": "a"}, _PICTURE)}, ["dropped:messages.detail"]),
    (CHAT, ANTHROPIC, {"messages": [{"role": "user", "name": "Ann", "content": "Hi"}]}, ["dropped:messages.name"]),
    (
        CHAT,
        ANTHROPIC,
        {"messages": [*_HI, {"role": "assistant", "content": "a", "reasoning_content": "hm"}, *_HI]},
        ["dropped:messages.reasoning"],
    ),
    (CHAT, ANTHROPIC, {"reasoning_effort": "high", "max_tokens": 1000}, ["dropped:reasoning_effort"]),
    (CHAT, ANTHROPIC, {"reasoning_effort": "high", "messages": _PAUSED}, ["dropped:reasoning_effort"]),
    (CHAT, ANTHROPIC, {"reasoning_effort": "high"}, []),
    (CHAT, ANTHROPIC, {"reasoning_effort": "none"}, []),
    (
        CHAT,
        ANTHROPIC,
        {"reasoning_effort": "low", "temperature": 0.5, "top_p": 0.5},
        ["dropped:temperature", "dropped:top_p"],
    ),
    (CHAT, ANTHROPIC, {"reasoning_effort": "low", "temperature": 1, "top_p": 0.95}, []),
    (CHAT, ANTHROPIC, {**_THINKS, "max_tokens": 2048}, ["lowered:thinking.budget_tokens"]),
    (CHAT, ANTHROPIC, {**_THINKS, "max_tokens": 1024}, ["dropped:thinking"]),
    (CHAT, ANTHROPIC, {**_THINKS, "max_tokens": 2049}, []),
    (CHAT, ANTHROPIC, {**_THINKS, "reasoning_effort": "high"}, ["dropped:reasoning_effort"]),
    (COMPLETIONS, ANTHROPIC, {"seed": 7, "user": "u"}, ["dropped:seed"]),
    # Anthropic → Chat Completions
    (MESSAGES, OPENAI, {"top_k": 5}, ["dropped:top_k"]),
    (MESSAGES, OPENAI, {"service_tier": "standard_only", "speed": "fast"}, ["dropped:service_tier", "dropped:speed"]),
    (MESSAGES, OPENAI, {"service_tier": "auto"}, []),
    (MESSAGES, OPENAI, {"stop_sequences": list("abcdefgh")}, []),
    (MESSAGES, OPENAI, {"tools": [{**_TOOL, **_CACHE}]}, ["dropped:tools.cache_control"]),
    (MESSAGES, OPENAI, {"system": [{"type": "text", "text": "a", **_CACHE}]}, ["dropped:messages.cache_control"]),
    (
        MESSAGES,
        OPENAI,
        {"messages": [*_HI, {"role": "assistant", "content": [_CALL]}, {"role": "user", "content": [_RESULT]}]},
        ["dropped:messages.is_error", "dropped:messages.cache_control"],
    ),
    (MESSAGES, OPENAI, {"messages": turn(_DRAWING, role="assistant")}, ["dropped:messages.image"]),
    (
        MESSAGES,
        OPENAI,
        {"messages": turn({"type": "thinking", "thinking": "a", "signature": "b"}, role="assistant")},
        ["dropped:messages.thinking"],
    ),
    (MESSAGES, OPENAI, {**_THINKS, "max_tokens": 9000}, ["changed:thinking.budget_tokens"]),
    (MESSAGES, OPENAI, {"thinking": {"type": "adaptive"}}, ["dropped:thinking"]),
    (MESSAGES, OPENAI, {"thinking": {"type": "disabled"}}, []),
    # Others → both, in their own spelling
    (
        UI,
        ANTHROPIC,
        {"frequencyPenalty": 1, "stopSequences": [" "]},
        ["dropped:frequencyPenalty", "dropped:stopSequences"],
    ),
    (UI, ANTHROPIC, {"reasoningEffort": "low", "topK": 3}, ["dropped:topK"]),
    (UI, OPENAI, {"topK": 3, "topP": 0.5, "myData": {"a": 1}}, ["dropped:topK", "dropped:myData"][::-1]),
    (SDK4, ANTHROPIC, {"seed": 3, "topK": 3}, ["dropped:topK", "dropped:seed"]),
    (COMPLETIONS, OPENAI, {"seed": 7, "x_vendor": 1}, ["dropped:x_vendor"]),
    # The client's own format
    (CHAT, OPENAI, {"x_vendor": 1, "logit_bias": {"1": 1}, "top_k": 4}, []),
    (MESSAGES, ANTHROPIC, {"x_vendor": 1, "top_k": 4, **_THINKS}, []),
]


@pytest.mark.parametrize(("client", "provider", "fields", "expected"), ROWS)
def test_what_is_lost_is_named(client: str, provider: str, fields: Object, expected: list[str]) -> None:
    assert warnings(request_of(client, **fields), provider) == expected


@pytest.mark.parametrize(("client", "provider"), list(product(CLIENTS, ROLES)))
def test_a_plain_request_loses_nothing(client: str, provider: str) -> None:
    assert warnings(request_of(client), provider) == []


@pytest.mark.parametrize(("client", "provider"), list(product(BODIES, ROLES)))
def test_a_conversation_with_tools_loses_nothing(client: str, provider: str) -> None:
    paths = {"openai_chat": "/v1/chat/completions", "openai_responses": "/v1/responses"}
    server = SERVERS[paths.get(client, "/v1/messages")]
    assert warnings(server.decode_request(json.dumps(BODIES[client]).encode(), {}), provider) == []


_CHECKED = {OPENAI: CHAT, ANTHROPIC: MESSAGES}


@pytest.mark.parametrize(
    "unsent",
    [it for it in REQUESTS if it.client in _CHECKED and it.provider in ROLES],
    ids=lambda it: f"{it.provider}-{it.what}",
)
def test_what_the_pages_table_calls_lost_is_known_before_the_call(unsent: Unsent) -> None:
    own = BODIES[unsent.client]
    request = request_of(_CHECKED[unsent.client], **{**own, **unsent.fields})
    if unsent.fate == "rejected":
        return
    if unsent.refused is None:
        assert warnings(request, unsent.provider)
    with pytest.raises(RequestError):
        keeping(request, (target(unsent.provider),))


def test_the_names_of_beta_headers_are_lost_with_them() -> None:
    query = {"anthropic-beta": "context-1m-2025-08-07"}
    request = SERVERS["/v1/messages"].decode_request(json.dumps(CLIENTS[MESSAGES][1]).encode(), query)
    assert warnings(request, OPENAI) == ["dropped:anthropic-beta"]
    assert warnings(request, ANTHROPIC) == []


class TestTheHeader:
    @pytest.mark.parametrize("name", ["a b", "a,b", "a:b", "ä", "x" * 65, "a\r\nset-cookie: x", "", "1a", "<script>"])
    def test_a_name_that_could_be_anything_is_not_repeated(self, name: str) -> None:
        assert warnings(request_of(CHAT, **{name: 1}), ANTHROPIC) == ["dropped:unknown"]

    def test_it_stays_small_and_counts_what_it_leaves_out(self) -> None:
        request = request_of(CHAT, **{f"{'x' * 60}{number}": 1 for number in range(200)})
        ((_, value),) = warning_headers(request, target(ANTHROPIC), request)
        entries = value.decode().split(", ")
        assert len(value) <= 1024
        assert entries[-1] == f"more:{200 - len(entries) + 1}"

    def test_a_name_is_there_once(self) -> None:
        assert warnings(request_of(CHAT, **{"a b": 1, "b c": 2}), ANTHROPIC) == ["dropped:unknown"]

    @pytest.mark.parametrize(
        ("client", "field"),
        [
            (CHAT, "max_tokens"),
            (CHAT, "max_completion_tokens"),
            (COMPLETIONS, "max_tokens"),
            (MESSAGES, "max_tokens"),
            (UI, "maxOutputTokens"),
            (SDK4, "maxTokens"),
        ],
    )
    @pytest.mark.parametrize("provider", ROLES)
    def test_a_bound_that_was_lowered_is_told(self, client: str, field: str, provider: str) -> None:
        request = request_of(client, **{field: 500})
        assert warnings(request, provider, output_tokens_max=100) == [f"lowered:{field}"]
        assert warnings(request, provider) == []

    def test_a_bound_of_ours_is_nothing_the_client_loses(self) -> None:
        assert warnings(request_of(CHAT), OPENAI, output_tokens_max=100) == []

    def test_it_speaks_of_the_request_as_it_was_sent(self) -> None:
        request = request_of(CHAT, max_tokens=9000, **_THINKS)
        lowered = ["lowered:max_tokens", "lowered:thinking.budget_tokens"]
        assert warnings(request, ANTHROPIC, output_tokens_max=2000) == lowered


class TestStrictness:
    def test_of_several_targets_those_stay_that_are_asked_for_all_of_it(self) -> None:
        openai, anthropic = target(OPENAI), target(ANTHROPIC)
        demo = Target(DemoProvider(), "fast", _FREE, "o200k_base", Deployments().of("demo/fast"))
        assert keeping(request_of(CHAT, seed=7), (anthropic, openai, demo)) == (openai, demo)
        assert keeping(request_of(CHAT), (anthropic, openai)) == (anthropic, openai)

    @pytest.mark.parametrize(
        ("client", "provider", "fields", "param"),
        [
            (UI, OPENAI, {"topK": 3}, "topK"),
            (MESSAGES, OPENAI, {"top_k": 3}, "top_k"),
            (CHAT, ANTHROPIC, {"seed": 3}, "seed"),
            (CHAT, ANTHROPIC, {"n": 2}, "n"),
            (CHAT, ANTHROPIC, {"modalities": ["audio"]}, "modalities"),
            (CHAT, ANTHROPIC, {"a b": 2}, "unknown"),
        ],
    )
    def test_the_refusal_names_the_field(self, client: str, provider: str, fields: Object, param: str) -> None:
        with pytest.raises(RequestError) as caught:
            keeping(request_of(client, **fields), (target(provider),))
        assert (caught.value.param, caught.value.code) == (param, ErrorCode.UNSUPPORTED_VALUE)
        assert caught.value.code.http_status == 400


class TestThinkingWithinABound:
    """Anthropic: "budget_tokens must be less than max_tokens", and at least 1,024."""

    @pytest.mark.parametrize("client", [CHAT, UI, SDK4])
    @pytest.mark.parametrize("bound", [1, 1023, 1024, 1025, 2047, 2048, 2049, 5000, 20_000, 20_001, None])
    @pytest.mark.parametrize("wish", [{"budget_tokens": 1024}, {"budget_tokens": 20_000}, "high"])
    def test_the_budget_stays_below_the_bound_on_the_answer(
        self, client: str, bound: int | None, wish: Object | str
    ) -> None:
        effort = "reasoning_effort" if client == CHAT else "reasoningEffort"
        asked = {effort: wish} if isinstance(wish, str) else {"thinking": {"type": "enabled", **wish}}
        request = msgspec.structs.replace(request_of(client, **asked), output_tokens_max=bound)
        body = TAKEN[ANTHROPIC](ROLES[ANTHROPIC].encode_request(request, "claude-x"))
        if bound is not None and bound <= 1024:
            assert "thinking" not in body
        else:
            assert 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]
        if bound is not None:
            assert body["max_tokens"] == bound

    def test_a_budget_with_room_is_sent_as_it_is(self) -> None:
        body = json.loads(ROLES[ANTHROPIC].encode_request(request_of(CHAT, max_tokens=2049, **_THINKS), "claude-x"))
        assert body["thinking"] == _THINKS["thinking"]


@pytest.mark.parametrize("issued", ["responses:rs_1:gAAAA", "gemini:call_1:CiQ="])
def test_reasoning_that_another_vendor_issued_does_not_reach_anthropic(issued: str) -> None:
    thoughts = (Reasoning("Hm", signature=issued), Reasoning(redacted=issued), Reasoning("Hm", signature="c2ln"))
    turns = (
        Message("user", (Text("Hi"),)),
        Message("assistant", (*thoughts, Text("So."))),
        Message("user", (Text("?"),)),
    )
    request = Request(format="openai_chat", model="m", messages=turns, output_tokens_max=100)
    sent = AnthropicMessagesClient().encode_request(request, "claude").decode()
    assert issued not in sent and '"signature":"c2ln"' in sent
    assert "messages.reasoning" in [loss.field for loss in AnthropicMessagesClient().losses(request, "claude")]
