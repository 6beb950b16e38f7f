"""A conversation in which every call is answered, for providers that refuse one with gaps.

Clients send such histories after an abort (calls without results) and after a trim (results without calls). OpenAI
and Anthropic answer both with 400, which would lock a client out of its conversation for good.
"""

from collections.abc import Iterator

from gateway.canonical.request import Message, Text, ToolCall, ToolResult

UNANSWERED = "The tool call was not answered."


def answered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same with each turn that calls followed by one result per call, in their order, and by no other result."""
    return tuple(_paired(messages, _answers(messages)))


def _paired(messages: tuple[Message, ...], answers: list[tuple[ToolResult, ...]]) -> Iterator[Message]:
    for message, results in zip(messages, answers, strict=True):
        if message.role == "assistant":
            yield message
            if results:
                yield Message("tool", results)
            continue
        rest = tuple(part for part in message.parts if not isinstance(part, ToolResult))
        if rest or not message.parts:
            yield Message("user" if message.role == "tool" else message.role, rest)


def _answers(messages: tuple[Message, ...]) -> list[tuple[ToolResult, ...]]:
    """Per message, the results of the calls it makes.

    Read from the end, so that a call gets the nearest result after it and an id used twice keeps its pairs apart.
    """
    open_results: dict[str, ToolResult] = {}
    answers: list[tuple[ToolResult, ...]] = [() for _ in messages]
    for position in range(len(messages) - 1, -1, -1):
        message = messages[position]
        if message.role == "assistant":
            calls = dict.fromkeys(part.id for part in message.parts if isinstance(part, ToolCall))
            answers[position] = tuple(
                open_results.pop(call_id) if call_id in open_results else _missing(call_id) for call_id in calls
            )
        else:
            results = [part for part in message.parts if isinstance(part, ToolResult)]
            open_results.update((result.tool_call_id, result) for result in reversed(results))
    return answers


def _missing(call_id: str) -> ToolResult:
    return ToolResult(call_id, (Text(UNANSWERED),), is_error=True)
