"""What Anthropic refuses with, as our errors.

The status decides; where an error comes within a stream, its ``type`` stands for the status it would have had. The
vendor's words are passed on only where they speak about the client's request, bounded and with secrets masked:
everything else concerns the gateway's own account. Types: https://platform.claude.com/docs/en/api/errors
"""

import re

import msgspec

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.protocols.anthropic_messages.shapes import ErrorBody, ErrorShape

MESSAGE_CHARS_MAX = 500
_SCAN_CHARS_MAX = 2000

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

# In this order: a URL swallows its host, and what is masked matches nothing that follows.
_MASKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b[a-z][a-z0-9+.-]{0,15}://[^\s\"'<>()]+", re.IGNORECASE), "[url]"),
    (re.compile(r"\bbearer\s+\S+", re.IGNORECASE), "[key]"),
    (re.compile(r"(?<![a-z0-9])sk-[\w*.-]*", re.IGNORECASE), "[key]"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE), "[id]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "[host]"),
    (
        re.compile(
            r"\b(?:[a-z0-9-]{1,63}\.){1,8}(?:com|net|org|io|ai|dev|app|cloud|internal|local|svc)\b(?::\d+)?",
            re.IGNORECASE,
        ),
        "[host]",
    ),
)

_BODY = msgspec.json.Decoder(ErrorBody)


def decode_error(status: int, body: bytes, provider: str) -> ProviderError:
    """The error that an HTTP answer bears; any body will do, HTML and garbage get a message of our own."""
    try:
        vendor = _BODY.decode(body).error
    except (ValueError, RecursionError):
        vendor = ErrorShape()
    return _classify(status, vendor.message, provider, status)


def decode_stream_error(vendor: ErrorShape, provider: str) -> ProviderError:
    """The error of an ``event: error``. Its ``status`` is ``None``: the answer had begun with 200."""
    return _classify(_STATUS_OF_TYPE.get(vendor.type, 500), vendor.message, provider, None)


def _classify(meaning: int, vendor_text: str, provider: str, status: int | None) -> ProviderError:
    match meaning:
        case 401 | 402 | 403:
            return ProviderError(
                "The provider refused the gateway's own credential or account; tell the gateway's operator.",
                provider=provider,
                status=status,
                code=ErrorCode.PROVIDER_UNAVAILABLE,
                retryable=True,
            )
        case 408 | 504:
            return ProviderTimeout("The provider did not answer in time.", provider=provider, status=status)
        case 429:
            return ProviderRateLimited("The provider's own rate limit is reached.", provider=provider, status=status)
        case 404:
            text = mask(vendor_text) or "The provider does not know this model."
            return ProviderRejected(text, provider=provider, status=status, code=ErrorCode.MODEL_NOT_FOUND)
        case _ if 400 <= meaning < 500:
            text = mask(vendor_text) or "The provider rejected the request and gave no reason."
            return ProviderRejected(text, provider=provider, status=status)
        case 503 | 529:
            return ProviderUnavailable(
                "The provider is overloaded.", provider=provider, status=status, code=ErrorCode.PROVIDER_OVERLOADED
            )
        case _ if meaning >= 500:
            return ProviderUnavailable("The provider is out of order.", provider=provider, status=status)
        case _:
            return ProviderProtocolError(
                "The provider answered with a status that is neither success nor error.",
                provider=provider,
                status=status,
            )


def mask(text: str) -> str:
    """The vendor's text as one line of ``MESSAGE_CHARS_MAX`` at most, without keys, hosts and account ids."""
    printable = "".join(char if char.isprintable() else " " for char in text[:_SCAN_CHARS_MAX])
    for pattern, replacement in _MASKS:
        printable = pattern.sub(replacement, printable)
    return " ".join(printable.split())[:MESSAGE_CHARS_MAX]
