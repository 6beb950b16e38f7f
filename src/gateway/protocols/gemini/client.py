"""Gemini towards a provider, on Google's own API and on Vertex AI alike: the entry to what writes and reads it."""

import time
from collections.abc import Callable, Mapping

from gateway.canonical.errors import ProviderError
from gateway.canonical.events import Frame
from gateway.canonical.request import Loss, Request
from gateway.protocols.gemini import NAME
from gateway.protocols.gemini.errors import decode_error
from gateway.protocols.gemini.losses import losses
from gateway.protocols.gemini.outgoing import encode, refuse_unsupported
from gateway.protocols.gemini.stream import GeminiDecoder, decode_whole
from gateway.protocols.wire import NO_HEADERS, StreamDecoder


class GeminiClient:
    """A ``ClientRole``. No client speaks this format to us, so no frame passes as it came."""

    name = NAME

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body of a streaming call. Raises ``RequestError`` for what the format cannot carry."""
        return encode(request, model)

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes; may raise where it would."""
        refuse_unsupported(request)
        return losses(request, model)

    def decoder(self, provider: str) -> StreamDecoder:
        """A fresh decoder; ``provider`` names the vendor in errors."""
        return GeminiDecoder(provider, created=int(self._clock()))

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, from a server that did not stream although it was asked to."""
        return decode_whole(body, provider, created=int(self._clock()))

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """The vendor's error body as ours. Its text is passed on only where it speaks about the request."""
        return decode_error(status, body, provider)
