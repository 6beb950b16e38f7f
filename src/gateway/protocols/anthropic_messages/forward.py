"""The client's own body on its way to a provider of the same format: only what the gateway owns is changed.

That is the model's name, streaming, and the bound on the answer where it is lower than the client's; a thinking budget
has to stay below that. Thinking without a signature is left out: it came from a model that signs nothing, and
Anthropic answers it with 400.
"""

from typing import Any

import msgspec

from gateway.canonical.request import Reasoning, Request
from gateway.protocols.signatures import is_marked, is_signed_by_anthropic

_BUDGET_TOKENS_MIN = 1024


class _Turn(msgspec.Struct, frozen=True):
    role: str
    content: str | list[msgspec.Raw]


class _Block(msgspec.Struct, frozen=True):
    type: str
    signature: str | None = None
    data: str | None = None


_TURNS = msgspec.json.Decoder(list[_Turn])
_BLOCK = msgspec.json.Decoder(_Block)


def forward(request: Request, model: str) -> bytes:
    """The body of a streaming call to ``model``."""
    body: dict[str, Any] = dict(request.raw)
    body["model"] = model
    body["stream"] = True
    if request.output_tokens_max is not None:
        body["max_tokens"] = request.output_tokens_max
        _lower_budget(body, request)
    if any(map(_is_unsigned, (part for message in request.messages for part in message.parts))):
        _leave_out_unsigned(body)
    return msgspec.json.encode(body)


def _lower_budget(body: dict[str, Any], request: Request) -> None:
    """A client whose budget was above its own bound knows why; only what the gateway lowered is set right."""
    bound, thinking = request.output_tokens_max, request.thinking
    asked = msgspec.json.decode(request.raw.get("max_tokens", b"null"))
    if bound is None or thinking is None or asked is None or bound >= asked:
        return
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or budget < bound:
        return
    if bound <= _BUDGET_TOKENS_MIN:
        del body["thinking"]
    else:
        body["thinking"] = {**thinking, "budget_tokens": bound - 1}


def _is_unsigned(part: object) -> bool:
    return isinstance(part, Reasoning) and not is_signed_by_anthropic(part)


def _leave_out_unsigned(body: dict[str, Any]) -> None:
    turns: list[_Turn] = []
    was_thought = False
    for turn in _TURNS.decode(body["messages"]):
        if turn.role != "assistant" or isinstance(turn.content, str):
            turns.append(turn)
            continue
        content = [block for block in turn.content if not _is_unsigned_block(block)]
        # A turn that called tools must begin with its thinking while thinking is on.
        was_thought = len(content) < len(turn.content) and any(
            _BLOCK.decode(block).type == "tool_use" for block in content
        )
        if content:
            turns.append(_Turn(turn.role, content))
    body["messages"] = turns
    if was_thought:
        body.pop("thinking", None)


def _is_unsigned_block(block: msgspec.Raw) -> bool:
    shape = _BLOCK.decode(block)
    if shape.type == "redacted_thinking":
        return is_marked(shape.data or "")
    return shape.type == "thinking" and (not shape.signature or is_marked(shape.signature))
