"""A client's Responses body as a canonical request.

A body is read first, since it may name an earlier response, and made into a request once that one's items are at hand.
What is kept at OpenAI (a conversation, a prompt) and what only OpenAI could run (its built-in tools) is refused by
name; a request that went on without it would be answered wrongly.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import JsonSchema, Message, Request, Sampling, Text, Tool, ToolChoice
from gateway.protocols.bodies import (
    check_model_name,
    decode_fields,
    decode_json,
    invalid_value,
    refuse_routing_fields,
    untold_fields,
)
from gateway.protocols.openai_responses import NAME
from gateway.protocols.openai_responses.items import conversation
from gateway.protocols.openai_responses.namespaces import FlatNames, flat_names
from gateway.protocols.openai_responses.shapes import (
    InputItem,
    NamedToolChoice,
    ResponsesRequest,
    ResponsesTool,
    TextOptions,
)

_REQUEST = msgspec.json.Decoder(ResponsesRequest)
_ITEMS = msgspec.json.Decoder(list[InputItem])
_RAW_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])

_FIELDS_MAX = 256
_ITEMS_MAX = 10_000
_LABEL_BYTES_MAX = 512
_OURS = ("previous_response_id", "background")
# Named here as they are told to other formats; the rest of what is read is told in one way or another.
_TOLD = (frozenset(ResponsesRequest.__struct_fields__) | {"stream_options"}) - {
    "max_tool_calls",
    "metadata",
    "truncation",
}
_IDLE = {"metadata": b"{}", "service_tier": b'"auto"', "truncation": b'"disabled"'}
_SEARCHES = ("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11")
_LOGPROBS = "message.output_text.logprobs"


class Incoming(msgspec.Struct, frozen=True):
    """A body that was read and checked, but for what it says; ``raw`` has its fields as JSON text."""

    wanted: ResponsesRequest
    raw: dict[str, msgspec.Raw]

    @property
    def items(self) -> list[msgspec.Raw] | str:
        """The input as the client sent it: text, or each item's JSON."""
        said = self.wanted.input
        if isinstance(said, str):
            return said
        return [] if said is None else _RAW_ITEMS.decode(self.raw["input"])

    @property
    def references(self) -> dict[int, str]:
        """Ids of stored items that stand for them, by their place in the input."""
        said = self.wanted.input
        if isinstance(said, str) or said is None:
            return {}
        return {number: item.id for number, item in enumerate(said) if item.id and _is_reference(item)}

    def resolve(self, found: Mapping[str, msgspec.Raw]) -> "Incoming":
        """The same with stored items in place of their ids, as far as they were ``found``."""
        items = self.items
        assert not isinstance(items, str)
        for number, identity in self.references.items():
            items[number] = found.get(identity, items[number])
        said = msgspec.json.encode(items)
        wanted = msgspec.structs.replace(self.wanted, input=_ITEMS.decode(said))
        return Incoming(wanted, {**self.raw, "input": msgspec.Raw(said)})


def _is_reference(item: InputItem) -> bool:
    return item.type == "item_reference" or (item.type is None and item.role is None)


def decode(body: bytes) -> Request:
    """A request that stands for itself; raises ``RequestError`` that names the field as the client wrote it."""
    incoming = read(body)
    if incoming.wanted.background:
        raise _unsupported("Responses are not stored here, so there are none in the background.", "background")
    if incoming.wanted.previous_response_id is not None:
        raise RequestError(
            "Responses are not stored here, so there is no previous response to go on from; send the whole "
            "conversation as input.",
            code=ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND,
            param="previous_response_id",
        )
    return request_of(incoming)


def read(body: bytes) -> Incoming:
    """Raises ``RequestError`` that names the field as the client wrote it."""
    wanted = decode_json(body, _REQUEST)
    raw = decode_fields(body)
    refuse_routing_fields(raw.keys())
    if len(raw) > _FIELDS_MAX:
        raise RequestError(f"The body has more than {_FIELDS_MAX} fields.")
    _check_storage(wanted)
    _check_options(wanted)
    return Incoming(wanted, raw)


def request_of(incoming: Incoming, earlier: Sequence[msgspec.Raw] = ()) -> Request:
    """The request, with the ``earlier`` items of its conversation before its own.

    Its ``raw`` body holds all of them as input, without what only says how the gateway is to answer.
    """
    wanted, raw = incoming.wanted, {name: value for name, value in incoming.raw.items() if name not in _OURS}
    past = _past(earlier)
    if len(past) + (len(wanted.input) if isinstance(wanted.input, list) else 1) > _ITEMS_MAX:
        raise RequestError(
            f"The conversation has more than {_ITEMS_MAX} items; begin a new one.",
            code=ErrorCode.INVALID_VALUE,
            param="previous_response_id",
        )
    if wanted.previous_response_id is not None:
        raw["input"] = msgspec.Raw(msgspec.json.encode([*earlier, *_as_items(incoming.items)]))
    reasoning, names = wanted.reasoning, flat_names(wanted.tools or ())
    offered = _Offered(wanted, names)
    return Request(
        format=NAME,
        model=check_model_name(wanted.model),
        messages=_messages(wanted, past, names),
        stream=bool(wanted.stream or wanted.background),
        output_tokens_max=wanted.max_output_tokens,
        tools=offered.functions,
        tool_choice=_tool_choice(wanted.tool_choice),
        parallel_tool_calls=wanted.parallel_tool_calls,
        json_schema=_json_schema(wanted.text),
        sampling=Sampling(temperature=wanted.temperature, top_p=wanted.top_p),
        effort=reasoning.effort if reasoning is not None else None,
        user=wanted.user,
        raw=raw,
        untranslatable=offered.untranslatable,
        untold=(*untold_fields(raw, _TOLD, _IDLE), *offered.untold),
    )


