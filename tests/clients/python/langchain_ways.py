"""What callers do with LangChain's ChatOpenAI, over Chat Completions and over Responses."""

from importlib.metadata import version
from typing import Any

import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

ERRORS = openai.OpenAIError


class Verdict(BaseModel):
    """Whether it is good."""

    good: bool
    why: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


def describe(error: Any) -> dict[str, Any]:
    """The fields that a caller looks at."""
    return {
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
    }


def _model(base_url: str, api_key: str, model: str, options: dict[str, Any] | None) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{base_url}/v1", api_key=api_key, model=model, **{"max_retries": 0, **(options or {})})


def _told(message: BaseMessage) -> dict[str, Any]:
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return {
        "text": str(message.text),
        "calls": [[call["name"], call["args"]] for call in calls],
        "usage": getattr(message, "usage_metadata", None),
        "finish": message.response_metadata.get("finish_reason") or message.response_metadata.get("status"),
        "blocks": [block["type"] for block in message.content_blocks],
    }


def installed(base_url: str, api_key: str) -> str:
    return version("langchain-openai")


def invoke(base_url: str, api_key: str, model: str, options: Any = None) -> Any:
    return _told(_model(base_url, api_key, model, options).invoke("Hi"))


def stream(base_url: str, api_key: str, model: str, options: Any = None) -> Any:
    chunks = list(_model(base_url, api_key, model, options).stream("Hi"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return {**_told(total), "texts": [text for chunk in chunks if (text := str(chunk.text))]}


def tools(base_url: str, api_key: str, model: str, options: Any = None) -> Any:
    """Bind a tool, run what is called, and ask again."""
    bound = _model(base_url, api_key, model, options).bind_tools([weather])
    said: list[BaseMessage] = [HumanMessage("Hi")]
    first = bound.invoke(said)
    results = [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in first.tool_calls]
    return {"first": _told(first), "second": _told(bound.invoke([*said, first, *results]))}


def structured(base_url: str, api_key: str, model: str, method: str, options: Any = None) -> Any:
    verdict = _model(base_url, api_key, model, options).with_structured_output(Verdict, method=method).invoke("Hi")
    assert isinstance(verdict, Verdict)
    return verdict.model_dump()


WAYS = {way.__name__: way for way in (installed, invoke, stream, tools, structured)}
