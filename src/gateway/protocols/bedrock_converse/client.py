"""Converse towards Bedrock: the request we send, and the entry to what reads the answer.

The model stands in the URL, not in the body. What Converse has no word for and that does not change the meaning is
dropped; what would change it is refused with the field's name.
Format: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, ProviderError, RequestError
from gateway.canonical.events import Frame
from gateway.canonical.request import Loss, Request, Tool
from gateway.protocols.bedrock_converse import NAME
from gateway.protocols.bedrock_converse.errors import answered_error
from gateway.protocols.bedrock_converse.families import CACHES_TOOLS, TAKES_TOP_K, Family, family_of
from gateway.protocols.bedrock_converse.history import (
    Block,
    Turn,
    cache_point,
    calls_in,
    encode_system,
    encode_turns,
    is_tool_name,
)
from gateway.protocols.bedrock_converse.losses import TOP_P_MIN_WHEN_THINKING, losses
from gateway.protocols.bedrock_converse.stream import ConverseDecoder, decode_answer
from gateway.protocols.bedrock_converse.thinking import Reasoning, choose_reasoning
from gateway.protocols.wire import NO_HEADERS, StreamDecoder

# What an answer may have beside the thinking, where the client set no bound; a budget needs one above it.
_ANSWER_TOKENS_BESIDE_THINKING = 8192


class BedrockConverseClient:
    """A ``ClientRole``."""

    name = NAME

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body of a streaming call. Raises ``RequestError`` for what the format cannot carry."""
        _refuse_unsupported(request)
        family = family_of(model)
        turns = encode_turns(request.messages, family)
        if not turns:
            raise RequestError(
                "This model needs at least one message with content beside the system messages.",
                code=ErrorCode.INVALID_VALUE,
                param="messages",
            )
        reasoning = choose_reasoning(request, model, turns)
        body = {
            "messages": turns,
            "system": encode_system(request.messages, family),
            "inferenceConfig": _inference_config(request, reasoning),
            "toolConfig": _tool_config(request, turns, family),
            "additionalModelRequestFields": {**reasoning.fields, **_top_k(request, family, reasoning)},
            "outputConfig": _output_config(request),
        }
        return msgspec.json.encode({name: value for name, value in body.items() if value})

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes; raises as it does."""
        _refuse_unsupported(request)
        family = family_of(model)
        turns = encode_turns(request.messages, family)
        lost = losses(request, family, choose_reasoning(request, model, turns))
        is_forbidden = request.tools and request.tool_choice is not None and request.tool_choice.mode == "none"
        return (*lost, Loss("dropped", "tool_choice")) if is_forbidden and calls_in(turns) else lost

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        return ConverseDecoder(provider, created=int(self._clock()))

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a provider that did not stream although it was asked to."""
        return decode_answer(body, provider, created=int(self._clock()))

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """The vendor's error as ours; which one it is stands in a header, and in some bodies."""
        return answered_error(status, body, provider, headers.get("x-amzn-errortype", ""))


def _refuse_unsupported(request: Request) -> None:
    if request.choices > 1:
        raise _unsupported("This model gives one choice per request; send n=1.", "n")
    if request.sampling.temperature is not None and request.sampling.temperature > 1:
        # Clamped, the client would get another distribution than it asked for and never know.
        raise _unsupported("This model takes a temperature between 0 and 1.", "temperature")
    for tool in request.tools:
        if not is_tool_name(tool.name):
            raise _unsupported("A tool's name must be 1 to 64 letters, digits, _ and - for this model.", "tools")


def _inference_config(request: Request, reasoning: Reasoning) -> dict[str, Any]:
    sampling = request.sampling
    bound = request.output_tokens_max
    if bound is None and reasoning.budget is not None:
        bound = reasoning.budget + _ANSWER_TOKENS_BESIDE_THINKING
    temperature, top_p = sampling.temperature, sampling.top_p
    if reasoning.is_thinking:
        temperature = temperature if temperature == 1 else None
        top_p = top_p if (top_p or 0) >= TOP_P_MIN_WHEN_THINKING else None
    config = {
        "maxTokens": None if bound is None else max(bound, 1),
        "temperature": temperature,
        "topP": top_p,
        "stopSequences": [stop for stop in sampling.stop if stop.strip()] or None,
    }
    return {name: value for name, value in config.items() if value is not None}


def _top_k(request: Request, family: Family, reasoning: Reasoning) -> dict[str, Any]:
    top_k = request.sampling.top_k
    if top_k is None or family not in TAKES_TOP_K or reasoning.is_thinking:
        return {}
    return {"inferenceConfig": {"topK": top_k}} if family is Family.NOVA else {"top_k": top_k}


def _tool_config(request: Request, turns: list[Turn], family: Family) -> dict[str, Any] | None:
    """Tools that the history calls have to be named, whether or not the request still has them."""
    called = calls_in(turns)
    choice = request.tool_choice
    if choice is not None and choice.mode == "none" and not called:
        return None  # There is no word for it, but none is needed where no tool is named.
    tools = [block for tool in request.tools for block in _tool(tool, family)]
    known = {tool.name for tool in request.tools}
    tools += [block for name in called if name not in known for block in _tool(Tool(name=name), family)]
    if not tools:
        return None
    config: dict[str, Any] = {"tools": tools}
    if request.tools and choice is not None and choice.mode == "tool":
        config["toolChoice"] = {"tool": {"name": choice.name}}
    elif request.tools and choice is not None and choice.mode in ("required", "auto"):
        config["toolChoice"] = {"any" if choice.mode == "required" else "auto": {}}
    return config


def _tool(tool: Tool, family: Family) -> list[Block]:
    schema = tool.parameters or {"type": "object", "properties": {}}
    spec: Block = {"name": tool.name, "inputSchema": {"json": {"type": "object", **schema}}}
    if tool.description and tool.description.strip():
        spec["description"] = tool.description
    if tool.strict:
        spec["strict"] = True
    is_marked = tool.cache and family in CACHES_TOOLS
    return [{"toolSpec": spec}, cache_point(tool.cache)] if tool.cache and is_marked else [{"toolSpec": spec}]


def _output_config(request: Request) -> dict[str, Any] | None:
    wanted = request.json_schema
    if wanted is None or wanted.schema is None:
        return None
    definition = {"name": wanted.name, "schema": msgspec.json.encode(wanted.schema).decode()}
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": definition}}}


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param=param)
