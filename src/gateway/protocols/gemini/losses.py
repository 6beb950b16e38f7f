"""What a body for Gemini cannot say of a request in another format, one row per field; ``outgoing`` leaves them out.

What changes the meaning is not here: it is refused. Nor is what ``history`` repairs, since Gemini would refuse the
conversation as it was.
"""

from collections.abc import Callable, Iterator

from gateway.canonical.request import Image, Loss, Message, Reasoning, Request, ToolResult
from gateway.protocols.gemini.issued import unmark
from gateway.protocols.gemini.outgoing import is_seed
from gateway.protocols.gemini.schema import loses
from gateway.protocols.gemini.thinking import thinking_lost

_IDLE_DETAILS = (None, "auto")
_ORDERS = ("required", "tool")


def losses(request: Request, model: str) -> tuple[Loss, ...]:
    """Each field once; raises ``RequestError`` for an effort that has no name."""
    dropped = [name for name, is_lost in _DROPPED.items() if is_lost(request)]
    dropped += dict.fromkeys(name for message in request.messages for name in _parts_lost(message))
    changed = [name for name, is_lost in _CHANGED.items() if is_lost(request)]
    return (
        *(Loss("dropped", name) for name in dropped),
        *(Loss("changed", name) for name in changed),
        *thinking_lost(request, model),
    )


_DROPPED: dict[str, Callable[[Request], object]] = {
    "seed": lambda request: request.sampling.seed is not None and not is_seed(request.sampling.seed),
    "user": lambda request: request.user,
    "parallel_tool_calls": lambda request: request.tools and request.parallel_tool_calls is False,
    "tool_choice": lambda request: (
        not request.tools and request.tool_choice is not None and request.tool_choice.mode in _ORDERS
    ),
    "tools.strict": lambda request: any(tool.strict for tool in request.tools),
    "tools.cache_control": lambda request: any(tool.cache for tool in request.tools),
}

_CHANGED: dict[str, Callable[[Request], object]] = {
    "tools.parameters": lambda request: any(loses(tool.parameters) for tool in request.tools),
    "response_format": lambda request: request.json_schema is not None and loses(request.json_schema.schema),
}


def _parts_lost(message: Message) -> Iterator[str]:
    for part in message.parts:
        for shown in (part, *part.content) if isinstance(part, ToolResult) else (part,):
            if isinstance(shown, Image) and shown.detail not in _IDLE_DETAILS:
                yield "messages.detail"
            if getattr(shown, "cache", None):
                yield "messages.cache_control"
        # Only what Gemini signed means anything to it.
        if isinstance(part, Reasoning) and unmark(part) is None:
            yield "messages.reasoning"
