"""What a Chat Completions body cannot say of a request in another format.

One row per field; ``outgoing`` is what leaves them out. More stop sequences than OpenAI takes are no loss: they are
sent, since most vendors take them, and refused by those that do not.
"""

from collections.abc import Callable, Iterable, Iterator

from gateway.canonical.request import (
    Document,
    Image,
    Loss,
    Message,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    ToolResult,
)

_SPOKEN = (Text, Refusal, ToolCall, Reasoning)
_ORDERS = ("required", "tool")
_BUDGET = "thinking.budget_tokens"


def losses(request: Request) -> tuple[Loss, ...]:
    """Each field once."""
    dropped = [name for name, is_lost in _DROPPED.items() if is_lost(request)]
    dropped += dict.fromkeys(name for message in request.messages for name in _parts_lost(message))
    return (*(Loss("dropped", name) for name in dropped), *_changed(request))


_DROPPED: dict[str, Callable[[Request], object]] = {
    "top_k": lambda request: request.sampling.top_k is not None,
    "tool_choice": lambda request: (
        not request.tools and request.tool_choice is not None and request.tool_choice.mode in _ORDERS
    ),
    "thinking": lambda request: _thinks(request) and request.effort is None,
    "tools.cache_control": lambda request: any(tool.cache for tool in request.tools),
}


def _thinks(request: Request) -> bool:
    return request.thinking is not None and request.thinking.get("type") != "disabled"


def _changed(request: Request) -> tuple[Loss, ...]:
    """A budget in tokens is said as an effort."""
    if _thinks(request) and request.effort is not None and (request.thinking or {}).get("budget_tokens") is not None:
        return (Loss("changed", _BUDGET),)
    return ()


def _parts_lost(message: Message) -> Iterator[str]:
    for part in message.parts:
        if isinstance(part, ToolResult):
            if part.is_error:
                yield "messages.is_error"
            yield from _kinds(part.content, (Text, Image, Document))
        elif message.role == "assistant":
            yield from _kinds((part,), _SPOKEN)
        if isinstance(part, Reasoning):
            yield "messages.reasoning"
        if _is_marked(part):
            yield "messages.cache_control"


def _kinds(parts: Iterable[Part], kept: tuple[type[Part], ...]) -> Iterator[str]:
    """What stands where only text may: it is passed over."""
    for part in parts:
        if not isinstance(part, kept):
            yield f"messages.{type(part).__name__.lower()}"
        if _is_marked(part):
            yield "messages.cache_control"


def _is_marked(part: Part) -> bool:
    return bool(getattr(part, "cache", None))
