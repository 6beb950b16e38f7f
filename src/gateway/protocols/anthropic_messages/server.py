"""Anthropic Messages towards clients: what they ask, and what answers them."""

from collections.abc import Mapping

from gateway.canonical.errors import GatewayError
from gateway.canonical.request import Request
from gateway.protocols.anthropic_messages import incoming
from gateway.protocols.anthropic_messages.encoder import EventEncoder, MessageEncoder
from gateway.protocols.anthropic_messages.envelope import envelope, status_of
from gateway.protocols.anthropic_messages.shapes import NAME
from gateway.protocols.rates import anthropic_headers
from gateway.protocols.wire import Allowance, Encoder, Headers, Reply, StreamMeta, json_reply, retry_headers


class AnthropicMessagesServer:
    """Anthropic's Messages, streamed or whole, in both versions of the API."""

    name = NAME

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named in the body; without `anthropic-version` it is `2023-06-01`."""
        return incoming.decode(body, version=query.get("anthropic-version"), betas=query.get("anthropic-beta"))

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Events where the client streams, else one whole message."""
        events = EventEncoder(meta, request.model)
        return events if request.stream else MessageEncoder(events, meta)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``anthropic-ratelimit-*``."""
        return anthropic_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """Anthropic's envelope; SDKs choose their error class by the status."""
        headers = retry_headers(error)
        if error.request_id is not None:
            headers += ((b"request-id", error.request_id.encode()),)
        return json_reply(status_of(error), envelope(error, error.request_id), headers)
