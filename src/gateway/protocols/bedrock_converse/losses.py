"""What a Converse body cannot say of a request, one row per field; ``client`` leaves them out.

What changes the meaning is not here: it is refused. Nor is what ``history`` repairs.
"""

from collections.abc import Callable, Iterator

from gateway.canonical.request import Image, Loss, Message, Part, Reasoning, Request, ToolResult
from gateway.protocols.bedrock_converse.families import (
    CACHES_MESSAGES,
    CACHES_TOOLS,
    TAKES_RESULT_STATUS,
    TAKES_TOP_K,
    Family,
)
from gateway.protocols.bedrock_converse.history import can_replay
from gateway.protocols.bedrock_converse.thinking import Reasoning as Asked

TOP_P_MIN_WHEN_THINKING = 0.95

_IDLE_DETAILS = (None, "auto")
_ORDERS = ("required", "tool")


def losses(request: Request, family: Family, asked: Asked) -> tuple[Loss, ...]:
    """Each field once; ``asked`` is how the model is asked to reason."""
    dropped = [name for name, is_lost in _DROPPED.items() if is_lost(request)]
    dropped += [name for name, is_lost in _DROPPED_BY_FAMILY.items() if is_lost(request, family)]
    if asked.is_thinking:
        dropped += [name for name, is_lost in _DROPPED_WHEN_THINKING.items() if is_lost(request)]
    dropped += [name for message in request.messages for name in _parts_lost(message, family)]
    return (*(Loss("dropped", name) for name in dict.fromkeys(dropped)), *_reasoning_lost(request, asked))


_DROPPED: dict[str, Callable[[Request], object]] = {
    "seed": lambda request: request.sampling.seed is not None,
    "frequency_penalty": lambda request: request.sampling.frequency_penalty,
    "presence_penalty": lambda request: request.sampling.presence_penalty,
    "stop": lambda request: any(not stop.strip() for stop in request.sampling.stop),
    "user": lambda request: request.user,
    # There is no "any JSON object" mode.
    "response_format": lambda request: request.json_schema is not None and request.json_schema.schema is None,
    "parallel_tool_calls": lambda request: request.tools and request.parallel_tool_calls is False,
    "tool_choice": lambda request: (
        not request.tools and request.tool_choice is not None and request.tool_choice.mode in _ORDERS
    ),
}

_DROPPED_BY_FAMILY: dict[str, Callable[[Request, Family], object]] = {
    "top_k": lambda request, family: request.sampling.top_k is not None and family not in TAKES_TOP_K,
    "tools.cache_control": lambda request, family: (
        family not in CACHES_TOOLS and any(tool.cache for tool in request.tools)
    ),
}

# https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility
_DROPPED_WHEN_THINKING: dict[str, Callable[[Request], object]] = {
    "temperature": lambda request: request.sampling.temperature not in (None, 1),
    "top_p": lambda request: request.sampling.top_p is not None and request.sampling.top_p < TOP_P_MIN_WHEN_THINKING,
    "top_k": lambda request: request.sampling.top_k is not None,
}


def _reasoning_lost(request: Request, asked: Asked) -> Iterator[Loss]:
    name = "thinking" if request.thinking is not None else "reasoning_effort"
    if asked.is_dropped:
        yield Loss("dropped", name)
    elif asked.is_changed:
        yield Loss("lowered", "thinking.budget_tokens") if request.thinking is not None else Loss("changed", name)


def _parts_lost(message: Message, family: Family) -> Iterator[str]:
    for part in message.parts:
        yield from _part_lost(part, family)
        if isinstance(part, ToolResult):
            if part.is_error and family not in TAKES_RESULT_STATUS:
                yield "messages.is_error"
            for shown in part.content:
                yield from _part_lost(shown, family)
        elif isinstance(part, Reasoning) and not can_replay(part, family):
            yield "messages.reasoning"


def _part_lost(part: Part, family: Family) -> Iterator[str]:
    if isinstance(part, Image) and part.detail not in _IDLE_DETAILS:
        yield "messages.detail"
    if getattr(part, "cache", None) and family not in CACHES_MESSAGES:
        yield "messages.cache_control"
