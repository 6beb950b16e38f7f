"""Everything that can go wrong, as one tree.

    GatewayError
    ├── RequestError            the client's request is wrong
    ├── AuthenticationError     we do not know who calls
    ├── PermissionDenied        we know, and it is not allowed
    ├── LimitExceeded           an allowance is used up for now
    ├── CreditsExhausted        the account cannot pay
    ├── ServiceUnavailable      we cannot serve now: draining, or the credit store is away
    └── ProviderError           the provider's fault
        ├── ProviderTimeout  ProviderUnavailable  ProviderRateLimited  ProviderRejected
        └── ProviderProtocolError ── StreamTruncated

Anything else that is raised is a bug and becomes a 500. Each error carries an ``ErrorCode``; a protocol decides how
it looks on the wire. A message says what was wrong, where, and what to do; it never holds a secret or a hostname.
"""

from enum import StrEnum
from typing import Literal, assert_never


class ErrorCode(StrEnum):
    """Stable, machine-readable names of errors; clients may depend on them."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    INVALID_VALUE = "invalid_value"
    UNSUPPORTED_VALUE = "unsupported_value"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    REQUEST_TOO_LARGE = "request_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    IDEMPOTENCY_IN_PROGRESS = "idempotency_in_progress"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    MODEL_NOT_FOUND = "model_not_found"
    PREVIOUS_RESPONSE_NOT_FOUND = "previous_response_not_found"
    MODEL_UNPRICED = "model_unpriced"
    INVALID_API_KEY = "invalid_api_key"
    TOKEN_EXPIRED = "token_expired"
    PERMISSION_DENIED = "permission_denied"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    ACCOUNT_SUSPENDED = "account_suspended"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    CONCURRENCY_LIMIT_EXCEEDED = "concurrency_limit_exceeded"
    BUDGET_EXCEEDED = "budget_exceeded"
    TOKENS_PER_REQUEST_EXCEEDED = "tokens_per_request_exceeded"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    ABUSE_DETECTED = "abuse_detected"
    FEATURE_NOT_ALLOWED = "feature_not_allowed"
    CREDITS_EXHAUSTED = "credits_exhausted"
    CREDIT_STORE_UNAVAILABLE = "credit_store_unavailable"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    DRAINING = "draining"
    PROVIDER_TIMEOUT = "provider_timeout"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_OVERLOADED = "provider_overloaded"
    PROVIDER_RATE_LIMITED = "provider_rate_limited"
    PROVIDER_REJECTED = "provider_rejected"
    PROVIDER_PROTOCOL_ERROR = "provider_protocol_error"
    STREAM_TRUNCATED = "stream_truncated"
    INTERNAL_ERROR = "internal_error"

    @property
    def http_status(self) -> int:  # noqa: C901 - a table, one row per status
        """The HTTP status this error has where a protocol has no other opinion."""
        code = self
        match code:
            case (
                ErrorCode.INVALID_JSON
                | ErrorCode.INVALID_REQUEST
                | ErrorCode.INVALID_VALUE
                | ErrorCode.UNSUPPORTED_VALUE
                | ErrorCode.PROVIDER_REJECTED
                | ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
                | ErrorCode.TOKENS_PER_REQUEST_EXCEEDED
                | ErrorCode.CONTEXT_LENGTH_EXCEEDED
            ):
                return 400
            case ErrorCode.INVALID_API_KEY | ErrorCode.TOKEN_EXPIRED:
                return 401
            case ErrorCode.CREDITS_EXHAUSTED:
                return 402
            case (
                ErrorCode.PERMISSION_DENIED
                | ErrorCode.MODEL_NOT_ALLOWED
                | ErrorCode.FEATURE_NOT_ALLOWED
                | ErrorCode.ACCOUNT_SUSPENDED
            ):
                return 403
            case ErrorCode.NOT_FOUND | ErrorCode.MODEL_NOT_FOUND | ErrorCode.MODEL_UNPRICED:
                return 404
            case ErrorCode.METHOD_NOT_ALLOWED:
                return 405
            case ErrorCode.REQUEST_TIMEOUT:
                return 408
            case ErrorCode.CONFLICT | ErrorCode.IDEMPOTENCY_IN_PROGRESS:
                return 409
            case ErrorCode.REQUEST_TOO_LARGE:
                return 413
            case ErrorCode.UNSUPPORTED_MEDIA_TYPE:
                return 415
            case ErrorCode.IDEMPOTENCY_MISMATCH:
                return 422
            case (
                ErrorCode.RATE_LIMIT_EXCEEDED
                | ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
                | ErrorCode.BUDGET_EXCEEDED
                | ErrorCode.ABUSE_DETECTED
                | ErrorCode.PROVIDER_RATE_LIMITED
            ):
                return 429
            case ErrorCode.INTERNAL_ERROR:
                return 500
            case ErrorCode.PROVIDER_PROTOCOL_ERROR | ErrorCode.STREAM_TRUNCATED | ErrorCode.PROVIDER_UNAVAILABLE:
                return 502
            case (
                ErrorCode.CREDIT_STORE_UNAVAILABLE
                | ErrorCode.IDENTITY_UNAVAILABLE
                | ErrorCode.DRAINING
                | ErrorCode.PROVIDER_OVERLOADED
            ):
                return 503
            case ErrorCode.PROVIDER_TIMEOUT:
                return 504
            case _:
                assert_never(code)


class GatewayError(Exception):
    """Root of every error that a client may be told about.

    ``param`` names the field that is wrong, in the client's own spelling. ``retry_after_s`` is ``None`` where waiting
    is not known to help. ``request_id`` is set by whoever answers; some envelopes repeat it.
    """

    code: ErrorCode = ErrorCode.INTERNAL_ERROR
    request_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def should_retry(self) -> bool | None:
        """Whether sending the same request again soon can succeed; ``None`` leaves it to the client's own rule."""
        return None


