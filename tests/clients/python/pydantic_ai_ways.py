"""What callers do with Pydantic AI, over its model classes for OpenAI's two formats and for Anthropic's."""

import asyncio
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

ERRORS = ModelAPIError


class Verdict(BaseModel):
    """Whether it is good."""

    good: bool
    why: str


def describe(error: Any) -> dict[str, Any]:
    """The fields that a caller looks at."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"kinds": kinds, "status": getattr(error, "status_code", None), "said": str(error)}


def _model(base_url: str, api_key: str, kind: str, model: str) -> Any:
    if kind == "anthropic":
        return AnthropicModel(model, provider=AnthropicProvider(base_url=base_url, api_key=api_key))
    of_kind = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[kind]
    return of_kind(model, provider=OpenAIProvider(base_url=f"{base_url}/v1", api_key=api_key))


def _agent(model: Any, **more: Any) -> tuple[Agent[None, Any], list[str]]:
    agent: Agent[None, Any] = Agent(model, retries=2, **more)
    asked: list[str] = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"sun in {city}"

    return agent, asked


def _usage(result: Any) -> dict[str, int]:
    usage = result.usage
    return {"requests": usage.requests, "input": usage.input_tokens, "output": usage.output_tokens}


def installed(base_url: str, api_key: str) -> str:
    return version("pydantic-ai-slim")


def run(base_url: str, api_key: str, kind: str, model: str) -> Any:
    """An agent that may call a tool, until it has said its last word."""

    async def talk() -> Any:
        agent, asked = _agent(_model(base_url, api_key, kind, model))
        result = await agent.run("Hi")
        return {"output": result.output, "asked": asked, "usage": _usage(result)}

    return asyncio.run(talk())


def stream(base_url: str, api_key: str, kind: str, model: str) -> Any:
    async def talk() -> Any:
        agent, asked = _agent(_model(base_url, api_key, kind, model))
        async with agent.run_stream("Hi") as result:
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
            return {"texts": texts, "asked": asked, "usage": _usage(result)}

    return asyncio.run(talk())


def structured(base_url: str, api_key: str, kind: str, model: str) -> Any:
    async def talk() -> Any:
        agent, _ = _agent(_model(base_url, api_key, kind, model), output_type=Verdict)
        return (await agent.run("Hi")).output.model_dump()

    return asyncio.run(talk())


WAYS = {way.__name__: way for way in (installed, run, stream, structured)}
