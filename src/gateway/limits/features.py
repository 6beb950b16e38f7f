"""What a request uses of what a tier may forbid."""

from gateway.canonical.request import Audio, Document, Image, Part, Request, ToolResult

FEATURES = ("stream", "tools", "images", "documents", "audio", "reasoning", "structured_output", "choices")

# Fields of a body in which a client asks for tools that its provider runs.
_HOSTED_TOOLS = ("tools[", "mcp_servers", "web_search_options")
_OF_PARTS = {Image: "images", Document: "documents", Audio: "audio"}


def features_of(request: Request) -> set[str]:
    """The features a request needs, by the names the configuration uses."""
    needs = {
        "stream": request.stream,
        "tools": bool(request.tools) or any(name.startswith(_HOSTED_TOOLS) for name in request.untranslatable),
        "reasoning": request.effort is not None or request.thinking is not None,
        "structured_output": request.json_schema is not None,
        "choices": request.choices > 1,
    }
    used = {name for name, is_used in needs.items() if is_used}
    for message in request.messages:
        for part in message.parts:
            used |= _of_part(part)
    return used


def _of_part(part: Part) -> set[str]:
    if isinstance(part, ToolResult):
        return {name for inner in part.content for name in _of_part(inner)}
    name = _OF_PARTS.get(type(part))
    return set() if name is None else {name}
