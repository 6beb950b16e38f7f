"""Items of stored responses: how they are kept, found by their ids, listed, and said again.

Items stay JSON text here, since what is in them is the client's and the model's; only what they are is looked at.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError

RESPONSE_ID = re.compile(r"resp_[A-Za-z0-9._:-]{1,64}", re.ASCII)
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})(?:i?[0-9a-f]+)", re.ASCII)
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_PAGE = 20
_PAGE_MAX = 100
_INCLUDABLE = frozenset(
    (
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    )
)


class _Item(msgspec.Struct, frozen=True):
    type: str = "message"
    id: Any = None
    status: Any = None


class _Response(msgspec.Struct, frozen=True):
    output: list[msgspec.Raw] = []


_ITEM = msgspec.json.Decoder(_Item)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_RESPONSE = msgspec.json.Decoder(_Response)


def keepable(said: list[msgspec.Raw] | str, response_id: str) -> list[msgspec.Raw]:
    """A response's own input as it is kept and listed: whole items, each with an id."""
    if isinstance(said, str):
        said = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": said}))]
    stream_id = stream_of(response_id)
    return [_keepable(_OBJECT.decode(item), f"{stream_id}i{number:x}") for number, item in enumerate(said)]


def _keepable(item: dict[str, Any], name: str) -> msgspec.Raw:
    kind = item.get("type") or "message"
    whole = {**item, "id": item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{name}", "type": kind}
    if kind == "message":
        whole["status"] = item.get("status") or "completed"
        if isinstance(item.get("content"), str):
            is_said = item.get("role") == "assistant"
            part = {"type": "output_text" if is_said else "input_text", "text": item["content"]}
            whole["content"] = [{**part, "annotations": []} if is_said else part]
    return msgspec.Raw(msgspec.json.encode(whole))


def output_of(response: msgspec.Raw) -> list[msgspec.Raw]:
    """The items that a kept response said."""
    return _RESPONSE.decode(response).output


def sayable(output: Iterable[msgspec.Raw]) -> list[msgspec.Raw]:
    """Items of an answer as they are said again: without a call that was cut off, since it was never answered."""
    return [item for item in output if not _is_cut_off_call(_ITEM.decode(item))]


def _is_cut_off_call(item: _Item) -> bool:
    return item.type == "function_call" and item.status == "incomplete"


def stream_of(response_id: str) -> str:
    """The id of the stream that made a response."""
    return response_id.removeprefix("resp_")


def response_of(item_id: str) -> str | None:
    """The response in which the item of this id is, if the id is one that was given here."""
    match = _ITEM_ID.fullmatch(item_id)
    return None if match is None else f"resp_{match[1]}"


def by_id(items: Iterable[msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Items by their ids."""
    found = ((_ITEM.decode(item).id, item) for item in items)
    return {identity: item for identity, item in found if isinstance(identity, str)}


def item_page(items: Sequence[msgspec.Raw], query: Mapping[str, str]) -> dict[str, Any]:
    """The page of a response's input that ``limit``, ``order`` and ``after`` ask for; the newest item comes first."""
    limit, order = _limit(query.get("limit")), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError("order must be asc or desc.", code=ErrorCode.INVALID_VALUE, param="order")
    listed = list(items) if order == "asc" else list(reversed(items))
    names = [_ITEM.decode(item).id for item in listed]
    after, start = query.get("after"), 0
    if after is not None:
        if after not in names:
            raise RequestError("after names no input item of this response.", code=ErrorCode.NOT_FOUND, param="after")
        start = names.index(after) + 1
    page, names = listed[start : start + limit], names[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
        "has_more": len(listed) > start + limit,
    }


def check_include(wanted: Sequence[str]) -> None:
    """Raises ``RequestError`` for what no response could include; the rest changes nothing about what was kept."""
    if unknown := sorted(set(wanted) - _INCLUDABLE):
        raise RequestError(
            f"include does not know {unknown[0][:64]!r}; it may be {', '.join(sorted(_INCLUDABLE))}.",
            code=ErrorCode.INVALID_VALUE,
            param="include",
        )


def _limit(text: str | None) -> int:
    if text is None:
        return _PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _PAGE_MAX):
        raise RequestError(
            f"limit must be a number from 1 to {_PAGE_MAX}.", code=ErrorCode.INVALID_VALUE, param="limit"
        )
    return int(text)
