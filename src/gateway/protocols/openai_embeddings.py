"""OpenAI's Embeddings: ``POST /v1/embeddings``, towards clients and towards providers that are compatible.

Reference: https://platform.openai.com/docs/api-reference/embeddings. The client's body goes on as it is. OpenAI's
Python client asks for base64 unless told otherwise, and not every provider knows it: an answer that came in the other
form is converted. Nothing here streams.
"""

import base64
import binascii
import math
import sys
import time
from array import array
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta

from gateway.canonical.errors import ErrorCode, GatewayError, ProviderProtocolError, RequestError
from gateway.canonical.events import Embeddings, Event, Frame, MessageStart, UsageReport
from gateway.canonical.request import Embedding, Message, Part, Request, Text, Tokens
from gateway.canonical.usage import Usage
from gateway.protocols.bodies import check_model_name, decode_fields, decode_json, refuse_routing_fields
from gateway.protocols.openai_objects import error_reply
from gateway.protocols.rates import openai_headers
from gateway.protocols.wire import Allowance, Cut, Encoder, Headers, Notice, Reply, StreamMeta

NAME = "openai_embeddings"

_INPUTS_MAX = 2048
_TOKENS_MAX = 300_000
_FIELDS_MAX = 256

_Token: TypeAlias = Annotated[int, Meta(ge=0, lt=2**31)]


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway reads; limits as OpenAI's reference gives them."""

    model: str
    input: str | Annotated[list[str | _Token | list[_Token]], Meta(max_length=_TOKENS_MAX)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: Annotated[str, Meta(max_length=512, pattern=r"\A[^\x00-\x1f\x7f]*\Z")] | None = None


class EmbeddingObject(msgspec.Struct, frozen=True):
    """One vector of an answer: numbers, or base64."""

    embedding: msgspec.Raw
    index: int | None = None


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """What a provider says it read."""

    prompt_tokens: int | None = None
    total_tokens: int | None = None


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """A provider's answer."""

    data: list[EmbeddingObject]
    model: str | None = None
    usage: EmbeddingsUsage | None = None


_REQUEST = msgspec.json.Decoder(EmbeddingsRequest)
_ANSWER = msgspec.json.Decoder(EmbeddingsAnswer)
_NUMBERS = msgspec.json.Decoder(list[float])
_TEXT = msgspec.json.Decoder(str)


class OpenAiEmbeddingsServer:
    """OpenAI's Embeddings."""

    name = NAME

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named in the body."""
        wanted = decode_json(body, _REQUEST)
        raw = decode_fields(body)
        refuse_routing_fields(raw.keys())
        if len(raw) > _FIELDS_MAX:
            raise RequestError(f"The body has more than {_FIELDS_MAX} fields.")
        return Request(
            format=NAME,
            model=check_model_name(wanted.model),
            messages=tuple(Message("user", (part,)) for part in _inputs(wanted.input)),
            output_tokens_max=0,
            embedding=Embedding(dimensions=wanted.dimensions, is_base64=wanted.encoding_format == "base64"),
            user=wanted.user,
            raw=raw,
        )

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """One answer, written at the end."""
        return VectorsEncoder(request, meta)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """OpenAI's envelope; SDKs choose their error class by the status and read ``code``."""
        return error_reply(error)


def _inputs(wanted: str | list[str | int | list[int]]) -> list[Part]:
    """One part per vector. A bare list of numbers is one input, made of tokens."""
    if isinstance(wanted, str):
        return [_text(wanted, "input")]
    if wanted and all(type(each) is int for each in wanted):
        return [_tokens(cast(list[int], wanted), "input")]
    if not wanted or len(wanted) > _INPUTS_MAX:
        raise _wrong_input(f"input must hold 1 to {_INPUTS_MAX} texts.", "input")
    if all(type(each) is str for each in wanted):
        return [_text(cast(str, each), f"input[{i}]") for i, each in enumerate(wanted)]
    if all(type(each) is list for each in wanted):
        return [_tokens(cast(list[int], each), f"input[{i}]") for i, each in enumerate(wanted)]
    raise _wrong_input("input mixes texts and tokens.", "input")


def _text(text: str, where: str) -> Part:
    if not text:
        raise _wrong_input(f"{where} must not be empty.", where)
    return Text(text)


def _tokens(ids: list[int], where: str) -> Part:
    if not ids:
        raise _wrong_input(f"{where} must not be empty.", where)
    return Tokens(tuple(ids))


def _wrong_input(message: str, where: str) -> RequestError:
    return RequestError(message, code=ErrorCode.INVALID_VALUE, param=where)


class VectorsEncoder:
    """The answer to one request for embeddings."""

    headers: Headers = ((b"content-type", b"application/json"),)
    heartbeat = b""

    def __init__(self, request: Request, meta: StreamMeta) -> None:
        self._is_base64 = request.embedding is not None and request.embedding.is_base64
        self._wants_notices = meta.wants_notices
        self._model = request.model
        self._vectors: tuple[msgspec.Raw, ...] = ()
        self._extra: dict[str, Any] = {}

    def encode(self, frame: Frame) -> bytes:
        """Nothing reaches the client before the end. Raises ``ProviderProtocolError`` for a vector that is none."""
        for event in frame.events:
            if isinstance(event, MessageStart):
                self._model = event.model or self._model
            elif isinstance(event, Embeddings):
                self._vectors = tuple(_as_wanted(vector, is_base64=self._is_base64) for vector in event.vectors)
        return b""

    def notice(self, notice: Notice) -> bytes:
        """Into the answer's ``x_gateway``, where such were asked for."""
        if self._wants_notices:
            self._extra.setdefault("events", []).append(notice.fields)
        return b""

    def end(self, usage: Usage) -> bytes:
        """The whole answer."""
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(self._vectors)]
        tokens = {"prompt_tokens": usage.input, "total_tokens": usage.input}
        answer = {"object": "list", "data": data, "model": self._model, "usage": tokens}
        return msgspec.json.encode({**answer, "x_gateway": self._extra} if self._extra else answer)

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """The vectors if they were there already, else none, which official clients raise an error for."""
        self._extra.update({"outcome": "cut", "reason": cut.reason, "message": cut.message})
        return self.end(usage)

    def fail(self, error: GatewayError) -> bytes:
        """Not reached: nothing was sent, so an error still is an HTTP answer."""
        return b""


