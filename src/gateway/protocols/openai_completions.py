"""OpenAI's legacy Completions: ``POST /v1/completions``, a text in and its continuation out.

Reference: https://platform.openai.com/docs/api-reference/completions. Hardly any model is served this way any more, so
the prompt goes to the model as one user message of a conversation. What a conversation cannot keep is refused by name.
Server role only.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.canonical.errors import ErrorCode, GatewayError, RequestError
from gateway.canonical.events import Event, Finish, Frame, MessageStart, RefusalDelta, TextDelta, Unified
from gateway.canonical.request import Message, Request, Sampling, Text
from gateway.canonical.usage import Usage
from gateway.protocols.bodies import (
    check_model_name,
    decode_fields,
    decode_json,
    refuse_routing_fields,
    untold_fields,
)
from gateway.protocols.openai_objects import error_object, error_reply, usage_object
from gateway.protocols.rates import openai_headers
from gateway.protocols.sse import encode_data
from gateway.protocols.wire import STREAM_HEADERS, Allowance, Cut, Encoder, Headers, Notice, Reply, StreamMeta

NAME = "openai_completions"

_DONE = b"data: [DONE]\n\n"
# The reference's own default, which clients of this endpoint know.
_OUTPUT_TOKENS = 16
_FINISH = {Unified.LENGTH: "length", Unified.CONTENT_FILTER: "content_filter"}


class StreamOptions(msgspec.Struct, frozen=True):
    """``stream_options`` of a request."""

    include_usage: bool | None = None


class CompletionRequest(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway reads; limits as OpenAI's reference gives them."""

    model: str
    prompt: str | list[Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    logit_bias: dict[str, float] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    user: Annotated[str, Meta(max_length=512, pattern=r"\A[^\x00-\x1f\x7f]*\Z")] | None = None


_REQUEST = msgspec.json.Decoder(CompletionRequest)


class OpenAiCompletionsServer:
    """OpenAI's legacy Completions, streamed or whole; the prompt is sent as a user message."""

    name = NAME

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named in the body."""
        wanted = decode_json(body, _REQUEST)
        raw = decode_fields(body)
        refuse_routing_fields(raw.keys())
        _check_kept(wanted)
        stop = (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())
        if "" in stop:
            raise RequestError("A stop sequence must not be empty.", code=ErrorCode.INVALID_VALUE, param="stop")
        return Request(
            format=NAME,
            model=check_model_name(wanted.model),
            messages=(Message("user", (Text(_prompt(wanted.prompt)),)),),
            stream=bool(wanted.stream),
            include_usage=bool(wanted.stream_options and wanted.stream_options.include_usage),
            output_tokens_max=wanted.max_tokens or _OUTPUT_TOKENS,
            choices=wanted.n or 1,
            sampling=Sampling(
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                stop=stop,
                seed=wanted.seed,
                frequency_penalty=wanted.frequency_penalty,
                presence_penalty=wanted.presence_penalty,
            ),
            user=wanted.user,
            raw=raw,
            untold=untold_fields(raw, CompletionRequest.__struct_fields__),
        )

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Chunks where the client streams, else one whole answer."""
        return ChunkEncoder(request, meta) if request.stream else WholeEncoder(request, meta)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """OpenAI's envelope; SDKs choose their error class by the status and read ``code``."""
        return error_reply(error)


def _check_kept(wanted: CompletionRequest) -> None:
    """Raises ``RequestError`` for what the answer of a conversation does not give."""
    refused = {
        "echo": wanted.echo,
        "logprobs": wanted.logprobs is not None,
        "suffix": wanted.suffix,
        "best_of": wanted.best_of is not None and wanted.best_of != (wanted.n or 1),
        "logit_bias": wanted.logit_bias,
    }
    for name, is_wanted in refused.items():
        if is_wanted:
            raise RequestError(
                f"{name} is not available here: completions are answered by models of conversations.",
                code=ErrorCode.UNSUPPORTED_VALUE,
                param=name,
            )


def _prompt(prompt: str | list[Any] | None) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(each, str) for each in prompt):
        raise _wrong_prompt("Send one prompt per request.", ErrorCode.UNSUPPORTED_VALUE)
    if isinstance(prompt, list | int) and prompt:
        raise _wrong_prompt(
            "Tokens cannot be sent to this model; send the prompt as text.", ErrorCode.UNSUPPORTED_VALUE
        )
    raise _wrong_prompt("prompt must be a text that is not empty.", ErrorCode.INVALID_VALUE)


