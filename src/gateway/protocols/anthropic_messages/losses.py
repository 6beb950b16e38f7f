"""What a Messages body cannot say of a request in another format, one row per field; ``client`` leaves them out.

What changes the meaning is not here: it is refused. Nor is what ``history`` repairs, since Anthropic would refuse the
conversation as it was.
"""

from collections.abc import Callable, Iterator
from typing import Any

from gateway.canonical.request import Audio, Image, Loss, Message, Reasoning, Request, ToolResult
from gateway.protocols.anthropic_messages.thinking import budget_of, is_on
from gateway.protocols.signatures import is_signed_by_anthropic

TOP_P_MIN_WHEN_THINKING = 0.95

_IDLE_DETAILS = (None, "auto")
_ORDERS = ("required", "tool")


def losses(request: Request, thinking: dict[str, Any] | None) -> tuple[Loss, ...]:
    """Each field once; ``thinking`` is what is sent."""
    dropped = [name for name, is_lost in _DROPPED.items() if is_lost(request)]
    if is_on(thinking):
        dropped += [name for name, is_lost in _DROPPED_WHEN_THINKING.items() if is_lost(request)]
    dropped += dict.fromkeys(name for message in request.messages for name in _parts_lost(message))
    return (*(Loss("dropped", name) for name in dropped), *_thinking_lost(request, thinking))


_DROPPED: dict[str, Callable[[Request], object]] = {
    "seed": lambda request: request.sampling.seed is not None,
    "frequency_penalty": lambda request: request.sampling.frequency_penalty,
    "presence_penalty": lambda request: request.sampling.presence_penalty,
    # "stop_sequences: each stop sequence must contain non-whitespace"
    "stop": lambda request: any(not stop.strip() for stop in request.sampling.stop),
    # There is no "any JSON object" mode.
    "response_format": lambda request: request.json_schema is not None and request.json_schema.schema is None,
    "tool_choice": lambda request: (
        not request.tools and request.tool_choice is not None and request.tool_choice.mode in _ORDERS
    ),
}

# https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility
_DROPPED_WHEN_THINKING: dict[str, Callable[[Request], object]] = {
    "temperature": lambda request: request.sampling.temperature not in (None, 1),
    "top_p": lambda request: request.sampling.top_p is not None and request.sampling.top_p < TOP_P_MIN_WHEN_THINKING,
    "top_k": lambda request: request.sampling.top_k is not None,
}


def _thinking_lost(request: Request, thinking: dict[str, Any] | None) -> Iterator[Loss]:
    if request.effort not in (None, "none") and (request.thinking is not None or not is_on(thinking)):
        yield Loss("dropped", "reasoning_effort")
    if not is_on(request.thinking):
        return
    if not is_on(thinking):
        yield Loss("dropped", "thinking")
    elif budget_of(thinking) != budget_of(request.thinking):
        yield Loss("lowered", "thinking.budget_tokens")


def _parts_lost(message: Message) -> Iterator[str]:
    for part in message.parts:
        for shown in part.content if isinstance(part, ToolResult) else (part,):
            if isinstance(shown, Image) and shown.detail not in _IDLE_DETAILS:
                yield "messages.detail"
            if isinstance(shown, Audio):  # refused in the end; known here before anything is held for it
                yield "messages.audio"
        if isinstance(part, Reasoning) and not is_signed_by_anthropic(part):
            yield "messages.reasoning"
