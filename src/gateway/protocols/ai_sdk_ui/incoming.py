"""What ``useChat`` and ``useCompletion`` post, as canonical requests.

An assistant's message is split at its ``step-start`` marks: each step becomes a turn and the results of its calls.
Calls that nobody answered are left out, since the page may have been closed on them. Parts the model has no use for
(sources, data parts) are passed over.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Message, Part, Request, Sampling, Text, ToolChoice
from gateway.protocols.ai_sdk_ui import NAME
from gateway.protocols.ai_sdk_ui.parts import assistant_part, tool_call, tool_result, user_part
from gateway.protocols.ai_sdk_ui.shapes import ChatBody, CompletionBody, NamedTool, Settings, UiMessage, UiPart
from gateway.protocols.bodies import (
    check_model_name,
    check_name,
    decode_fields,
    decode_json,
    refuse_routing_fields,
    untold_fields,
)

StreamProtocol: TypeAlias = Literal["ui", "text", "data"]

_CHAT_PROTOCOLS: tuple[StreamProtocol, ...] = ("ui", "text")
_COMPLETION_PROTOCOLS: tuple[StreamProtocol, ...] = ("ui", "text", "data")
_CHAT = msgspec.json.Decoder(ChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)
_SPELLING = {
    "frequency_penalty": "frequencyPenalty",
    "max_tokens": "maxOutputTokens",
    "presence_penalty": "presencePenalty",
    "reasoning_effort": "reasoningEffort",
    "stop": "stopSequences",
    "tool_choice": "toolChoice",
    "top_k": "topK",
    "top_p": "topP",
}


class UiRequest(Request, frozen=True, kw_only=True):
    """A request with what its answer depends on.

    ``continues`` says that the answer goes on with the last message, the assistant's, instead of beginning one.
    ``stream_protocol`` ``text`` is the bare text that ``TextStreamChatTransport`` reads, ``data`` the data stream of
    AI SDK 4.
    """

    continues: bool = False
    stream_protocol: StreamProtocol = "ui"


def decode_chat(body: bytes, query: Mapping[str, str], default_model: str | None) -> UiRequest:
    """Raises ``RequestError`` that names the field as the client wrote it."""
    chat = decode_json(body, _CHAT)
    fields = decode_fields(body)
    refuse_routing_fields(fields.keys())
    _refuse_older_client(chat)
    for number, tool in enumerate(chat.tools or ()):
        check_name(tool.name, f"tools[{number}].name")
    turns = [turn for number, item in enumerate(chat.messages) for turn in _turns(item, f"messages[{number}]")]
    messages = [turn for turn in turns if turn.parts]
    if not messages:
        raise RequestError(
            "messages: nothing in them is for the model.", code=ErrorCode.INVALID_VALUE, param="messages"
        )
    request = _request(chat, messages, query, default_model)
    return msgspec.structs.replace(
        request,
        tools=tuple(chat.tools or ()),
        tool_choice=_tool_choice(chat.toolChoice),
        untold=untold_fields(fields, ChatBody.__struct_fields__),
        chat_id=chat.id,
        continues=chat.messages[-1].role == "assistant",
        stream_protocol=_stream_protocol(query, _CHAT_PROTOCOLS),
    )


def decode_completion(body: bytes, query: Mapping[str, str], default_model: str | None) -> UiRequest:
    """Raises ``RequestError`` that names the field as the client wrote it."""
    completion = decode_json(body, _COMPLETION)
    fields = decode_fields(body)
    refuse_routing_fields(fields.keys())
    request = _request(completion, [Message("user", (Text(completion.prompt),))], query, default_model)
    return msgspec.structs.replace(
        request,
        untold=untold_fields(fields, CompletionBody.__struct_fields__),
        stream_protocol=_stream_protocol(query, _COMPLETION_PROTOCOLS),
    )


def _request(
    settings: Settings, messages: list[Message], query: Mapping[str, str], default_model: str | None
) -> UiRequest:
    system = [Message("system", (Text(settings.system),))] if settings.system else []
    return UiRequest(
        format=NAME,
        model=_model(settings.model, query, default_model),
        messages=(*system, *messages),
        stream=True,
        output_tokens_max=settings.maxOutputTokens,
        sampling=Sampling(
            temperature=settings.temperature,
            top_p=settings.topP,
            top_k=settings.topK,
            stop=tuple(settings.stopSequences or ()),
            seed=settings.seed,
            frequency_penalty=settings.frequencyPenalty,
            presence_penalty=settings.presencePenalty,
        ),
        effort=settings.reasoningEffort,
        thinking=settings.thinking,
        spelling=_SPELLING,
    )


def _model(named: str | None, query: Mapping[str, str], default_model: str | None) -> str:
    model, provider = query.get("model") or named, query.get("provider")
    if model:
        return check_model_name(f"{provider}/{model}" if provider else model)
    if default_model and not provider:
        return default_model
    raise RequestError(
        "Name the model: ?provider=openai&model=gpt-4o-mini, or model in the body.",
        code=ErrorCode.INVALID_VALUE,
        param="model",
    )


def _stream_protocol(query: Mapping[str, str], known: tuple[StreamProtocol, ...]) -> StreamProtocol:
    asked = query.get("protocol", "ui")
    for protocol in known:
        if asked == protocol:
            return protocol
    raise RequestError(
        f"The protocol must be one of: {', '.join(known)}.", code=ErrorCode.UNSUPPORTED_VALUE, param="protocol"
    )


def _tool_choice(choice: str | NamedTool | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case NamedTool(toolName=name):
            return ToolChoice("tool", name)
        case "none":
            return ToolChoice("none")
        case "required":
            return ToolChoice("required")
        case _:
            return ToolChoice("auto")


def _refuse_older_client(chat: ChatBody) -> None:
    """AI SDK 4 posts to the same path by default, and would read our answer as an empty one."""
    for number, message in enumerate(chat.messages):
        if message.parts is None or (message.content is not None and chat.trigger is None):
            where = f"messages[{number}].parts"
            raise RequestError(
                f"{where}: a message of AI SDK 5 or later has parts only. AI SDK 4 talks to /api/ai/chat-stream.",
                code=ErrorCode.INVALID_VALUE,
                param=where,
            )


def _turns(message: UiMessage, where: str) -> list[Message]:
    placed = [(part, f"{where}.parts[{number}]") for number, part in enumerate(message.parts or ())]
    if message.role == "system":
        return [Message("system", tuple(Text(part.text or "") for part, _ in placed if part.type == "text"))]
    if message.role == "user":
        return [Message("user", tuple(found for part, at in placed if (found := user_part(part, at))))]
    return _assistant_turns(placed)


def _assistant_turns(placed: list[tuple[UiPart, str]]) -> list[Message]:
    turns: list[Message] = []
    step: list[tuple[UiPart, str]] = []
    for part, where in placed:
        if part.type == "step-start":
            turns += _step(step)
            step = []
        elif part.type == "steering-message":  # what a user of AI SDK 7 said in the middle of an answer
            turns += _step(step)
            step = []
            steering = [user_part(it, f"{where}.parts[{number}]") for number, it in enumerate(part.parts or ())]
            turns.append(Message("user", tuple(found for found in steering if found)))
        else:
            step.append((part, where))
    return turns + _step(step)


def _step(placed: list[tuple[UiPart, str]]) -> list[Message]:
    """One turn of the model, in the order in which it spoke, and the results of its calls."""
    said: list[Part] = []
    results: list[Part] = []
    for part, where in placed:
        if part.type == "dynamic-tool" or part.type.startswith("tool-"):
            result = tool_result(part)
            if result is not None:
                said.append(tool_call(part, where))
                results.append(result)
        elif (found := assistant_part(part)) is not None:
            said.append(found)
    return [Message("assistant", tuple(said)), Message("tool", tuple(results))]
