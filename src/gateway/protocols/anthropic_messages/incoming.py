"""A client's Messages body as a canonical request.

The body itself goes on to a provider of the same format (``forward``); what is read here serves every other format,
the token count and the limits. What only Anthropic understands is kept by name in ``untranslatable``.
"""

import hashlib
import re
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import JsonSchema, Message, Request, Sampling, Text, Tool, ToolChoice
from gateway.protocols.anthropic_messages.asked import AskedTool, AskedToolChoice, MessagesRequest
from gateway.protocols.anthropic_messages.blocks import BlockReader
from gateway.protocols.anthropic_messages.shapes import NAME
from gateway.protocols.bodies import (
    check_model_name,
    decode_fields,
    decode_json,
    refuse_routing_fields,
    untold_fields,
)

VERSION = "2023-06-01"
# Took sampling, documents in assistant turns and citations in user turns away:
# https://platform.claude.com/docs/en/api/versioning
VERSION_WITHOUT_SAMPLING = "2026-10-21"
_VERSIONS = (VERSION, VERSION_WITHOUT_SAMPLING)
_GONE = ("temperature", "top_p", "top_k")

# OpenAI refuses a longer user. Claude Code's is a JSON object of 150 characters.
_USER_CHARS_MAX = 64

_REQUEST = msgspec.json.Decoder(MessagesRequest)
_OBJECT = msgspec.json.Decoder(dict[str, Any])

# What another format would lose without a word: where a request is answered, and what it may reach there.
_OWN_ONLY = ("container", "inference_geo", "mcp_servers")
# Fields that other formats are told of, or whose request is refused there; and what asks for nothing.
_TOLD = frozenset((*MessagesRequest.__struct_fields__, *_OWN_ONLY))
_IDLE = {"service_tier": b'"auto"'}
_SPELLING = {
    "messages.reasoning": "messages.thinking",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}
_FIELDS_MAX = 256
_BETAS_MAX = 32
_BETA = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Thinking budget, in tokens, up to which it is this effort; more is "high".
_EFFORTS = ((2048, "low"), (8192, "medium"))
_CHOICES = {"auto": "auto", "any": "required", "tool": "tool", "none": "none"}


def decode(body: bytes, *, version: str | None = None, betas: str | None = None) -> Request:
    """Raises ``RequestError`` that names the field. ``version`` and ``betas`` are what the headers say."""
    asked, request = _decode(body, version, betas)
    if asked.max_tokens is None:
        raise RequestError("max_tokens is missing.", code=ErrorCode.INVALID_VALUE, param="max_tokens")
    return request


def decode_countable(body: bytes, *, version: str | None = None) -> Request:
    """A body whose tokens are to be counted: nothing says how long its answer may be."""
    return _decode(body, version, None)[1]


def _decode(body: bytes, version: str | None, betas: str | None) -> tuple[MessagesRequest, Request]:
    _check_version(version)
    asked = decode_json(body, _REQUEST)
    raw = decode_fields(body)
    _check_fields(asked, raw, version)
    reader = BlockReader(is_strict=version == VERSION_WITHOUT_SAMPLING)
    messages = _messages(asked, reader)
    schema = asked.output_config.format if asked.output_config is not None else None
    choice = asked.tool_choice
    request = Request(
        format=NAME,
        model=check_model_name(asked.model),
        messages=messages,
        stream=bool(asked.stream),
        include_usage=True,
        output_tokens_max=asked.max_tokens,
        tools=_tools(asked.tools or ()),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        json_schema=JsonSchema(schema=schema.schema) if schema is not None else None,
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=tuple(asked.stop_sequences or ()),
        ),
        effort=_effort(asked),
        thinking=_OBJECT.decode(raw["thinking"]) if _thinks(asked) else None,
        user=_user(asked),
        headers=_headers(betas),
        raw=raw,
        untranslatable=(*_untranslatable(asked, raw), *reader.own),
        untold=untold_fields(raw, _TOLD, _IDLE),
        spelling=_SPELLING,
    )
    return asked, request


def _user(asked: MessagesRequest) -> str | None:
    """Who asks, in as many characters as every format takes: of a long id, always the same digest."""
    user = asked.metadata.user_id if asked.metadata is not None else None
    return hashlib.sha256(user.encode()).hexdigest() if user and len(user) > _USER_CHARS_MAX else user


def _check_version(version: str | None) -> None:
    # Without the header Anthropic refuses; whoever talks to it through curl often leaves it out.
    if version is not None and version not in _VERSIONS:
        raise RequestError(
            f"anthropic-version must be one of {', '.join(_VERSIONS)}.",
            code=ErrorCode.INVALID_VALUE,
            param="anthropic-version",
        )


