"""One conversation with tools, as each client writes it, and what each provider was asked in the end.

The provider's body is taken apart here, by nothing of the gateway's, into ``Asked``; whether the provider would take it
at all is judged by the simulated provider's own rules.
"""

import json
from typing import Any

import msgspec

from tests.upstream.anthropic_messages import AnthropicMessages
from tests.upstream.exchange import Received
from tests.upstream.openai_chat import OpenAIChat
from tests.upstream.openai_responses import OpenAIResponses

Object = dict[str, Any]
Fact = tuple[Any, ...]

SYSTEM, QUESTION, ANSWER, MORE = "Be brief.", "What is the weather\nin Zürich?", "Let me look.", "And here?"
RESULTS = {"call_a": "sunny", "call_b": "noon"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CITY: Object = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
EMPTY: Object = {"type": "object", "properties": {}}


class Asked(msgspec.Struct, frozen=True):
    """What a provider understood. ``said`` are the turns in order; ``choice`` names the tool that has to be called."""

    said: tuple[Fact, ...]
    tools: dict[str, tuple[str | None, Object]]
    choice: str
    is_single: bool
    tokens_max: int
    temperature: float
    top_p: float
    user: str


EXPECTED = Asked(
    said=(
        ("system", SYSTEM),
        ("user", QUESTION),
        ("assistant", ANSWER),
        ("call", "call_a", "weather", {"city": "Zürich"}),
        ("call", "call_b", "now", {}),
        ("result", "call_a", RESULTS["call_a"]),
        ("result", "call_b", RESULTS["call_b"]),
        ("user", MORE),
        ("image", "image/png", PIXEL),
    ),
    tools={"weather": ("Looks outside.", CITY), "now": (None, EMPTY)},
    choice="weather",
    is_single=True,
    tokens_max=300,
    temperature=0.5,
    top_p=0.75,
    user="u1",
)


def _function(identity: str, name: str, arguments: str) -> Object:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


CHAT: Object = {
    "model": "fast",
    "stream": True,
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": ANSWER,
            "tool_calls": [
                _function("call_a", "weather", '{"city":"Zürich"}'),
                _function("call_b", "now", "{}"),
            ],
        },
        *({"role": "tool", "tool_call_id": identity, "content": text} for identity, text in RESULTS.items()),
        {
            "role": "user",
            "content": [
                {"type": "text", "text": MORE},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ],
        },
    ],
    "tools": [
        {"type": "function", "function": {"name": "weather", "description": "Looks outside.", "parameters": CITY}},
        {"type": "function", "function": {"name": "now", "parameters": EMPTY}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "max_tokens": 300,
    "temperature": 0.5,
    "top_p": 0.75,
    "user": "u1",
}
RESPONSES: Object = {
    "model": "fast",
    "stream": True,
    "instructions": SYSTEM,
    "input": [
        {"role": "user", "content": QUESTION},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        {"type": "function_call", "call_id": "call_a", "name": "weather", "arguments": '{"city":"Zürich"}'},
        {"type": "function_call", "call_id": "call_b", "name": "now", "arguments": "{}"},
        *({"type": "function_call_output", "call_id": name, "output": text} for name, text in RESULTS.items()),
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": MORE},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
            ],
        },
    ],
    "tools": [
        {"type": "function", "name": "weather", "description": "Looks outside.", "parameters": CITY},
        {"type": "function", "name": "now", "parameters": EMPTY},
    ],
    "tool_choice": {"type": "function", "name": "weather"},
    "parallel_tool_calls": False,
    "max_output_tokens": 300,
    "temperature": 0.5,
    "top_p": 0.75,
    "user": "u1",
}
MESSAGES: Object = {
    "model": "fast",
    "stream": True,
    "system": SYSTEM,
    "messages": [
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": ANSWER},
                {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Zürich"}},
                {"type": "tool_use", "id": "call_b", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                *({"type": "tool_result", "tool_use_id": name, "content": text} for name, text in RESULTS.items()),
                {"type": "text", "text": MORE},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            ],
        },
    ],
    "tools": [
        {"name": "weather", "description": "Looks outside.", "input_schema": CITY},
        {"name": "now", "input_schema": EMPTY},
    ],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "max_tokens": 300,
    "temperature": 0.5,
    "top_p": 0.75,
    "metadata": {"user_id": "u1"},
}
BODIES = {"openai_chat": CHAT, "openai_responses": RESPONSES, "anthropic_messages": MESSAGES}


def received(body: bytes) -> Received:
    """The body as it arrives at any provider."""
    headers = {"authorization": "Bearer k", "x-api-key": "k", "anthropic-version": "2023-06-01"}
    return Received(
        method="POST", path="/", query="", headers=headers, raw=body, body=json.loads(body), serial=1, status=200
    )


