"""What callers do with Anthropic's Python client, in words that every major of it knows."""

from functools import cache
from importlib.metadata import version
from typing import Any

import anthropic
from anthropic import Anthropic

ERRORS = anthropic.AnthropicError


def describe(error: Any) -> dict[str, Any]:
    """The fields that a caller looks at."""
    response, body = getattr(error, "response", None), getattr(error, "body", None)
    return {
        "kind": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "type": body["error"]["type"] if isinstance(body, dict) else None,
        "request_id": getattr(error, "request_id", None),
        "retry_after": response.headers.get("retry-after") if response is not None else None,
    }


@cache
def _client(base_url: str, api_key: str, max_retries: int = 0) -> Anthropic:
    return Anthropic(base_url=base_url, api_key=api_key, max_retries=max_retries)


def installed(base_url: str, api_key: str) -> str:
    return version("anthropic")


def whole(base_url: str, api_key: str, ask: Any, max_retries: int = 0) -> Any:
    client = _client(base_url, api_key, max_retries)
    return client.messages.create(**ask).model_dump()


def stream(base_url: str, api_key: str, ask: Any) -> Any:
    client = _client(base_url, api_key)
    with client.messages.stream(**ask) as events:
        kinds = [event.type for event in events]
        return {"kinds": kinds, "message": events.get_final_message().model_dump(warnings=False)}


def tools(base_url: str, api_key: str, ask: Any, outputs: list[str]) -> Any:
    """The message with the calls, streamed, and the answer to their results."""
    client = _client(base_url, api_key)
    with client.messages.stream(**ask) as events:
        first = events.get_final_message()
    calls = [block for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": output}
        for call, output in zip(calls, outputs, strict=True)
    ]
    turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(**{**ask, "messages": [*ask["messages"], *turns]})
    return {"first": first.model_dump(warnings=False), "second": second.model_dump()}


def count_tokens(base_url: str, api_key: str, ask: Any) -> int:
    client = _client(base_url, api_key)
    return client.messages.count_tokens(**ask).input_tokens


def models(base_url: str, api_key: str) -> list[str]:
    client = _client(base_url, api_key)
    return [model.id for model in client.models.list(limit=2)]


WAYS = {way.__name__: way for way in (installed, whole, stream, tools, count_tokens, models)}
