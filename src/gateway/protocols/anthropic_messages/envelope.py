"""Our errors as Anthropic's: the type and the status that its SDKs choose their error classes by.

Types: https://platform.claude.com/docs/en/api/errors
"""

from typing import Any

from gateway.canonical.errors import ErrorCode, GatewayError, ProviderError

_OVERLOADED = 529
# By HTTP status; any other is "invalid_request_error" below 500 and "api_error" above.
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}


def status_of(error: GatewayError) -> int:
    """The HTTP status; an overloaded provider has one of its own here."""
    return _OVERLOADED if error.code is ErrorCode.PROVIDER_OVERLOADED else error.code.http_status


def envelope(error: GatewayError, request_id: str | None) -> dict[str, Any]:
    """The body of an error answer, and the data of an ``error`` event. What is our own stands in ``details``."""
    status = status_of(error)
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    code = (error.vendor_code if isinstance(error, ProviderError) else None) or error.code.value
    details = {"error_code": code, **({"param": error.param} if error.param else {})}
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message, "details": details},
        "request_id": request_id,
    }
