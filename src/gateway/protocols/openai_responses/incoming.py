"""A client's Responses body as a canonical request.

What would need a storage (an earlier response, a conversation, a prompt kept at OpenAI) and what only OpenAI could run
(its built-in tools) is refused by name; a request that went on without it would be answered wrongly.
"""

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import JsonSchema, Message, Request, Sampling, Text, Tool, ToolChoice
from gateway.protocols.bodies import check_model_name, decode_fields, decode_json, refuse_routing_fields
from gateway.protocols.openai_responses import NAME
from gateway.protocols.openai_responses.items import conversation
from gateway.protocols.openai_responses.shapes import NamedToolChoice, ResponsesRequest, ResponsesTool, TextOptions

_REQUEST = msgspec.json.Decoder(ResponsesRequest)

_FIELDS_MAX = 256
_LABEL_BYTES_MAX = 512
_LOGPROBS = "message.output_text.logprobs"


def decode(body: bytes) -> Request:
    """Raises ``RequestError`` that names the field as the client wrote it."""
    wanted = decode_json(body, _REQUEST)
    raw = decode_fields(body)
    refuse_routing_fields(raw.keys())
    if len(raw) > _FIELDS_MAX:
        raise RequestError(f"The body has more than {_FIELDS_MAX} fields.")
    _check_storage(wanted)
    _check_options(wanted)
    reasoning = wanted.reasoning
    return Request(
        format=NAME,
        model=check_model_name(wanted.model),
        messages=_messages(wanted),
        stream=bool(wanted.stream),
        output_tokens_max=wanted.max_output_tokens,
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(wanted.tools or ())),
        tool_choice=_tool_choice(wanted.tool_choice),
        parallel_tool_calls=wanted.parallel_tool_calls,
        json_schema=_json_schema(wanted.text),
        sampling=Sampling(temperature=wanted.temperature, top_p=wanted.top_p),
        effort=reasoning.effort if reasoning is not None else None,
        user=wanted.user,
        raw=raw,
    )


def _check_storage(wanted: ResponsesRequest) -> None:
    if wanted.previous_response_id is not None:
        raise RequestError(
            "Responses are not stored here, so there is no previous response to go on from; send the whole "
            "conversation as input.",
            code=ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND,
            param="previous_response_id",
        )
    for name, value in (("conversation", wanted.conversation), ("prompt", wanted.prompt)):
        if value is not None:
            raise _unsupported(f"{name} names something that is kept at OpenAI; it is not available here.", name)
    if wanted.background:
        raise _unsupported("background responses are not available here.", "background")


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


def _messages(wanted: ResponsesRequest) -> tuple[Message, ...]:
    """The instructions come first, as OpenAI puts them."""
    said = (Message("user", (Text(wanted.input),)),) if isinstance(wanted.input, str) else conversation(wanted.input)
    messages = (*((Message("system", (Text(wanted.instructions),)),) if wanted.instructions else ()), *said)
    if not messages:
        raise RequestError("The request has no input.", code=ErrorCode.INVALID_VALUE, param="input")
    return messages


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
