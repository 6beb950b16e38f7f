"""Items of stored responses: kept whole, found by their ids, listed page by page, and said again."""

from typing import Any

import msgspec
import pytest

from gateway.canonical.errors import RequestError
from gateway.canonical.request import Message, Text, ToolCall, ToolResult
from gateway.protocols.openai_responses import history
from gateway.protocols.openai_responses.incoming import read, request_of

STREAM = "0123456789abcdef" * 2
RESPONSE = f"resp_{STREAM}"


def raws(*items: dict[str, Any]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(item)) for item in items]


def plain(items: list[msgspec.Raw]) -> list[Any]:
    return [msgspec.json.decode(item) for item in items]


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", **fields})


def test_text_is_kept_as_a_message() -> None:
    (kept,) = plain(history.keepable("Hi", RESPONSE))
    assert kept == {
        "id": f"msg_{STREAM}i0",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "Hi"}],
    }


def test_items_are_kept_with_what_nobody_here_knows_and_with_the_ids_they_have() -> None:
    said = raws(
        {"role": "assistant", "content": "Hm", "id": "msg_own", "phase": "final"},
        {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "reasoning", "summary": [], "encrypted_content": "sealed"},
    )
    kept = plain(history.keepable(said, RESPONSE))
    assert [item["id"] for item in kept] == ["msg_own", f"fc_{STREAM}i1", f"fco_{STREAM}i2", f"rs_{STREAM}i3"]
    assert kept[0]["phase"] == "final" and kept[0]["content"][0] == {
        "type": "output_text",
        "text": "Hm",
        "annotations": [],
    }
    assert kept[3]["encrypted_content"] == "sealed" and "status" not in kept[3]


@pytest.mark.parametrize(
    ("item_id", "response_id"),
    [
        (f"msg_{STREAM}0003", RESPONSE),
        (f"fco_{STREAM}i1f", RESPONSE),
        (f"msg_{STREAM}", None),
        ("msg_own", None),
        (f"resp_{STREAM}\n", None),
        ("", None),
    ],
)
def test_an_items_id_tells_its_response(item_id: str, response_id: str | None) -> None:
    assert history.response_of(item_id) == response_id


def test_items_are_found_by_their_ids() -> None:
    items = raws({"id": "a", "type": "message"}, {"id": 5}, {"type": "message"})
    assert history.by_id(items) == {"a": items[0]}


def test_a_page_tells_whether_there_is_more() -> None:
    items = raws(*({"id": f"i{n}"} for n in range(3)))
    page = history.item_page(items, {"limit": "2"})
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("i2", "i1", True)
    rest = history.item_page(items, {"limit": "2", "after": "i1"})
    assert plain(rest["data"]) == [{"id": "i0"}] and rest["has_more"] is False
    empty = history.item_page(items, {"order": "asc", "after": "i2"})
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1e1", "٣", "", " 5", "99999"])
def test_a_page_has_a_sensible_size(limit: str) -> None:
    with pytest.raises(RequestError) as refused:
        history.item_page([], {"limit": limit})
    assert refused.value.param == "limit"


def test_a_request_begins_with_what_came_before() -> None:
    earlier = history.sayable(
        raws(
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "c1", "name": "w", "arguments": "{}", "status": "completed"},
            {"type": "function_call", "call_id": "c2", "name": "w", "arguments": "{", "status": "incomplete"},
        )
    )
    answer = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    incoming = read(body(input=[answer], instructions="Be brief.", previous_response_id="resp_1", store=False))
    request = request_of(incoming, earlier)
    assert request.messages == (
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("Weather?"),)),
        Message("assistant", (ToolCall("c1", "w", "{}"),)),
        Message("tool", (ToolResult("c1", (Text("rain"),)),)),
    )
    assert "previous_response_id" not in request.raw
    assert [item["type"] for item in msgspec.json.decode(request.raw["input"])] == [
        "message",
        "function_call",
        "function_call_output",
    ]


def test_text_that_goes_on_is_an_item_among_items() -> None:
    earlier = raws({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]})
    request = request_of(read(body(input="Hi", previous_response_id="resp_1")), earlier)
    assert [message.role for message in request.messages] == ["assistant", "user"]
    assert msgspec.json.decode(request.raw["input"])[1] == {"type": "message", "role": "user", "content": "Hi"}


def test_a_conversation_may_go_on_without_anything_new() -> None:
    earlier = raws({"role": "user", "content": "Hi"})
    request = request_of(read(body(previous_response_id="resp_1")), earlier)
    assert request.messages == (Message("user", (Text("Hi"),)),)


def test_a_conversation_of_too_many_items_is_refused() -> None:
    earlier = raws(*({"role": "user", "content": "x"} for _ in range(10_000)))
    with pytest.raises(RequestError) as refused:
        request_of(read(body(input="Hi", previous_response_id="resp_1")), earlier)
    assert refused.value.param == "previous_response_id"


def test_references_give_way_to_what_they_stand_for() -> None:
    incoming = read(body(input=[{"type": "item_reference", "id": "a"}, {"id": "b"}, {"role": "user", "content": "x"}]))
    assert incoming.references == {0: "a", 1: "b"}
    (said,) = raws({"type": "message", "role": "user", "content": "first"})
    found = incoming.resolve({"a": said})
    assert found.references == {1: "b"}
    with pytest.raises(RequestError) as refused:
        request_of(found)
    assert refused.value.param == "input[1]"
    assert plain(history.keepable(found.items, RESPONSE))[0]["content"][0]["text"] == "first"
