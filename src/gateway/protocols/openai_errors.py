"""What OpenAI and those who copy it refuse with, as our errors.

The status decides; within a stream, where there is none, the error's code or type stands for it. The vendor's words
are passed on only where they speak about the client's request, bounded and with secrets masked.
Reference: https://platform.openai.com/docs/guides/error-codes.
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

_OBJECT = msgspec.json.Decoder(dict[str, Any])

_SECRET = re.compile(r"\b(?:sk|gsk|xai|key|pk)[-_][A-Za-z0-9*_-]{6,}|https?://[^\s\"')]+|\borg-[A-Za-z0-9]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_MESSAGE_MAX = 500

_STATUS_BY_CODE = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 402,
    "slow_down": 429,
    "server_is_overloaded": 503,
    "overloaded": 503,
    "server_error": 500,
    "timeout": 504,
    "vector_store_timeout": 504,
    **dict.fromkeys(
        (
            "invalid_request_error",
            "context_length_exceeded",
            "content_filter",
            "tool_use_failed",
            "invalid_prompt",
            "invalid_encrypted_content",
            "bio_policy",
            "cyber_policy",
            "data_residency_mismatch",
            "misalignment_policy_violation",
            "invalid_image",
            "invalid_image_format",
            "invalid_image_mode",
            "invalid_image_url",
            "invalid_base64_image",
            "image_too_large",
            "image_too_small",
            "image_parse_error",
            "image_content_policy_violation",
            "image_file_too_large",
            "image_file_not_found",
            "unsupported_image_media_type",
            "empty_image_file",
            "failed_to_download_image",
        ),
        400,
    ),
}


def answered_error(status: int, body: bytes, provider: str) -> ProviderError:
    """The error of an HTTP answer; vendors put theirs under ``error``, ``detail`` or nothing at all."""
    try:
        answer = _OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        answer = {}
    return provider_error(status, answer.get("error", answer.get("detail")), provider)


def provider_error(status: int | None, error: Any, provider: str) -> ProviderError:
    """A vendor's error object as ours; ``status`` is ``None`` where it came within a stream."""
    fields = error if isinstance(error, dict) else {"message": error}
    if status is None:
        status = _implied_status(fields)
    if status == 429 and "insufficient_quota" in (fields.get("code"), fields.get("type")):
        status = 402  # the gateway's own account is empty: no waiting helps
    message = _clean(fields.get("message"))
    match status:
        case 401 | 402 | 403:
            # The gateway's own credential: not the client's fault, and none of its business.
            return ProviderUnavailable(
                "The provider refused the gateway's own credential or account.", provider=provider, status=status
            )
        case 429:
            return ProviderRateLimited("The provider's rate limit is reached.", provider=provider, status=status)
        case 408 | 504:
            return ProviderTimeout("The provider timed out.", provider=provider, status=status)
        case 503 | 529:
            return ProviderUnavailable(
                "The provider is overloaded.", provider=provider, status=status, code=ErrorCode.PROVIDER_OVERLOADED
            )
        case _ if status >= 500:
            return ProviderUnavailable(f"The provider failed with status {status}.", provider=provider, status=status)
        case 404:
            return ProviderRejected(
                message or "The provider does not know this model.",
                provider=provider,
                status=status,
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        case _:
            return _rejected(fields, message, provider, status)


def _implied_status(fields: dict[str, Any]) -> int:
    codes = (fields.get("code"), fields.get("type"))
    numeric = (code for code in codes if isinstance(code, int) and 400 <= code < 600)
    named = (_STATUS_BY_CODE[str(code)] for code in codes if str(code) in _STATUS_BY_CODE)
    return next(numeric, None) or next(named, 500)


def _rejected(fields: dict[str, Any], message: str, provider: str, status: int) -> ProviderRejected:
    """The vendor's judgement of the request, with its own code and field: both speak about what the client sent."""
    text = message or f"The provider rejected the request with status {status}."
    error = ProviderRejected(text, provider=provider, status=status)
    error.vendor_code = _clean(fields.get("code")) or None
    error.param = _clean(fields.get("param")) or None
    return error


def _clean(message: Any) -> str:
    if not isinstance(message, str):
        return ""
    return _SECRET.sub("***", _CONTROL.sub(" ", message))[:_MESSAGE_MAX].strip()
