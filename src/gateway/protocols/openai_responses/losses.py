"""What a Responses body cannot say of a request in another format, one row per field; ``outgoing`` leaves them out.

What changes the meaning (stop sequences, several choices) is not here: it is refused.
"""

from collections.abc import Callable, Iterable, Iterator

from gateway.canonical.request import Loss, Message, Part, Reasoning, Request, ToolResult
from gateway.protocols.openai_responses.issued import reasoning_item

OUTPUT_TOKENS_MIN = 16

_ORDERS = ("required", "tool")


def losses(request: Request) -> tuple[Loss, ...]:
    """Each field once."""
    dropped = [name for name, is_lost in _DROPPED.items() if is_lost(request)]
    dropped += dict.fromkeys(name for message in request.messages for name in _parts_lost(message))
    return (*(Loss("dropped", name) for name in dropped), *_changed(request))


_DROPPED: dict[str, Callable[[Request], object]] = {
    "seed": lambda request: request.sampling.seed is not None,
    "frequency_penalty": lambda request: request.sampling.frequency_penalty,
    "presence_penalty": lambda request: request.sampling.presence_penalty,
    "top_k": lambda request: request.sampling.top_k is not None,
    "tool_choice": lambda request: (
        not request.tools and request.tool_choice is not None and request.tool_choice.mode in _ORDERS
    ),
    "thinking": lambda request: thinks(request) and request.effort is None,
    "tools.cache_control": lambda request: any(tool.cache for tool in request.tools),
}


def thinks(request: Request) -> bool:
    """Whether thinking is asked for in Anthropic's way."""
    return request.thinking is not None and request.thinking.get("type") != "disabled"


def _changed(request: Request) -> Iterator[Loss]:
    if request.output_tokens_max is not None and request.output_tokens_max < OUTPUT_TOKENS_MIN:
        yield Loss("changed", "max_tokens")
    # A budget in tokens is said as an effort.
    if thinks(request) and request.effort is not None and (request.thinking or {}).get("budget_tokens") is not None:
        yield Loss("changed", "thinking.budget_tokens")


def _parts_lost(message: Message) -> Iterator[str]:
    for part in message.parts:
        if isinstance(part, ToolResult):
            if part.is_error:
                yield "messages.is_error"
            yield from _marks(part.content)
        if isinstance(part, Reasoning) and reasoning_item(part) is None:
            yield "messages.reasoning"
        yield from _marks((part,))


def _marks(parts: Iterable[Part]) -> Iterator[str]:
    return ("messages.cache_control" for part in parts if getattr(part, "cache", None))
