"""Functions in groups under flat names: which, and whose calls they are when they come back."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import RequestError
from gateway.canonical.events import Frame, ToolCallEnd, ToolCallStart
from gateway.canonical.request import ToolCall
from gateway.protocols.openai_responses.incoming import decode
from gateway.protocols.openai_responses.namespaces import NO_NAMESPACES, FlatNames, flat_names_of
from gateway.protocols.openai_responses.server import OpenAiResponsesServer
from gateway.protocols.wire import StreamMeta

NAMES = st.tuples(st.text("ab_.é", min_size=1, max_size=40), st.text("ab_.é", min_size=1, max_size=40))


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}}


def group(name: str, *functions: str) -> dict[str, Any]:
    return {
        "type": "namespace",
        "name": name,
        "description": "Tools.",
        "tools": [function(inner) for inner in functions],
    }


def body(tools: list[Any], said: Any = "Hi") -> bytes:
    return msgspec.json.encode({"model": "a/b", "input": said, "stream": True, "tools": tools})


@given(st.lists(NAMES, unique=True), st.lists(st.text("ab_", min_size=1)))
def test_flat_names_are_fit_and_lead_back(grouped: list[tuple[str, str]], plain: list[str]) -> None:
    names = FlatNames(grouped, plain)
    flat = [names.flat(*own) for own in grouped]
    assert len({*flat, *plain}) == len(flat) + len(set(plain))
    assert all(len(name) <= 64 and name.isascii() for name in flat)
    assert [names.own(name) for name in flat] == grouped
    assert all(names.own(name) == ("", name) for name in plain)


def test_a_function_may_be_called_by_its_own_name_where_that_says_which() -> None:
    names = FlatNames([("a", "open"), ("b", "open"), ("a", "close"), ("b", "look")], ["look"])
    assert names.own("close") == ("a", "close")
    assert names.own("open") == ("", "open") and names.own("look") == ("", "look")


def test_groups_are_flattened_and_calls_come_back_under_their_own_names() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "close", "namespace": "agents", "arguments": "{}"}
    told = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    request = decode(
        body([function("look"), group("agents", "open", "close")], [{"role": "user", "content": "x"}, call, told])
    )
    assert [tool.name for tool in request.tools] == ["look", "agents__open", "agents__close"]
    [part] = request.messages[1].parts
    assert isinstance(part, ToolCall) and part.name == "agents__close"
    assert b'"namespace"' in bytes(request.raw["tools"])
    encoder = OpenAiResponsesServer().encoder(request, StreamMeta("r", 0, None, stream_id="s"))
    told_bytes = encoder.encode(Frame((ToolCallStart(0, "c2", "agents__open"), ToolCallEnd(0))))
    done = msgspec.json.decode(told_bytes.rpartition(b"data: ")[2])["item"]
    assert (done["namespace"], done["name"]) == ("agents", "open")
    plain = encoder.encode(Frame((ToolCallStart(1, "c3", "look"), ToolCallEnd(1))))
    assert b"namespace" not in plain


def test_tools_without_groups_cost_nothing() -> None:
    assert flat_names_of(None) is NO_NAMESPACES
    assert flat_names_of(decode(body([function("look")])).raw["tools"]) is NO_NAMESPACES


WRONG: list[tuple[Any, str]] = [
    ({"type": "namespace", "tools": []}, "tools[0].name"),
    ({"type": "namespace", "name": "a", "tools": [{"type": "function"}]}, "tools[0].tools[0].name"),
    ({"type": "namespace", "name": "a", "tools": [{"type": "custom", "name": "x"}]}, "tools[0].tools[0]"),
    ({"type": "namespace", "name": "a", "tools": [{"type": "namespace", "name": "b"}]}, "tools[0].tools[0]"),
    ({"type": "namespace", "name": "a", "tools": "x"}, "tools[0].tools"),
    ({"type": "namespace", "name": "a\n", "tools": []}, "tools[0].name"),
]


@pytest.mark.parametrize(("tool", "param"), WRONG)
def test_a_wrong_group_is_refused_by_name(tool: Any, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        decode(body([tool]))
    assert raised.value.param == param


def test_a_search_is_an_offer_or_a_demand() -> None:
    search = {"type": "web_search", "external_web_access": True}
    beside = decode(body([function("look"), search]))
    assert (beside.untranslatable, beside.untold) == ((), ("tools.web_search",))
    alone = decode(body([search]))
    assert (alone.untranslatable, alone.tools) == (("tools[0]",), ())
    demanded = msgspec.json.encode(
        {"model": "a/b", "input": "x", "tools": [function("look"), search], "tool_choice": "required"}
    )
    assert decode(demanded).untranslatable == ("tools[1]",)
