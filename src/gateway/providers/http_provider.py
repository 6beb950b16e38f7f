"""A provider reached over HTTP that speaks one of our wire formats."""

import email.utils
import re
import time
from collections.abc import AsyncGenerator

import yarl
from multidict import CIMultiDict

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Failure, Frame
from gateway.canonical.request import Request
from gateway.protocols.openai_embeddings import OpenAiEmbeddingsClient
from gateway.protocols.wire import ClientRole, StreamDecoder
from gateway.providers.endpoint import Endpoint
from gateway.providers.provider import Call
from gateway.providers.transport import Answer, ConnectTimeout, Post, Transport, TransportError, timeout_of

_RETRY_AFTER_MAX_S = 3600.0
# 2,048 vectors of 3,072 numbers each, written out.
_EMBEDDINGS_BODY_MAX = 128 * 1024 * 1024


class HttpProvider:
    """Calls an ``Endpoint`` in a format."""

    def __init__(self, endpoint: Endpoint, protocol: ClientRole, transport: Transport) -> None:
        self.name = endpoint.name
        self.vendor = endpoint.vendor
        self.wire: str | None = protocol.name
        self.timeouts = endpoint.timeouts
        self.hangup = endpoint.hangup
        self._endpoint = endpoint
        self._protocol = protocol
        self._transport = transport
        self._url = yarl.URL(endpoint.url)
        self._embeddings_url = yarl.URL(endpoint.embeddings_url) if endpoint.embeddings_url else None
        self._embeddings = OpenAiEmbeddingsClient()
        self._timeout = timeout_of(endpoint.timeouts.connect_s)
        self._headers = CIMultiDict(
            {
                "content-type": "application/json",
                "accept": "*/*",
                "accept-encoding": "identity",
                "user-agent": "gateway",
                **endpoint.headers,
            }
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The models the configuration lists."""
        return self._endpoint.models

    def knows(self, model: str) -> bool:
        """Any model: the vendor says what it has."""
        return True

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        """As the operator said; else by its vendor's habit, or where answers are drained: hanging up saves nothing."""
        unseen = self._endpoint.unseen
        if unseen.always is not None:
            return unseen.always
        if self.hangup.policy == "drain" or (unseen.if_asked and reasons):
            return True
        return unseen.models is not None and re.match(unseen.models, model) is not None

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """The answer, one batch per read. An error after the first batch is a ``Failure`` event in the last one."""
        if call.request.embedding is not None:
            frames = await self._embed(call)
            for frame in frames:  # the vectors are paid for by our count, before the provider's is known
                yield Batch([frame], is_last=frame is frames[-1])
            return
        answer = await self._open(call)
        try:
            if answer.content_type == "application/json":
                frames = self._protocol.decode_response(await answer.read_all(), self.name)
                yield Batch(frames, is_last=True)
                return
            decoder = self._protocol.decoder(self.name)
            while not decoder.is_done:
                batch = await self._next(answer, decoder)
                yield batch
                if batch.is_last and not decoder.is_done:
                    return
            await answer.finish()
        finally:
            answer.close()

    async def _open(self, call: Call) -> Answer:
        if call.request.untranslatable and call.request.format != self._protocol.name:
            field = call.request.untranslatable[0]
            raise RequestError(f"{field} cannot be sent to this model.", code=ErrorCode.UNSUPPORTED_VALUE, param=field)
        body = self._protocol.encode_request(call.request, call.model)
        answer = await self._post(Post(self._url, self._headers_for(call.request), body, self._timeout))
        if answer.content_type not in ("text/event-stream", "application/json"):
            answer.close()
            raise ProviderProtocolError("The provider answered with something other than a stream.", provider=self.name)
        return answer

    async def _embed(self, call: Call) -> list[Frame]:
        """The vectors of all inputs, and what the provider says it read."""
        if self._embeddings_url is None:
            text = f"The provider {self.name} has no embeddings."
            raise RequestError(text, code=ErrorCode.UNSUPPORTED_VALUE, param="model")
        body = self._embeddings.encode_request(call.request, call.model)
        answer = await self._post(Post(self._embeddings_url, self._headers, body, self._timeout))
        try:
            whole = await answer.read_all(_EMBEDDINGS_BODY_MAX)
        except TransportError:
            raise ProviderUnavailable(
                "The provider's connection broke within the answer.", provider=self.name
            ) from None
        finally:
            answer.close()
        return self._embeddings.decode_response(whole, call.request, self.name)

    async def _post(self, post: Post) -> Answer:
        """Raises ``ProviderError`` where the provider cannot be reached or refuses."""
        try:
            answer = await self._transport.post(post)
        except ConnectTimeout:
            raise ProviderTimeout("The provider did not accept a connection in time.", provider=self.name) from None
        except TransportError:
            raise ProviderUnavailable("The provider could not be reached.", provider=self.name) from None
        if answer.status != 200:
            raise await self._refused(answer)
        return answer

    def _headers_for(self, request: Request) -> CIMultiDict[str]:
        """Our own, and those that belong to a body of the provider's own format."""
        if not request.headers or request.format != self._protocol.name:
            return self._headers
        return CIMultiDict({**self._headers, **request.headers})

    async def _refused(self, answer: Answer) -> ProviderError:
        try:
            error = self._protocol.decode_error(answer.status, await answer.read_error(), self.name)
            error.retry_after_s = _retry_after_s(answer.retry_after)
            return error
        finally:
            answer.close()

    async def _next(self, answer: Answer, decoder: StreamDecoder) -> Batch:
        try:
            chunk = await answer.read()
        except TransportError:
            error = StreamTruncated("The provider's connection broke within the answer.", provider=self.name)
            return Batch([Frame((Failure(error),))], is_last=True)
        if chunk:
            return Batch(decoder.feed(chunk), decoder.is_done)
        return Batch(decoder.end_of_bytes(), is_last=True)

    async def aclose(self) -> None:
        """The transport is shared and closed by its owner."""


def _retry_after_s(value: str | None) -> float | None:
    """``Retry-After`` in either of its forms, seconds or a date; ``None`` where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(seconds, _RETRY_AFTER_MAX_S) if seconds >= 0 else None
