"""Bodies nobody thought of: a request or a refusal comes of each, never anything else.

Most are given to the decoders directly, which is fast; some go through a running gateway. Whatever a decoder accepts
must also survive what comes next: being counted, and being written out for a provider of either format.
"""

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import RequestError
from gateway.canonical.request import Request
from gateway.metering.tokens import count_bytes, count_input
from gateway.protocols.ai_sdk_4 import AiSdk4Server
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_chat.server import OpenAiChatServer
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from tests.http.conftest import CHAT, DATA_STREAM, Stage

ROLES = {CHAT: OpenAiChatServer(), DATA_STREAM: AiSdk4Server()}
PROVIDERS = (OpenAiChatClient(), AnthropicMessagesClient(), OpenAiResponsesClient())

# Each has every field that is read, so that a mutation can reach it.
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}, "strict": True}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_PARTS = [
    {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8=", "detail": "low"}},
    {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
    {"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}},
    {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGVsbG8=", "filename": "x.pdf"}},
]
CHAT_BODY = {
    "model": "demo/fast",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": _PARTS},
        {"role": "assistant", "content": None, "tool_calls": [_CALL], "reasoning_content": "hm"},
        {"role": "assistant", "content": "x", "reasoning_details": [{"type": "reasoning.text", "text": "t"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": "Hello"},
    ],
    "max_tokens": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
    "temperature": 1,
    "top_p": 0.5,
    "seed": 7,
    "stop": ["x"],
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
    "reasoning_effort": "low",
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "user": "u",
    "metadata": {"k": "v"},
    "logit_bias": {"1": 1},
}
_INVOCATION = {"toolCallId": "1", "toolName": "f", "state": "result", "args": {"city": "Paris"}, "result": {"x": 1}}
UI_BODY = {
    "id": "chat",
    "messages": [
        {"role": "user", "content": "Hello", "experimental_attachments": [{"url": "data:text/plain;base64,aGk="}]},
        {
            "role": "assistant",
            "content": "",
            "parts": [
                {"type": "step-start"},
                {"type": "reasoning", "reasoning": "hm", "details": [{"type": "text", "text": "t", "signature": "s"}]},
                {"type": "tool-invocation", "toolInvocation": _INVOCATION},
                {"type": "file", "mimeType": "image/png", "data": "aGk="},
                {"type": "text", "text": "sunny"},
            ],
        },
        {"role": "assistant", "content": "x", "toolInvocations": [_INVOCATION]},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "model": "demo/fast",
    "system": "Be brief.",
    "maxTokens": 1,
    "temperature": 1,
    "topP": 0.5,
    "seed": 7,
    "tools": [{"name": "f", "description": "d", "parameters": {"type": "object"}}],
}
BODIES = {CHAT: CHAT_BODY, DATA_STREAM: UI_BODY}

_integers = st.integers() | st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**19, 10**30, -(10**400)])
_texts = st.text(st.characters(codec=None, exclude_categories=[])) | st.sampled_from(
    ["", "\0", "\ud800", "\x7f\r\n", "a" * 600, "data:image/png;base64,", "user", "tool", "text", "..", "{", "[[["]
)
_scalars = st.none() | st.booleans() | _integers | st.floats() | _texts
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4), max_leaves=12
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with one of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


@st.composite
def mutated(draw: st.DrawFn, body: dict[str, Any], changes_max: int = 3) -> bytes:
    """A good body of which a few values, names or bytes are something else."""
    changed = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, changes_max))):
        places = _places(changed)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "remove", "rename", "wrap", "repeat"])):
            case "replace":
                container[key] = draw(_values)
            case "remove":
                del container[key]
            case "rename" if isinstance(container, dict):
                container[draw(_texts)] = container.pop(key)
            case "wrap":
                container[key] = [container[key]] if draw(st.booleans()) else {"x": container[key]}
            case _:
                container[key] = [container[key]] * draw(st.integers(0, 30))
    body_bytes = json.dumps(changed, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        position = draw(st.integers(0, len(body_bytes)))
        body_bytes = body_bytes[:position] + draw(st.binary(max_size=4)) + body_bytes[position + 1 :]
    return body_bytes


def any_body(path: str) -> st.SearchStrategy[bytes]:
    """Mostly mutations of a good body; some random JSON, some random bytes."""
    as_json = _values.map(lambda value: json.dumps(value).encode())
    return st.one_of(mutated(BODIES[path]), mutated(BODIES[path]), as_json, st.binary(max_size=200))


def decoded(path: str, body: bytes) -> Request | RequestError:
    try:
        return ROLES[path].decode_request(body, {})
    except RequestError as error:
        return error


@pytest.mark.parametrize("path", BODIES)
def test_what_is_mutated_was_good(path: str) -> None:
    assert isinstance(decoded(path, json.dumps(BODIES[path]).encode()), Request)


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_body_is_a_request_or_refused(path: str, data: st.DataObject) -> None:
    body = data.draw(any_body(path))
    result = decoded(path, body)
    if isinstance(result, RequestError):
        assert 400 <= result.code.http_status < 500
        assert 0 < len(result.message) < 600
        ROLES[path].encode_error(result).body.decode()


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_request_can_be_counted_and_written_for_any_provider(path: str, data: st.DataObject) -> None:
    request = decoded(path, data.draw(mutated(BODIES[path], changes_max=1)))
    if isinstance(request, RequestError):
        return
    assert asyncio.run(count_input(request, count_bytes)) > 0
    for provider in PROVIDERS:
        try:
            json.loads(provider.encode_request(request, "model"))
        except RequestError as error:
            assert 400 <= error.code.http_status < 500


@pytest.mark.asyncio(loop_scope="module")
async def test_no_body_breaks_a_running_gateway(stage: Stage) -> None:
    """Sent one after the other within one test, since a running gateway cannot be asked from hypothesis's own loop."""
    examples: list[tuple[str, bytes]] = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(list(BODIES)))
        examples.append((path, data.draw(any_body(path))))

    collect()
    for path, body in examples:
        answer = await stage.post(path, body)
        assert answer.status_code < 500, (path, body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["code"]
    await stage.gateway.settled()
