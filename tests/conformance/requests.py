"""One conversation with tools, as each client writes it, and what each provider was asked in the end.

The provider's body is taken apart here, by nothing of the gateway's, into ``Asked``; whether the provider would take it
at all is judged by the simulated provider's own rules.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from tests.upstream.anthropic_messages import AnthropicMessages
from tests.upstream.bedrock import Bedrock
from tests.upstream.exchange import Received, Vendor
from tests.upstream.gemini import Gemini
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


# What a provider thinks is asked of models only that are known to reason.
MODELS = {
    "openai_chat": "model-x",
    "openai_responses": "gpt-5-x",
    "anthropic_messages": "model-x",
    "gemini": "gemini-3-x",
    "bedrock_converse": "anthropic.claude-x",
}
# Formats whose model stands in the path, and so does that the answer is streamed.
PATHS = {
    "gemini": f"/v1beta/models/{MODELS['gemini']}:streamGenerateContent",
    "bedrock_converse": f"/model/{MODELS['bedrock_converse']}/converse-stream",
}

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


_NEITHER = {"is_single": False, "user": ""}
# What a format has no word for, whatever the client's: it is declared in ``pairs`` as well.
UNSAID: dict[str, Object] = {"gemini": _NEITHER, "bedrock_converse": _NEITHER}


def expected_of(provider: str) -> Asked:
    """What a provider should have been asked."""
    return msgspec.structs.replace(EXPECTED, **UNSAID.get(provider, {}))


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


def received(body: bytes, provider: str) -> Received:
    """The body as it arrives at a provider of this format."""
    headers = {"authorization": "Bearer k", "x-api-key": "k", "anthropic-version": "2023-06-01"}
    path, query = PATHS.get(provider, "/"), "alt=sse" if provider == "gemini" else ""
    return Received(
        method="POST", path=path, query=query, headers=headers, raw=body, body=json.loads(body), serial=1, status=200
    )


VENDORS: dict[str, Callable[[], Vendor]] = {
    "openai_chat": lambda: OpenAIChat(strict_fields=True),
    "openai_responses": lambda: OpenAIResponses(strict_fields=True),
    "anthropic_messages": AnthropicMessages,
    "gemini": Gemini,
    "bedrock_converse": lambda: Bedrock(None, None),
}


def taken(provider: str, body: bytes) -> Object:
    """The body, once a provider of this format would have taken it; raises ``Rejected``."""
    arrived = received(body, provider)
    VENDORS[provider]().check(arrived)
    return arrived.body  # type: ignore[no-any-return]


TAKEN = {provider: partial(taken, provider) for provider in VENDORS}


def asked_of_openai(body: Object) -> Asked:
    """What OpenAI makes of a body."""
    said: list[Fact] = []
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            said.append(("result", message["tool_call_id"], content))
            continue
        parts: list[Object] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        for part in parts:
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


def asked_of_gemini(body: Object) -> Asked:
    """What Gemini makes of a body; a declaration without a schema is a function without parameters."""
    said: list[Fact] = [("system", part["text"]) for part in body["systemInstruction"]["parts"]]
    for content in body["contents"]:
        said += [_gemini_fact(content["role"], part) for part in content["parts"]]
    config, order = body["generationConfig"], body["toolConfig"]["functionCallingConfig"]
    tools = [declaration for tool in body["tools"] for declaration in tool["functionDeclarations"]]
    return Asked(
        said=tuple(said),
        tools={tool["name"]: (tool.get("description"), tool.get("parametersJsonSchema", EMPTY)) for tool in tools},
        choice="".join(order["allowedFunctionNames"]) if order["mode"] == "ANY" else "",
        tokens_max=config["maxOutputTokens"],
        temperature=config["temperature"],
        top_p=config["topP"],
        **UNSAID["gemini"],
    )


def _gemini_fact(role: str, part: Object) -> Fact:
    if call := part.get("functionCall"):
        return ("call", call["id"], call["name"], call["args"])
    if result := part.get("functionResponse"):
        return ("result", result["id"], "".join(result["response"].values()))
    if file := part.get("inlineData"):
        return ("image", file["mimeType"], file["data"])
    return ("assistant" if role == "model" else role, part["text"])


def asked_of_bedrock(body: Object) -> Asked:
    """What a model at Bedrock makes of a body."""
    said: list[Fact] = [("system", block["text"]) for block in body["system"]]
    for turn in body["messages"]:
        said += [_bedrock_fact(turn["role"], block) for block in turn["content"]]
    config = body["inferenceConfig"]
    tools = [tool["toolSpec"] for tool in body["toolConfig"]["tools"]]
    return Asked(
        said=tuple(said),
        tools={tool["name"]: (tool.get("description"), tool["inputSchema"]["json"]) for tool in tools},
        choice=body["toolConfig"]["toolChoice"]["tool"]["name"],
        tokens_max=config["maxTokens"],
        temperature=config["temperature"],
        top_p=config["topP"],
        **UNSAID["bedrock_converse"],
    )


def _bedrock_fact(role: str, block: Object) -> Fact:
    if call := block.get("toolUse"):
        return ("call", call["toolUseId"], call["name"], call["input"])
    if result := block.get("toolResult"):
        return ("result", result["toolUseId"], "".join(inner["text"] for inner in result["content"]))
    if image := block.get("image"):
        return ("image", f"image/{image['format']}", image["source"]["bytes"])
    return (role, block["text"])


ASKED = {
    "openai_chat": asked_of_openai,
    "openai_responses": asked_of_responses,
    "anthropic_messages": asked_of_anthropic,
    "gemini": asked_of_gemini,
    "bedrock_converse": asked_of_bedrock,
}
