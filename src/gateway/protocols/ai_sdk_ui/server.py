"""The server role: what ``useChat`` and ``useCompletion`` of AI SDK 5 and later talk to."""

from collections.abc import Callable, Mapping

from gateway.canonical.errors import GatewayError
from gateway.canonical.request import Request, ToolCall
from gateway.protocols.ai_sdk_ui import NAME, Compat
from gateway.protocols.ai_sdk_ui.incoming import UiRequest, decode_chat, decode_completion
from gateway.protocols.ai_sdk_ui.stream import UiMessageEncoder, failure
from gateway.protocols.ai_sdk_ui.text import TextEncoder
from gateway.protocols.rates import openai_headers
from gateway.protocols.wire import Allowance, Encoder, Headers, Reply, StreamMeta, json_reply, retry_headers


class AiSdkUiServer:
    """The UI message stream that ``useChat`` of AI SDK 5 and later reads."""

    name = NAME
    heartbeat = UiMessageEncoder.heartbeat
    nothing_to_resume = 204

    def __init__(self, *, default_model: str | None = None, compat: Compat = "5-strict") -> None:
        """``default_model`` answers where a request names none; ``compat`` is the oldest client there is."""
        self._default_model = default_model
        self._compat = compat

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named as for AI SDK 4; ``?protocol=text`` answers with the text alone."""
        return decode_chat(body, query, self._default_model)

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Always a stream: the clients know nothing else."""
        asked = request if isinstance(request, UiRequest) else None
        if asked is not None and asked.stream_protocol == "text":
            return TextEncoder()
        call_ids = [part.id for message in request.messages for part in message.parts if isinstance(part, ToolCall)]
        continues = asked is not None and asked.continues
        return UiMessageEncoder(meta, compat=self._compat, continues=continues, call_ids=call_ids)

    def broken_off(self, error: GatewayError) -> bytes:
        """An error as the last event."""
        return failure(error)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """``useChat`` shows the body of an error answer as the message of its error; the same one as for AI SDK 4."""
        body = {"error": {"message": error.message, "code": error.code.value, "param": error.param}}
        return json_reply(error.code.http_status, body, retry_headers(error))


class AiSdkCompletionServer(AiSdkUiServer):
    """A prompt instead of messages, as ``useCompletion`` posts it, and the same answer."""

    def __init__(
        self,
        data_stream: Callable[[StreamMeta], Encoder],
        *,
        default_model: str | None = None,
        compat: Compat = "5-strict",
    ) -> None:
        """``data_stream`` makes the encoder for AI SDK 4."""
        super().__init__(default_model=default_model, compat=compat)
        self._data_stream = data_stream

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """``?protocol=data`` answers with the data stream of AI SDK 4, ``?protocol=text`` with the text alone."""
        return decode_completion(body, query, self._default_model)

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Bodies of all releases look the same, so an older client has to say what it is."""
        if isinstance(request, UiRequest) and request.stream_protocol == "data":
            return self._data_stream(meta)
        return super().encoder(request, meta)