def _past(earlier: Sequence[msgspec.Raw]) -> list[InputItem]:
    if not earlier:
        return []
    try:
        return _ITEMS.decode(msgspec.json.encode(earlier))
    except msgspec.ValidationError as error:  # what a model named may be no name that a client could send
        raise invalid_value(error, inside="previous_response_id") from None


def _as_items(said: list[msgspec.Raw] | str) -> list[msgspec.Raw]:
    if not isinstance(said, str):
        return said
    return [msgspec.Raw(msgspec.json.encode({"type": "message", "role": "user", "content": said}))]


def _check_storage(wanted: ResponsesRequest) -> None:
    if wanted.previous_response_id is not None and wanted.conversation is not None:
        raise RequestError(
            "previous_response_id and conversation exclude each other; send one of them.",
            code=ErrorCode.INVALID_VALUE,
            param="conversation",
        )
    for name, value in (("conversation", wanted.conversation), ("prompt", wanted.prompt)):
        if value is not None:
            raise _unsupported(f"{name} names something that is kept at OpenAI; it is not available here.", name)
    if wanted.background and wanted.store is False:
        raise RequestError(
            "A background response has to be stored; send store: true.",
            code=ErrorCode.INVALID_VALUE,
            param="background",
        )


def _check_options(wanted: ResponsesRequest) -> None:
    if wanted.top_logprobs:
        raise _unsupported("Log probabilities are not available here.", "top_logprobs")
    if _LOGPROBS in (wanted.include or ()):
        raise _unsupported("Log probabilities are not available here.", "include")
    for name, texts in (("user", (wanted.user or "",)), ("metadata", tuple((wanted.metadata or {}).values()))):
        if any(len(text.encode()) > _LABEL_BYTES_MAX for text in texts):  # the shapes count characters
            raise RequestError(
                f"{name} holds a text of more than {_LABEL_BYTES_MAX} bytes.", code=ErrorCode.INVALID_VALUE, param=name
            )


def _messages(wanted: ResponsesRequest, past: Sequence[InputItem], names: FlatNames) -> tuple[Message, ...]:
    """The instructions come first, as OpenAI puts them."""
    said = conversation(wanted.input, past, names)
    messages = (*((Message("system", (Text(wanted.instructions),)),) if wanted.instructions else ()), *said)
    if not messages:
        raise RequestError("The request has no input.", code=ErrorCode.INVALID_VALUE, param="input")
    return messages


class _Offered:
    """The tools of a request: functions, and a search of the web.

    The search is OpenAI's to run, and an offer that a model does without (Codex always makes it). Where it is demanded,
    or nothing else is offered, an answer without it is not what was asked for.
    """

    def __init__(self, wanted: ResponsesRequest, names: FlatNames) -> None:
        functions: list[Tool] = []
        searches: list[str] = []
        for number, tool in enumerate(wanted.tools or ()):
            where = f"tools[{number}]"
            if tool.type in _SEARCHES:
                searches.append(where)
            elif tool.type == "namespace":
                functions += _namespace(tool, where, names)
            else:
                functions.append(_tool(tool, where))
        self.functions = tuple(functions)
        is_demanded = not functions or wanted.tool_choice == "required"
        self.untranslatable = tuple(searches) if is_demanded else ()
        self.untold = () if is_demanded or not searches else ("tools.web_search",)


def _namespace(group: ResponsesTool, where: str, names: FlatNames) -> Iterator[Tool]:
    if not group.name:
        raise RequestError(f"{where}.name is missing.", code=ErrorCode.INVALID_VALUE, param=f"{where}.name")
    for number, inner in enumerate(group.tools or ()):
        tool = _tool(inner, f"{where}.tools[{number}]")
        yield msgspec.structs.replace(tool, name=names.flat(group.name, tool.name))


def _tool(tool: ResponsesTool, where: str) -> Tool:
    if tool.type != "function":
        raise _unsupported(
            f"{where} is a built-in tool ({tool.type[:64]}), which only OpenAI can run; tools of type function are "
            "available here.",
            where,
        )
    if tool.name is None:
        raise RequestError(f"{where}.name is missing.", code=ErrorCode.INVALID_VALUE, param=f"{where}.name")
    return Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _tool_choice(choice: str | NamedToolChoice | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case NamedToolChoice(type="function", name=str(name)):
            return ToolChoice("tool", name)
        case NamedToolChoice(type=kind) if kind != "function":
            raise _unsupported(f"A tool_choice of type {kind[:64]} is not available here.", "tool_choice")
    raise RequestError(
        "tool_choice must be auto, none, required or a named function.",
        code=ErrorCode.INVALID_VALUE,
        param="tool_choice",
    )


def _json_schema(text: TextOptions | None) -> JsonSchema | None:
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonSchema()
    if wanted.schema is None:
        raise RequestError("text.format.schema is missing.", code=ErrorCode.INVALID_VALUE, param="text.format.schema")
    return JsonSchema(name=wanted.name, schema=wanted.schema, strict=wanted.strict)


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param=param)
