"""What OpenAI's formats have in common: the error envelope and the usage object of everything but Responses.

Reference: https://platform.openai.com/docs/guides/error-codes. SDKs choose their error class by the status and read
``code``; they show ``message``.
"""

from typing import Any

from gateway.canonical.errors import ErrorCode, GatewayError, ProviderError
from gateway.canonical.usage import Usage
from gateway.protocols.wire import Reply, json_reply, retry_headers


def error_object(error: GatewayError) -> dict[str, Any]:
    """An error as OpenAI spells it, with the vendor's own code where it judged the request."""
    code = (error.vendor_code if isinstance(error, ProviderError) else None) or error.code.value
    return {"message": error.message, "type": _error_type(error.code), "param": error.param, "code": code}


def error_reply(error: GatewayError) -> Reply:
    """OpenAI's envelope as an HTTP answer."""
    return json_reply(error.code.http_status, {"error": error_object(error)}, retry_headers(error))


def _error_type(code: ErrorCode) -> str:
    match code:
        case ErrorCode.CREDITS_EXHAUSTED | ErrorCode.BUDGET_EXCEEDED:
            return "insufficient_quota"
        case _ if code.http_status == 429:
            return "rate_limit_error"
        case _ if code.http_status == 503:
            return "service_unavailable_error"
        case _:
            return "invalid_request_error" if code.http_status < 500 else "server_error"


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage as Chat Completions spells it; the provider's own object where it is of this format."""
    if usage.raw is not None and "prompt_tokens" in usage.raw and "completion_tokens" in usage.raw:
        return usage.raw
    details = {"cached_tokens": usage.cache_read}
    if usage.cache_write:
        details["cache_write_tokens"] = usage.cache_write
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
