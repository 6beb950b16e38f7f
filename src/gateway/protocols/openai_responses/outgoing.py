"""The body of a call to a provider that speaks Responses.

``forward`` sends the client's own body with only the fields changed that the gateway owns; ``encode`` writes one for a
request that came in another format. Nothing is ever stored at the provider: what it thought comes back to it sealed,
as items of the next request.
Reference: https://platform.openai.com/docs/api-reference/responses/create.
"""

import re
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Message, Reasoning, Request, Text, Tool
from gateway.protocols.openai_responses.issued import unseal
from gateway.protocols.openai_responses.losses import OUTPUT_TOKENS_MIN, thinks
from gateway.protocols.openai_responses.said import encode_input

ENCRYPTED = "reasoning.encrypted_content"

# Models that reason whether asked or not. Others answer 400 where encrypted reasoning is asked of them.
_REASONS = re.compile(r"(?:[a-z0-9-]+/)?(?:ft:)?(?:o[1-9]|gpt-[5-9](?!.*-chat)|gpt-oss)")
_STOP_FIELDS = {"anthropic_messages": "stop_sequences"}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class _Item(msgspec.Struct, frozen=True):
    type: str | None = None
    encrypted_content: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"null")


_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder(_Item)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INCLUDE = msgspec.json.Decoder(list[str] | None)


def forward(request: Request, model: str) -> bytes:
    """The client's body, streaming and without storage, addressed to ``model``."""
    body: dict[str, Any] = dict(request.raw)
    body["model"] = model
    body["stream"] = True
    body["store"] = False
    if request.output_tokens_max is not None:
        body["max_output_tokens"] = max(request.output_tokens_max, OUTPUT_TOKENS_MIN)
    if _reasons(request, model):
        asked = _INCLUDE.decode(body["include"]) if "include" in body else None
        body["include"] = list(dict.fromkeys((*(asked or ()), ENCRYPTED)))
    if any(isinstance(part, Reasoning) for message in request.messages for part in message.parts):
        body["input"] = [opened for item in _ITEMS.decode(body["input"]) if (opened := _opened(item)) is not None]
    return msgspec.json.encode(body)


def _opened(item: msgspec.Raw) -> msgspec.Raw | None:
    """An item as its provider issued it; reasoning that it could not read is left out, since it answers it with 400."""
    shape = _ITEM.decode(item)
    if shape.type != "reasoning":
        return item
    if shape.encrypted_content is None:
        return None if bytes(shape.content) == b"null" else item
    issued = unseal(shape.encrypted_content)
    if issued is None:
        return None
    identity, encrypted = issued
    fields: dict[str, Any] = {**_FIELDS.decode(item), "encrypted_content": encrypted}
    if identity:
        fields["id"] = identity
    return msgspec.Raw(msgspec.json.encode(fields))


def encode(request: Request, model: str) -> bytes:
    """The canonical request as a Responses body; raises ``RequestError`` for what the format cannot carry."""
    refuse_unsupported(request)
    instructions, rest = _instructions(request.messages)
    said = encode_input(rest)
    if not said:
        raise RequestError(
            "This model needs at least one message beside the system messages.",
            code=ErrorCode.INVALID_VALUE,
            param="messages",
        )
    bound = request.output_tokens_max
    body: dict[str, Any] = {
        "model": model,
        "input": said,
        "instructions": instructions,
        "stream": True,
        "store": False,
        "include": [ENCRYPTED] if _reasons(request, model) else None,
        "max_output_tokens": None if bound is None else max(bound, OUTPUT_TOKENS_MIN),
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "reasoning": _reasoning(request),
        "user": request.user,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "tool_choice": _tool_choice(request),
        "text": _text(request),
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def refuse_unsupported(request: Request) -> None:
    """Raises ``RequestError`` for what the format has no word for and an answer would be wrong without."""
    if request.choices > 1:
        raise _unsupported("This model gives one choice per request; send n=1.", "n")
    if request.sampling.stop:
        # Without them the answer would go on past where the client wanted it to end.
        param = _STOP_FIELDS.get(request.format, "stop")
        raise _unsupported("This model takes no stop sequences.", param)


def _reasons(request: Request, model: str) -> bool:
    """Whether to ask for the reasoning as its provider wants to see it again."""
    return thinks(request) or request.effort not in (None, "none") or _REASONS.match(model) is not None


def _instructions(messages: tuple[Message, ...]) -> tuple[str | None, tuple[Message, ...]]:
    """The system messages at the head; one that stands later stays where it is."""
    count = 0
    while count < len(messages) and _is_instruction(messages[count]):
        count += 1
    texts = ["".join(part.text for part in message.parts if isinstance(part, Text)) for message in messages[:count]]
    return "\n\n".join(filter(None, texts)) or None, messages[count:]


def _is_instruction(message: Message) -> bool:
    return message.role == "system" and all(isinstance(part, Text) for part in message.parts)


def _reasoning(request: Request) -> dict[str, Any] | None:
    reasoning: dict[str, Any] = {} if request.effort is None else {"effort": request.effort}
    if thinks(request) and (request.thinking or {}).get("display") != "omitted":
        # Whoever asks for thinking wants to see it. OpenAI shows none unasked, and not to every account.
        reasoning["summary"] = "auto"
    return reasoning or None


def _tool(tool: Tool) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    return {
        "type": "function",
        "name": tool.name,
        **described,
        "parameters": tool.parameters or _NO_PARAMETERS,
        # Unlike everywhere else, a tool is strict here unless it says that it is not.
        "strict": bool(tool.strict),
    }


def _tool_choice(request: Request) -> str | dict[str, Any] | None:
    choice = request.tool_choice
    if choice is None or not request.tools:
        return None
    return {"type": "function", "name": choice.name} if choice.mode == "tool" else choice.mode


def _text(request: Request) -> dict[str, Any] | None:
    wanted = request.json_schema
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"format": {"type": "json_object"}}
    strict = {} if wanted.strict is None else {"strict": wanted.strict}
    return {"format": {"type": "json_schema", "name": wanted.name, "schema": wanted.schema, **strict}}


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param=param)