def _as_wanted(vector: msgspec.Raw, *, is_base64: bool) -> msgspec.Raw:
    if _is_text(vector) is is_base64:
        return vector
    try:
        return numbers_to_base64(_NUMBERS.decode(vector)) if is_base64 else _base64_to_numbers(_TEXT.decode(vector))
    except (msgspec.MsgspecError, ValueError, OverflowError):
        raise ProviderProtocolError("The provider sent a vector that is not of its format.", provider="") from None


def _is_text(vector: msgspec.Raw) -> bool:
    return bytes(vector).lstrip()[:1] == b'"'


def numbers_to_base64(numbers: list[float]) -> msgspec.Raw:
    """Numbers as little-endian float32 in base64, as JSON."""
    values = _finite(array("f", numbers))
    if sys.byteorder == "big":
        values.byteswap()
    return msgspec.Raw(b'"' + base64.b64encode(values.tobytes()) + b'"')


def _base64_to_numbers(text: str) -> msgspec.Raw:
    values = array("f")
    try:
        values.frombytes(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if sys.byteorder == "big":
        values.byteswap()
    return msgspec.Raw(msgspec.json.encode(_finite(values).tolist()))


def _finite(values: "array[float]") -> "array[float]":
    if not math.isfinite(sum(values)):
        raise ValueError("not a number, or too large for one")
    return values


class OpenAiEmbeddingsClient:
    """Embeddings towards OpenAI and whoever is compatible. Errors are those of the provider's other format."""

    def encode_request(self, request: Request, model: str) -> bytes:
        """The client's own body, addressed to ``model``."""
        body: dict[str, Any] = dict(request.raw)
        body["model"] = model
        return msgspec.json.encode(body)

    def decode_response(self, body: bytes, request: Request, provider: str) -> list[Frame]:
        """The vectors in the order of the inputs, then what was read; raises ``ProviderProtocolError``."""
        try:
            body.decode()  # msgspec passes over the inside of strings that nobody asked for
            answer = _ANSWER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProviderProtocolError("The provider's answer is not of its format.", provider=provider) from None
        places = [place if each.index is None else each.index for place, each in enumerate(answer.data)]
        if sorted(places) != list(range(len(request.messages))):
            raise ProviderProtocolError("The provider did not give one vector for each input.", provider=provider)
        vectors = dict(zip(places, (each.embedding for each in answer.data), strict=True))
        events: list[Event] = [
            MessageStart("", answer.model or "", int(time.time())),
            Embeddings(tuple(vectors[place] for place in range(len(vectors)))),
        ]
        frames = [Frame(tuple(events))]
        read = (answer.usage.prompt_tokens or answer.usage.total_tokens or 0) if answer.usage is not None else 0
        return [*frames, Frame((UsageReport(Usage(input=read)),))] if read else frames
