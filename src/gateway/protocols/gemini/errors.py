"""What Google refuses with (``google.rpc.Status``), as our errors.

The status decides; within a stream the error's ``code`` stands for it. The vendor's words are passed on only where
they speak about the client's request, bounded and with secrets masked: a missing or unpaid key is the gateway's own
affair, though the Gemini API answers it with 400 like a mistake in the request.
Reference: https://ai.google.dev/gemini-api/docs/troubleshooting and https://cloud.google.com/apis/design/errors.
"""

import re
from typing import Any

import msgspec

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

_STATUS_OF_NAME = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# "User location is not supported", "enable billing": of the project, not of the request.
_OF_THE_ACCOUNT = "FAILED_PRECONDITION"
_KEY_REASONS = frozenset(("API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED", "ACCESS_TOKEN_EXPIRED"))

_MESSAGE_MAX = 500
_SCAN_MAX = 2000
_RETRY_S_MAX = 3600.0
_DELAY = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)s")
_SECRET = re.compile(
    r"\bAIza[\w-]{10,}|\bya29\.\S+|https?://[^\s\"'<>()]+|\b(?:projects|project|consumer)[/ :#=]+[\w:./-]*\w"
    r"|\b[\w-]+\.iam\.gserviceaccount\.com|\b(?:[\w-]+\.){1,6}googleapis\.com",
    re.IGNORECASE,
)

_JSON = msgspec.json.Decoder()


def decode_error(status: int, body: bytes, provider: str) -> ProviderError:
    """The error that an HTTP answer bears; without ``alt=sse`` it stands in an array."""
    try:
        answer = _JSON.decode(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    return provider_error(status, answer.get("error") if isinstance(answer, dict) else None, provider)


def provider_error(status: int | None, error: Any, provider: str) -> ProviderError:
    """A ``google.rpc.Status`` as ours; ``status`` is ``None`` where it came within a stream."""
    fields = error if isinstance(error, dict) else {"message": error}
    listed = fields.get("details")
    details = [detail for detail in listed if isinstance(detail, dict)] if isinstance(listed, list) else []
    meaning = status if status is not None else _implied_status(fields)
    if _is_of_the_account(meaning, fields, details):
        return ProviderUnavailable(
            "The provider refused the gateway's own credential or account.", provider=provider, status=status
        )
    found = _classify(meaning, _clean(fields.get("message")), provider, status)
    if found.code is ErrorCode.PROVIDER_REJECTED:
        found.vendor_code = _clean(fields.get("status")) or None
    if isinstance(found, ProviderRateLimited | ProviderUnavailable):
        found.retry_after_s = _retry_s(details)
    return found


def _implied_status(fields: dict[str, Any]) -> int:
    code = fields.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return _STATUS_OF_NAME.get(str(fields.get("status")), 500)


def _is_of_the_account(meaning: int, fields: dict[str, Any], details: list[dict[str, Any]]) -> bool:
    if meaning in (401, 402, 403):
        return True
    is_key = any(str(detail.get("reason")) in _KEY_REASONS for detail in details)
    return meaning == 400 and (is_key or fields.get("status") == _OF_THE_ACCOUNT)


def _classify(meaning: int, message: str, provider: str, status: int | None) -> ProviderError:
    match meaning:
        case 429:
            return ProviderRateLimited("The provider's rate limit is reached.", provider=provider, status=status)
        case 408 | 499 | 504:
            return ProviderTimeout("The provider timed out.", provider=provider, status=status)
        case 503 | 529:
            return ProviderUnavailable(
                "The provider is overloaded.", provider=provider, status=status, code=ErrorCode.PROVIDER_OVERLOADED
            )
        case 404:
            return ProviderRejected(
                message or "The provider does not know this model.",
                provider=provider,
                status=status,
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        case _ if 400 <= meaning < 500:
            text = message or f"The provider rejected the request with status {meaning}."
            return ProviderRejected(text, provider=provider, status=status)
        case _:
            return ProviderUnavailable(f"The provider failed with status {meaning}.", provider=provider, status=status)


def _retry_s(details: list[dict[str, Any]]) -> float | None:
    """The delay of a ``google.rpc.RetryInfo``, such as ``17s``."""
    for detail in details:
        delay = _DELAY.fullmatch(str(detail.get("retryDelay")))
        if delay is not None:
            return min(float(delay.group(1)), _RETRY_S_MAX)
    return None


def _clean(message: Any) -> str:
    if not isinstance(message, str):
        return ""
    printable = "".join(char if char.isprintable() else " " for char in message[:_SCAN_MAX])
    return " ".join(_SECRET.sub("***", printable).split())[:_MESSAGE_MAX]
