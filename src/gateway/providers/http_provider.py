"""A provider reached over HTTP that speaks one of our wire formats."""

import re
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from functools import partial

import msgspec
import structlog

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Failure, Frame
from gateway.canonical.request import Loss, Request
from gateway.protocols.openai_embeddings import OpenAiEmbeddingsClient
from gateway.protocols.wire import ClientRole, StreamDecoder
from gateway.providers.address import Address, address_of
from gateway.providers.credentials import CredentialError, OutgoingRequest
from gateway.providers.endpoint import MODEL_IN_URL, Endpoint
from gateway.providers.provider import Call, Shortcut
from gateway.providers.retry_after import retry_after_s, used_up_s
from gateway.providers.transport import (
    RESPONSE_BODY_MAX,
    Answer,
    ConnectTimeout,
    Post,
    Transport,
    TransportError,
)

_log = structlog.get_logger()

# 2,048 vectors of 3,072 numbers each, written out.
_EMBEDDINGS_BODY_MAX = 128 * 1024 * 1024
_HEADERS = {
    "content-type": "application/json",
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": "gateway",
}
_ANSWER_TYPES = ("text/event-stream", "application/vnd.amazon.eventstream", "application/json")


class HttpProvider:
    """Calls an ``Endpoint`` in a format."""

    def __init__(self, endpoint: Endpoint, protocol: ClientRole, transport: Transport) -> None:
        self.name = endpoint.name
        self.vendor = endpoint.vendor
        self.wire: str | None = protocol.name
        self.timeouts = endpoint.timeouts
        self.hangup = endpoint.hangup
        self._endpoint = endpoint
        self._credentials = endpoint.credentials
        self._protocol = protocol
        self._transport = transport
        self._address = address_of(endpoint.url)
        vectors_url = endpoint.embeddings_url
        self._embeddings_address = None if vectors_url is None else address_of(vectors_url)
        self._embeddings = OpenAiEmbeddingsClient()
        self._headers = _merged(_HEADERS, endpoint.headers)
        # What goes out in front of every body where neither model nor client has a say in it.
        self._head = None if self._credentials or MODEL_IN_URL in endpoint.url else self._address.head(self._headers)

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

    def losses(self, call: Call) -> tuple[Loss, ...]:
        """Nothing where the provider speaks the client's own format, or makes vectors."""
        request = call.request
        if request.format == self._protocol.name or request.embedding is not None:
            return ()
        dropped = (*request.untranslatable, *request.untold, *request.headers)
        return (*(Loss("dropped", name) for name in dropped), *self._protocol.losses(request, call.model))

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
                frames = self._protocol.decode_response(await self._whole(answer), self.name)
                yield Batch(frames, is_last=True)
                return
            decoder = self._protocol.decoder(self.name)
            take = partial(_take, decoder, call.shortcut or Shortcut())
            while True:
                try:
                    batch = await answer.read(take) or Batch(decoder.end_of_bytes(), is_last=True)
                except TransportError as cause:
                    batch = self._broken_off(cause)
                yield batch
                if batch.is_last:
                    break
            if decoder.is_done:
                await answer.finish()
        finally:
            answer.close()

    async def _open(self, call: Call) -> Answer:
        if call.request.untranslatable and call.request.format != self._protocol.name:
            field = call.request.untranslatable[0]
            raise RequestError(f"{field} cannot be sent to this model.", code=ErrorCode.UNSUPPORTED_VALUE, param=field)
        body = self._protocol.encode_request(call.request, call.model)
        head = self._head
        if head is None or call.request.headers:
            head = await self._head_for(self._address, call, body)
        answer = await self._post(self._address, head, body)
        if answer.content_type not in _ANSWER_TYPES:
            answer.close()
            raise ProviderProtocolError("The provider answered with something other than a stream.", provider=self.name)
        if answer.headers.get("content-encoding", "identity") != "identity":
            answer.close()
            raise ProviderProtocolError(
                "The provider compressed its answer, which it was asked not to do.", provider=self.name
            )
        if call.on_used_up is not None and (wait_s := used_up_s(answer.headers)) is not None:
            call.on_used_up(wait_s)
        return answer

    async def _whole(self, answer: Answer, limit: int = RESPONSE_BODY_MAX) -> bytes:
        try:
            return await answer.read_all(limit)
        except TransportError as cause:
            text = "The provider's connection broke within the answer."
            raise _because(ProviderUnavailable(text, provider=self.name), cause) from None

    async def _embed(self, call: Call) -> list[Frame]:
        """The vectors of all inputs, and what the provider says it read."""
        address = self._embeddings_address
        if address is None:
            text = f"The provider {self.name} has no embeddings."
            raise RequestError(text, code=ErrorCode.UNSUPPORTED_VALUE, param="model")
        body = self._embeddings.encode_request(call.request, call.model)
        answer = await self._post(address, await self._head_for(address, call, body), body)
        try:
            whole = await self._whole(answer, _EMBEDDINGS_BODY_MAX)
        finally:
            answer.close()
        return self._embeddings.decode_response(whole, call.request, self.name)

    async def _post(self, address: Address, head: bytes, body: bytes) -> Answer:
        """Raises ``ProviderError`` where the provider cannot be reached or refuses."""
        try:
            answer = await self._transport.post(Post(address.origin, head, body, self.timeouts.connect_s))
        except ConnectTimeout as cause:
            late = ProviderTimeout("The provider did not accept a connection in time.", provider=self.name)
            raise _because(late, cause) from None
        except TransportError as cause:
            error = ProviderUnavailable("The provider could not be reached.", provider=self.name)
            raise _because(error, cause) from None
        if answer.status != 200:
            raise await self._refused(answer)
        return answer

    async def _head_for(self, address: Address, call: Call, body: bytes) -> bytes:
        """The head of a call whose address or headers are its own."""
        address, headers = _for_model(address, call.model), self._headers_for(call.request)
        if self._credentials is None:
            return address.head(headers)
        try:
            proof = await self._credentials.headers(OutgoingRequest("POST", address.url, headers, body))
        except CredentialError as error:
            _log.warning("provider_credential_missing", provider=self.name, why=str(error))
            raise ProviderUnavailable(
                "The gateway has no credential for the provider at the moment.", provider=self.name
            ) from None
        return address.head(_merged(headers, proof))

    def _headers_for(self, request: Request) -> Mapping[str, str]:
        """Our own, and those that belong to a body of the provider's own format."""
        if not request.headers or request.format != self._protocol.name:
            return self._headers
        return _merged(self._headers, request.headers)

    async def _refused(self, answer: Answer) -> ProviderError:
        try:
            if answer.status < 400:
                return ProviderProtocolError(
                    "The provider answered with a status that is neither success nor error.",
                    provider=self.name,
                    status=answer.status,
                )
            error = self._protocol.decode_error(answer.status, await answer.read_error(), self.name, answer.headers)
            said_s = retry_after_s(answer.headers, is_limit=isinstance(error, ProviderRateLimited))
            if said_s is not None:
                error.retry_after_s = said_s
            return error
        finally:
            answer.close()

    def _broken_off(self, cause: TransportError) -> Batch:
        error = StreamTruncated("The provider's connection broke within the answer.", provider=self.name)
        return Batch([Frame((Failure(_because(error, cause)),))], is_last=True)

    async def aclose(self) -> None:
        """The transport is shared and closed by its owner."""
        if self._endpoint.credentials is not None:
            await self._endpoint.credentials.aclose()


def _take(decoder: StreamDecoder, shortcut: Shortcut, chunk: bytes) -> Batch | None:
    """What a read bore, unless it was passed on at once."""
    frames, is_last, pass_on = decoder.feed(chunk), decoder.is_done, shortcut.pass_on
    batch = Batch(frames, is_last)
    return None if pass_on is not None and not is_last and pass_on(batch) else batch


def _because(error: ProviderError, cause: Exception) -> ProviderError:
    error.cause = str(cause) or "connect timed out"
    return error


def _merged(headers: Mapping[str, str], over: Mapping[str, str]) -> Mapping[str, str]:
    """Names in lower case; of two that are the same the one in ``over`` counts."""
    return {name.lower(): value for each in (headers, over) for name, value in each.items()}


def _for_model(address: Address, model: str) -> Address:
    """The address of a model that stands in its path; what a client wrote there stays within its one segment."""
    if MODEL_IN_URL not in address.target:
        return address
    if model.strip(".") == "":
        raise RequestError("There is no such model.", code=ErrorCode.MODEL_NOT_FOUND, param="model")
    target = address.target.replace(MODEL_IN_URL, urllib.parse.quote(model, safe="@"))
    return msgspec.structs.replace(address, target=target)
