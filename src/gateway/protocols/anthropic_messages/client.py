"""Anthropic Messages towards a provider: the request we send, and the entry to what reads the answer.

A request from another format is carried over field by field. What Anthropic has no word for and that does not change
the meaning (seed, penalties) is dropped; what would change it is refused with the field's name. The client may leave
``max_tokens`` and the thinking budget open, Anthropic may not: both are decided here.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, ProviderError, RequestError
from gateway.canonical.events import Frame
from gateway.canonical.request import Loss, Request, Tool, ToolChoice
from gateway.protocols.anthropic_messages.errors import decode_error
from gateway.protocols.anthropic_messages.forward import forward
from gateway.protocols.anthropic_messages.history import encode_system, encode_turns
from gateway.protocols.anthropic_messages.losses import TOP_P_MIN_WHEN_THINKING, losses
from gateway.protocols.anthropic_messages.shapes import NAME, MessagesBody, ToolChoiceShape, ToolShape
from gateway.protocols.anthropic_messages.stream import MessagesDecoder, decode_message
from gateway.protocols.anthropic_messages.thinking import budget_of, choose_thinking, is_on
from gateway.protocols.wire import NO_HEADERS, StreamDecoder

DEFAULT_OUTPUT_TOKENS = 8192


class AnthropicMessagesClient:
    """A ``ClientRole``. ``default_output_tokens`` bounds answers whose client set no bound."""

    name = NAME

    def __init__(
        self, *, default_output_tokens: int = DEFAULT_OUTPUT_TOKENS, clock: Callable[[], float] = time.time
    ) -> None:
        self._default_output_tokens = default_output_tokens
        self._clock = clock

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body of a streaming call. Raises ``RequestError`` for what the format cannot carry."""
        if request.format == NAME:
            return forward(request, model)
        _refuse_unsupported(request)
        turns = encode_turns(request.messages)
        if not turns:
            raise RequestError(
                "This model needs at least one message with content beside the system messages.",
                code=ErrorCode.INVALID_VALUE,
                param="messages",
            )
        thinking = choose_thinking(request, turns)
        is_thinking = is_on(thinking)
        sampling = request.sampling
        body = MessagesBody(
            model=model,
            max_tokens=self._max_tokens(request, thinking),
            messages=turns,
            stream=True,
            system=encode_system(request.messages),
            tools=[_tool(tool) for tool in request.tools] or None,
            tool_choice=_tool_choice(request),
            thinking=thinking,
            # With thinking on, only these are allowed:
            # https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility
            temperature=sampling.temperature if not is_thinking or sampling.temperature == 1 else None,
            top_p=sampling.top_p if not is_thinking or (sampling.top_p or 0) >= TOP_P_MIN_WHEN_THINKING else None,
            top_k=sampling.top_k if not is_thinking else None,
            # "stop_sequences: each stop sequence must contain non-whitespace"
            stop_sequences=[stop for stop in sampling.stop if stop.strip()] or None,
            output_config=_output_config(request),
            metadata={"user_id": request.user} if request.user else None,
        )
        return msgspec.json.encode(body)

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes of a request in another format; may raise where it would."""
        if request.format == NAME:
            return ()
        _refuse_unsupported(request)
        wants_thinking = request.thinking is not None or request.effort is not None
        thinking = choose_thinking(request, encode_turns(request.messages)) if wants_thinking else None
        return losses(request, thinking)

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        return MessagesDecoder(provider, created=int(self._clock()))

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a provider that did not stream although it was asked to."""
        return decode_message(body, provider, created=int(self._clock()))

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """The vendor's error body as ours. Its text is passed on only where it speaks about the request."""
        return decode_error(status, body, provider)

    def _max_tokens(self, request: Request, thinking: dict[str, Any] | None) -> int:
        if request.output_tokens_max is not None:
            return request.output_tokens_max
        # The budget is part of max_tokens: without a bound of the client's, thinking takes nothing from the answer.
        return self._default_output_tokens + (budget_of(thinking) or 0)


def _refuse_unsupported(request: Request) -> None:
    if request.choices > 1:
        raise RequestError(
            "This model gives one choice per request; send n=1.", code=ErrorCode.UNSUPPORTED_VALUE, param="n"
        )
    if request.sampling.temperature is not None and request.sampling.temperature > 1:
        # Clamped, the client would get another distribution than it asked for and never know.
        raise RequestError(
            "This model takes a temperature between 0 and 1.", code=ErrorCode.UNSUPPORTED_VALUE, param="temperature"
        )


def _tool(tool: Tool) -> ToolShape:
    schema = tool.parameters or {"type": "object", "properties": {}}
    if "type" not in schema:
        schema = {"type": "object", **schema}
    return ToolShape(
        name=tool.name,
        input_schema=schema,
        description=tool.description,
        strict=tool.strict or None,
        cache_control=tool.cache,
    )


def _tool_choice(request: Request) -> ToolChoiceShape | None:
    # A choice without tools is answered with 400.
    if not request.tools:
        return None
    is_single = request.parallel_tool_calls is False
    choice = request.tool_choice
    if choice is None:
        if not is_single:
            return None
        choice = ToolChoice("auto")
    match choice.mode:
        case "none":
            # Takes no disable_parallel_tool_use.
            return ToolChoiceShape("none")
        case "tool":
            return ToolChoiceShape("tool", choice.name, is_single or None)
        case "required":
            return ToolChoiceShape("any", None, is_single or None)
        case _:
            return ToolChoiceShape("auto", None, is_single or None)


def _output_config(request: Request) -> dict[str, Any] | None:
    # Anthropic has no "any JSON object" mode: without a schema the client's own instructions must do.
    if request.json_schema is None or request.json_schema.schema is None:
        return None
    return {"format": {"type": "json_schema", "schema": request.json_schema.schema}}