class RequestError(GatewayError):
    """The request itself is wrong; sending it again changes nothing."""

    code = ErrorCode.INVALID_REQUEST

    @property
    def should_retry(self) -> bool | None:
        # Clients take a 409 for one that passes; only a run that goes on does.
        return False if self.code in (ErrorCode.CONFLICT, ErrorCode.IDEMPOTENCY_MISMATCH) else None


class AuthenticationError(GatewayError):
    """No credential, or one we do not accept. The text is the same for an unknown key and a wrong secret."""

    code = ErrorCode.INVALID_API_KEY

    @property
    def should_retry(self) -> bool | None:
        return False  # a command-line client went on trying for minutes


class PermissionDenied(GatewayError):
    """A known caller asked for something its credential does not allow."""

    code = ErrorCode.PERMISSION_DENIED


class LimitExceeded(GatewayError):
    """An allowance is used up; ``retry_after_s`` says when it is worth trying again, ``None`` that it never is.

    ``limit`` names what is limited and ``scope`` whose share it is. ``standing`` is how a rate limit stands: the limit,
    what is left, and the seconds until all of it is there again.
    """

    code = ErrorCode.RATE_LIMIT_EXCEEDED
    standing: tuple[int, int, float] | None = None

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        scope: str,
        code: ErrorCode | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.limit = limit
        self.scope = scope

    @property
    def counts(self) -> Literal["requests", "tokens"] | None:
        """What is counted, where that is requests or tokens."""
        return self.limit if self.limit == "requests" or self.limit == "tokens" else None  # type: ignore[return-value]

    @property
    def should_retry(self) -> bool | None:
        return False if self.retry_after_s is None else None


class CreditsExhausted(GatewayError):
    """The account's balance cannot cover the request; waiting does not help, a top-up does."""

    code = ErrorCode.CREDITS_EXHAUSTED

    @property
    def should_retry(self) -> bool | None:
        return False


class ServiceUnavailable(GatewayError):
    """This gateway cannot take the request now; another replica, or a moment later, may."""

    code = ErrorCode.CREDIT_STORE_UNAVAILABLE


class ProviderError(GatewayError):
    """A provider failed us. ``status`` is its HTTP status, or ``None`` where there was none.

    ``retryable`` says whether another attempt, here or at another provider, may succeed. ``vendor_code`` is the
    vendor's own code where it judged the request, since programs react to some (``context_length_exceeded``). ``cause``
    is why it could not be reached or heard, where that is known: for the log, and never for the client.
    """

    code = ErrorCode.PROVIDER_UNAVAILABLE
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        status: int | None = None,
        code: ErrorCode | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.provider = provider
        self.status = status
        self.vendor_code: str | None = None
        self.cause = ""
        self.retryable = type(self).retryable if retryable is None else retryable


class ProviderTimeout(ProviderError):
    """The provider did not connect, answer, or go on in time."""

    code = ErrorCode.PROVIDER_TIMEOUT


class ProviderUnavailable(ProviderError):
    """The provider refused the connection, broke it, or answered with a server error."""

    code = ErrorCode.PROVIDER_UNAVAILABLE


class ProviderRateLimited(ProviderError):
    """The provider's own limit is reached."""

    code = ErrorCode.PROVIDER_RATE_LIMITED


class ProviderRejected(ProviderError):
    """The provider judged the request wrong; another attempt would be judged the same."""

    code = ErrorCode.PROVIDER_REJECTED
    retryable = False


class ProviderProtocolError(ProviderError):
    """The provider sent something that its own protocol does not allow."""

    code = ErrorCode.PROVIDER_PROTOCOL_ERROR


class StreamTruncated(ProviderProtocolError):
    """The provider's stream ended without saying that it was finished."""

    code = ErrorCode.STREAM_TRUNCATED
