"""Responses towards a provider: the request we send, and the entry to what reads the answer.

Every call stands for itself: nothing is stored at the provider, and the conversation is sent whole. ``outgoing.py``
writes the body, ``stream.py`` reads the answer.
"""

import time
from collections.abc import Callable, Mapping

from gateway.canonical.errors import ProviderError
from gateway.canonical.events import Frame
from gateway.canonical.request import Loss, Request
from gateway.protocols.openai_errors import answered_error
from gateway.protocols.openai_responses import NAME, outgoing
from gateway.protocols.openai_responses.losses import losses
from gateway.protocols.openai_responses.stream import ResponsesDecoder, decode_response
from gateway.protocols.wire import NO_HEADERS, StreamDecoder


class OpenAiResponsesClient:
    """The client role of Responses."""

    name = NAME

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def encode_request(self, request: Request, model: str) -> bytes:
        """The client's own body where it is of this format, else the canonical request."""
        if request.format == NAME:
            return outgoing.forward(request, model)
        return outgoing.encode(request, model)

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes of a request in another format; raises as it does."""
        if request.format == NAME:
            return ()
        outgoing.refuse_unsupported(request)
        return losses(request)

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        return ResponsesDecoder(provider, created=int(self._clock()))

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a provider that did not stream although it was asked to."""
        return decode_response(body, provider, created=int(self._clock()))

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """The vendor's error body as ours. Its text is passed on only where it speaks about the request."""
        return answered_error(status, body, provider)