def _check_fields(asked: MessagesRequest, raw: dict[str, msgspec.Raw], version: str | None) -> None:
    refuse_routing_fields(raw.keys())
    if len(raw) > _FIELDS_MAX:
        raise RequestError(f"The body has more than {_FIELDS_MAX} fields.")
    if version == VERSION_WITHOUT_SAMPLING:
        for name in _GONE:
            if bytes(raw.get(name, b"null")) != b"null":
                raise RequestError(
                    f"{name} is not part of version {version}.", code=ErrorCode.UNSUPPORTED_VALUE, param=name
                )
    if asked.thinking is not None and asked.thinking.type == "enabled" and asked.thinking.budget_tokens is None:
        param = "thinking.budget_tokens"
        raise RequestError(f"{param} is missing.", code=ErrorCode.INVALID_VALUE, param=param)
    if any(not stop for stop in asked.stop_sequences or ()):
        raise RequestError(
            "stop_sequences must not hold an empty text.", code=ErrorCode.INVALID_VALUE, param="stop_sequences"
        )


def _messages(asked: MessagesRequest, reader: BlockReader) -> tuple[Message, ...]:
    system = reader.parts(asked.system or "", "system", "system")
    if any(not isinstance(part, Text) for part in system):
        raise RequestError("system can hold only text.", code=ErrorCode.INVALID_VALUE, param="system")
    messages = [Message("system", system)] if system else []
    for number, message in enumerate(asked.messages):
        messages.append(
            Message(message.role, reader.parts(message.content, f"messages[{number}].content", message.role))
        )
    return tuple(messages)


def _tools(tools: list[AskedTool] | tuple[AskedTool, ...]) -> tuple[Tool, ...]:
    own: list[Tool] = []
    for number, tool in enumerate(tools):
        if not _is_custom(tool):
            continue
        for name, value in (("name", tool.name), ("input_schema", tool.input_schema)):
            if value is None:
                where = f"tools[{number}].{name}"
                raise RequestError(f"{where} is missing.", code=ErrorCode.INVALID_VALUE, param=where)
        own.append(
            Tool(
                name=tool.name or "",
                description=tool.description,
                parameters=tool.input_schema,
                strict=tool.strict,
                cache=tool.cache_control,
            )
        )
    return tuple(own)


def _is_custom(tool: AskedTool) -> bool:
    """Whether a client runs it and describes it itself; of the others only Anthropic knows what they take."""
    return tool.type is None or tool.type == "custom"


def _tool_choice(choice: AskedToolChoice | None) -> ToolChoice | None:
    if choice is None:
        return None
    if choice.type == "tool":
        if not choice.name:
            raise RequestError("tool_choice.name is missing.", code=ErrorCode.INVALID_VALUE, param="tool_choice.name")
        return ToolChoice("tool", choice.name)
    return ToolChoice(_CHOICES[choice.type])  # type: ignore[arg-type]


def _thinks(asked: MessagesRequest) -> bool:
    return asked.thinking is not None and asked.thinking.type != "disabled"


def _effort(asked: MessagesRequest) -> str | None:
    """The thinking that is asked for, in the word that other formats have for it."""
    named = asked.output_config.effort if asked.output_config is not None else None
    if named is not None:
        return "high" if named == "max" else named
    if asked.thinking is None or asked.thinking.budget_tokens is None or not _thinks(asked):
        return None
    budget = asked.thinking.budget_tokens
    return next((effort for bound, effort in _EFFORTS if budget <= bound), "high")


def _untranslatable(asked: MessagesRequest, raw: dict[str, msgspec.Raw]) -> list[str]:
    names = [name for name in _OWN_ONLY if bytes(raw.get(name, b"null")) not in (b"null", b"[]")]
    return names + [f"tools[{i}]" for i, tool in enumerate(asked.tools or ()) if not _is_custom(tool)]


def _headers(betas: str | None) -> dict[str, str]:
    """What a provider of this format has to know to understand the body."""
    names = [name.strip() for name in (betas or "").split(",") if name.strip()]
    if len(names) > _BETAS_MAX or any(not _BETA.fullmatch(name) for name in names):
        raise RequestError(
            "anthropic-beta is not a list of names.", code=ErrorCode.INVALID_VALUE, param="anthropic-beta"
        )
    return {"anthropic-beta": ",".join(names)} if names else {}
