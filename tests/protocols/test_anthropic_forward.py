"""The client's own body on its way to Anthropic: what is changed, and that nothing else is."""

import json
from typing import Any

import msgspec
import pytest

from gateway.canonical.request import Request
from gateway.protocols.anthropic_messages import AnthropicMessagesClient, AnthropicMessagesServer

CLIENT, SERVER = AnthropicMessagesClient(), AnthropicMessagesServer()
USER = {"role": "user", "content": "Hi"}
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]}


def asked(**fields: Any) -> Request:
    body = {"model": "alias", "max_tokens": 10_000, "messages": [USER], **fields}
    return SERVER.decode_request(json.dumps(body).encode(), {})


def sent(request: Request, bound: int | None = None) -> dict[str, Any]:
    if bound is not None:
        request = msgspec.structs.replace(request, output_tokens_max=bound)
    body: dict[str, Any] = json.loads(CLIENT.encode_request(request, "claude-x"))
    return body


def test_only_what_the_gateway_owns_is_changed_and_every_other_byte_stays() -> None:
    body = (
        b'{"model":"alias","max_tokens":10,"x_new":{"n":1.10,"big":1e2},"messages":[{"role":"assistant","content":['
        b'{"type":"thinking","thinking":"\\u2028","signature":"s=="},{"type":"new_block","x":[1.0]}]},'
        b'{"role":"user","content":"Hi","x":1}],"mcp_servers":[{"url":"https://x"}]}'
    )
    out = CLIENT.encode_request(SERVER.decode_request(body, {}), "claude-x")
    assert json.loads(out) | {"model": "alias"} == json.loads(body) | {"stream": True}
    for piece in (
        b'{"n":1.10,"big":1e2}',
        b'"thinking":"\\u2028","signature":"s=="',
        b'{"type":"new_block","x":[1.0]}',
    ):
        assert piece in out


def test_the_bound_goes_down_with_what_can_be_paid() -> None:
    assert sent(asked())["max_tokens"] == 10_000
    assert sent(asked(), bound=50)["max_tokens"] == 50


@pytest.mark.parametrize(
    ("bound", "thinking"),
    [
        (None, {"type": "enabled", "budget_tokens": 5000, "display": "omitted"}),
        (6000, {"type": "enabled", "budget_tokens": 5000, "display": "omitted"}),
        (5000, {"type": "enabled", "budget_tokens": 4999, "display": "omitted"}),
        (1025, {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}),
        (1024, None),
        (1, None),
    ],
)
def test_a_thinking_budget_stays_below_the_bound(bound: int | None, thinking: dict[str, Any] | None) -> None:
    request = asked(thinking={"type": "enabled", "budget_tokens": 5000, "display": "omitted"})
    assert sent(request, bound).get("thinking") == thinking


def test_a_budget_above_the_clients_own_bound_is_its_own_affair() -> None:
    """With interleaved thinking Anthropic allows it."""
    thinking = {"type": "enabled", "budget_tokens": 20_000}
    assert sent(asked(thinking=thinking))["thinking"] == thinking
    assert sent(asked(thinking={"type": "adaptive"}), bound=5)["thinking"] == {"type": "adaptive"}


def test_thinking_that_nobody_signed_is_left_out() -> None:
    unsigned = {"type": "thinking", "thinking": "x", "signature": ""}
    signed = unsigned | {"signature": "s"}
    text = {"type": "text", "text": "Hello"}
    messages = [
        USER,
        {"role": "assistant", "content": [unsigned]},
        USER,
        {"role": "assistant", "content": [unsigned, text]},
        USER,
        {"role": "assistant", "content": [signed, text]},
        USER,
    ]
    thinking = {"type": "enabled", "budget_tokens": 5000}
    body = sent(asked(messages=messages, thinking=thinking))
    assert body["messages"] == [
        USER,
        USER,
        {"role": "assistant", "content": [text]},
        USER,
        {"role": "assistant", "content": [signed, text]},
        USER,
    ]
    assert body["thinking"] == thinking


def test_an_open_call_that_lost_its_thinking_turns_thinking_off() -> None:
    unsigned = {"type": "thinking", "thinking": "x", "signature": ""}
    messages = [USER, {"role": "assistant", "content": [unsigned, CALL]}, RESULT]
    body = sent(asked(messages=messages, thinking={"type": "enabled", "budget_tokens": 5000}))
    assert body["messages"][1] == {"role": "assistant", "content": [CALL]}
    assert "thinking" not in body