def _wrong_prompt(message: str, code: ErrorCode) -> RequestError:
    return RequestError(message, code=code, param="prompt")


class ChunkEncoder:
    """One stream of ``text_completion`` objects. Reasoning has no place in them."""

    headers: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS)
    heartbeat = b": keep-alive\n\n"

    def __init__(self, request: Request, meta: StreamMeta) -> None:
        self._wants_notices = meta.wants_notices
        self._include_usage = request.include_usage
        self._choices = request.choices
        self._finished: set[int] = set()
        self._name = {
            "id": f"cmpl-{meta.request_id}",
            "object": "text_completion",
            "created": meta.created,
            "model": request.model,
        }

    def encode(self, frame: Frame) -> bytes:
        """A chunk for each piece of text."""
        return b"".join([self._encode_event(event) for event in frame.events])

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case MessageStart(model=model, created=created):
                self._name = {**self._name, "created": created, "model": model or self._name["model"]}
            case TextDelta(text, choice) | RefusalDelta(text, choice):
                return self._say(choice, text, None)
            case Finish(reason, choice):
                self._finished.add(choice)
                return self._say(choice, "", _FINISH.get(reason.unified, "stop"))
        return b""

    def _say(self, choice: int, text: str, finish: str | None) -> bytes:
        return self._chunk([{"text": text, "index": choice, "logprobs": None, "finish_reason": finish}])

    def _chunk(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        chunk = {**self._name, "choices": choices, **extra}
        if self._include_usage and "usage" not in extra:
            chunk["usage"] = None
        return encode_data(msgspec.json.encode(chunk))

    def notice(self, notice: Notice) -> bytes:
        """A chunk without choices, where such were asked for."""
        return self._chunk([], x_gateway=notice.fields) if self._wants_notices else b""

    def end(self, usage: Usage) -> bytes:
        """Usage where it was asked for, and the terminator."""
        return (self._chunk([], usage=usage_object(usage)) if self._include_usage else b"") + _DONE

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """``finish_reason: length`` for every choice that is still open, with the reason beside it."""
        still_open = [choice for choice in range(self._choices) if choice not in self._finished]
        choices = [{"text": "", "index": i, "logprobs": None, "finish_reason": "length"} for i in still_open]
        return self._chunk(choices, x_gateway=_note(cut)) + self.end(usage)

    def fail(self, error: GatewayError) -> bytes:
        """An error chunk; both official clients raise on it."""
        return encode_data(msgspec.json.encode({"error": error_object(error)}))


def _note(cut: Cut) -> dict[str, str]:
    return {"outcome": "cut", "reason": cut.reason, "message": cut.message}


class WholeEncoder(ChunkEncoder):
    """One answer, written at the end."""

    headers = ((b"content-type", b"application/json"),)
    heartbeat = b""

    def __init__(self, request: Request, meta: StreamMeta) -> None:
        super().__init__(request, meta)
        self._texts: list[list[str]] = [[] for _ in range(request.choices)]
        self._reasons: dict[int, str] = {}
        self._extra: dict[str, Any] = {}

    def _say(self, choice: int, text: str, finish: str | None) -> bytes:
        if choice < self._choices:
            self._texts[choice].append(text)
            if finish is not None:
                self._reasons[choice] = finish
        return b""

    def notice(self, notice: Notice) -> bytes:
        """Into the answer's ``x_gateway``, where such were asked for."""
        if self._wants_notices:
            self._extra.setdefault("events", []).append(notice.fields)
        return b""

    def end(self, usage: Usage) -> bytes:
        """The whole answer."""
        choices = [
            {"text": "".join(texts), "index": i, "logprobs": None, "finish_reason": self._reasons.get(i, "length")}
            for i, texts in enumerate(self._texts)
        ]
        answer = {**self._name, "choices": choices, "usage": usage_object(usage)}
        return msgspec.json.encode({**answer, "x_gateway": self._extra} if self._extra else answer)

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """What there is of the answer, marked as cut."""
        self._extra.update(_note(cut))
        return self.end(usage)

    def fail(self, error: GatewayError) -> bytes:
        """Not reached: nothing was sent, so an error still is an HTTP answer."""
        return b""