def taken_by_openai(body: bytes) -> Object:
    """The body, once OpenAI would have taken it; raises ``Rejected``."""
    arrived = received(body)
    OpenAIChat(strict_fields=True).check(arrived)
    return arrived.body  # type: ignore[no-any-return]


def taken_by_responses(body: bytes) -> Object:
    """The body, once OpenAI would have taken it at its newer endpoint; raises ``Rejected``."""
    arrived = received(body)
    OpenAIResponses(strict_fields=True).check(arrived)
    return arrived.body  # type: ignore[no-any-return]


def taken_by_anthropic(body: bytes) -> Object:
    """The body, once Anthropic would have taken it; raises ``Rejected``."""
    arrived = received(body)
    AnthropicMessages().check(arrived)
    return arrived.body  # type: ignore[no-any-return]


TAKEN = {
    "openai_chat": taken_by_openai,
    "openai_responses": taken_by_responses,
    "anthropic_messages": taken_by_anthropic,
}


def asked_of_openai(body: Object) -> Asked:
    """What OpenAI makes of a body."""
    said: list[Fact] = []
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            said.append(("result", message["tool_call_id"], content))
            continue
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
            if part["type"] == "text":
                said.append((role, part["text"]))
            else:
                kind, _, data = part["image_url"]["url"].removeprefix("data:").partition(";base64,")
                said.append(("image", kind, data))
        for call in message.get("tool_calls") or ():
            function = call["function"]
            said.append(("call", call["id"], function["name"], json.loads(function["arguments"])))
    tools = [tool["function"] for tool in body["tools"]]
    return Asked(
        said=tuple(said),
        tools={tool["name"]: (tool.get("description"), tool["parameters"]) for tool in tools},
        choice=body["tool_choice"]["function"]["name"],
        is_single=body["parallel_tool_calls"] is False,
        tokens_max=body["max_tokens"],
        temperature=body["temperature"],
        top_p=body["top_p"],
        user=body["user"],
    )


def asked_of_responses(body: Object) -> Asked:
    """What OpenAI makes of a body at its newer endpoint."""
    said: list[Fact] = [("system", body["instructions"])]
    for item in body["input"]:
        match item.get("type", "message"):
            case "function_call":
                said.append(("call", item["call_id"], item["name"], json.loads(item["arguments"])))
            case "function_call_output":
                said.append(("result", item["call_id"], item["output"]))
            case _:
                content = item["content"]
                parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
                said += [_responses_fact(item["role"], part) for part in parts]
    return Asked(
        said=tuple(said),
        tools={tool["name"]: (tool.get("description"), tool["parameters"]) for tool in body["tools"]},
        choice=body["tool_choice"]["name"],
        is_single=body["parallel_tool_calls"] is False,
        tokens_max=body["max_output_tokens"],
        temperature=body["temperature"],
        top_p=body["top_p"],
        user=body["user"],
    )


def _responses_fact(role: str, part: Object) -> Fact:
    if part["type"] != "input_image":
        return (role, part["text"])
    kind, _, data = part["image_url"].removeprefix("data:").partition(";base64,")
    return ("image", kind, data)


def asked_of_anthropic(body: Object) -> Asked:
    """What Anthropic makes of a body."""
    system: str | list[Object] = body["system"]
    said: list[Fact] = [("system", system if isinstance(system, str) else "".join(b["text"] for b in system))]
    for turn in body["messages"]:
        content = turn["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said += [_fact(turn["role"], block) for block in blocks]
    choice = body["tool_choice"]
    return Asked(
        said=tuple(said),
        tools={tool["name"]: (tool.get("description"), tool["input_schema"]) for tool in body["tools"]},
        choice=choice["name"],
        is_single=choice["disable_parallel_tool_use"] is True,
        tokens_max=body["max_tokens"],
        temperature=body["temperature"],
        top_p=body["top_p"],
        user=body["metadata"]["user_id"],
    )


def _fact(role: str, block: Object) -> Fact:
    match block["type"]:
        case "tool_use":
            return ("call", block["id"], block["name"], block["input"])
        case "tool_result":
            content = block["content"]
            text = content if isinstance(content, str) else "".join(inner["text"] for inner in content)
            return ("result", block["tool_use_id"], text)
        case "image":
            return ("image", block["source"]["media_type"], block["source"]["data"])
    return (role, block["text"])


ASKED = {
    "openai_chat": asked_of_openai,
    "openai_responses": asked_of_responses,
    "anthropic_messages": asked_of_anthropic,
}
