"""What callers do with Instructor: a model's answer as an object, over OpenAI's client."""

from functools import cache
from importlib.metadata import version
from typing import Any

import instructor
import openai
from instructor.core import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel, field_validator

ERRORS = (openai.OpenAIError, InstructorRetryException)


class City(BaseModel):
    """A city."""

    name: str
    people: int

    @field_validator("people")
    @classmethod
    def is_inhabited(cls, people: int) -> int:
        if people < 1:
            raise ValueError("a city has people")
        return people


def describe(error: Any) -> dict[str, Any]:
    """The fields that a caller looks at; Instructor wraps what the client raised."""
    cause = error
    while cause is not None and not isinstance(cause, openai.OpenAIError):
        cause = cause.__cause__ or cause.__context__
    return {
        "kind": type(error).__name__,
        "cause": type(cause).__name__,
        "code": getattr(cause, "code", None),
        "status": getattr(cause, "status_code", None),
    }


@cache
def _client(base_url: str, api_key: str, mode: str) -> Any:
    client = OpenAI(base_url=f"{base_url}/v1", api_key=api_key, max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode])


def installed(base_url: str, api_key: str) -> str:
    return version("instructor")


def create(base_url: str, api_key: str, model: str, mode: str = "TOOLS", max_retries: int = 1) -> Any:
    city, completion = _client(base_url, api_key, mode).chat.completions.create_with_completion(
        model=model, messages=[{"role": "user", "content": "Hi"}], response_model=City, max_retries=max_retries
    )
    return {"city": city.model_dump(), "usage": completion.usage.model_dump()}


def partial(base_url: str, api_key: str, model: str, mode: str = "TOOLS") -> Any:
    """Every state of the object while it is streamed."""
    states = _client(base_url, api_key, mode).chat.completions.create_partial(
        model=model, messages=[{"role": "user", "content": "Hi"}], response_model=City
    )
    return [state.model_dump() for state in states]


def iterable(base_url: str, api_key: str, model: str, mode: str = "TOOLS") -> Any:
    """Several objects of one answer."""
    cities = _client(base_url, api_key, mode).chat.completions.create_iterable(
        model=model, messages=[{"role": "user", "content": "Hi"}], response_model=City
    )
    return [city.model_dump() for city in cities]


WAYS = {way.__name__: way for way in (installed, create, partial, iterable)}
