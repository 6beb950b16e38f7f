"""What callers do with openai-python, in words that every major of it knows."""

from functools import cache
from importlib.metadata import version
from typing import Any

import openai
from openai import OpenAI

ERRORS = openai.OpenAIError


def describe(error: Any) -> dict[str, Any]:
    """The fields that a caller looks at."""
    response = getattr(error, "response", None)
    return {
        "kind": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "type": getattr(error, "type", None),
        "request_id": getattr(error, "request_id", None),
        "retry_after": response.headers.get("retry-after") if response is not None else None,
    }


@cache
def _client(base_url: str, api_key: str, max_retries: int = 0) -> OpenAI:
    return OpenAI(base_url=f"{base_url}/v1", api_key=api_key, max_retries=max_retries)


def installed(base_url: str, api_key: str) -> str:
    return version("openai")


def whole(base_url: str, api_key: str, ask: Any, max_retries: int = 0) -> Any:
    client = _client(base_url, api_key, max_retries)
    return client.chat.completions.create(**ask).model_dump()


def stream(base_url: str, api_key: str, ask: Any) -> Any:
    client = _client(base_url, api_key)
    return [chunk.model_dump() for chunk in client.chat.completions.create(**ask, stream=True)]


def helper(base_url: str, api_key: str, ask: Any) -> Any:
    client = _client(base_url, api_key)
    with client.chat.completions.stream(**ask) as events:
        return events.get_final_completion().model_dump(warnings=False)


def tools(base_url: str, api_key: str, ask: Any, outputs: list[str]) -> Any:
    """The calls, streamed, and the answer to their results."""
    client = _client(base_url, api_key)
    with client.chat.completions.stream(**ask) as events:
        message = events.get_final_completion().choices[0].message
    calls = message.tool_calls or []
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": output}
        for call, output in zip(calls, outputs, strict=True)
    ]
    messages = [*ask["messages"], message.model_dump(exclude_none=True, warnings=False), *results]
    answer = client.chat.completions.create(**{**ask, "messages": messages})
    return {"calls": [call.model_dump(warnings=False) for call in calls], "answer": answer.model_dump()}


def responses_whole(base_url: str, api_key: str, ask: Any) -> Any:
    client = _client(base_url, api_key)
    response = client.responses.create(**ask)
    return {**response.model_dump(), "output_text": response.output_text}


def responses_stream(base_url: str, api_key: str, ask: Any) -> Any:
    client = _client(base_url, api_key)
    return [event.model_dump() for event in client.responses.create(**ask, stream=True)]


def responses_tools(base_url: str, api_key: str, ask: Any, outputs: list[str]) -> Any:
    """As ``tools``; what was put out goes back as it is."""
    client = _client(base_url, api_key)
    with client.responses.stream(**ask) as events:
        first = events.get_final_response()
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": output}
        for call, output in zip(calls, outputs, strict=True)
    ]
    said = [{"role": "user", "content": ask["input"]}, *first.output, *results]
    second = client.responses.create(**{**ask, "input": said})
    kinds = [item.type for item in first.output]
    return {"kinds": kinds, "arguments": [call.arguments for call in calls], "text": second.output_text}


def models(base_url: str, api_key: str) -> list[str]:
    client = _client(base_url, api_key)
    return [model.id for model in client.models.list()]


WAYS = {
    way.__name__: way
    for way in (installed, whole, stream, helper, tools, responses_whole, responses_stream, responses_tools, models)
}
