"""What Bedrock refuses with, as our errors: by an HTTP status and a header, or by an exception within the stream.

The exception's name decides, the status where there is none: AWS refuses a bad signature with 400 like a bad request.
Its words are passed on only where they speak about the client's request, without ARNs, accounts, hosts and keys.
Names: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html#API_runtime_ConverseStream_Errors
"""

import re

import msgspec

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

_MESSAGE_CHARS_MAX = 500
_SCAN_CHARS_MAX = 2000

# What each name means as a status, where that is not the one it comes with. All are compared in lower case: the
# stream writes `throttlingException`, the header `ThrottlingException`.
_MEANINGS = {
    "validationexception": 400,
    "serializationexception": 400,
    "accessdeniedexception": 403,
    "expiredtokenexception": 403,
    "incompletesignatureexception": 403,
    "invalidsignatureexception": 403,
    "missingauthenticationtokenexception": 403,
    "notauthorized": 403,
    "optinrequired": 403,
    "requestexpired": 403,
    "unrecognizedclientexception": 403,
    "resourcenotfoundexception": 404,
    "modeltimeoutexception": 408,
    "servicequotaexceededexception": 429,
    "throttlingexception": 429,
    "toomanyrequestsexception": 429,
    "internalserverexception": 500,
    "internalfailure": 500,
    "modelerrorexception": 500,
    "modelstreamerrorexception": 500,
    "modelnotreadyexception": 503,
    "serviceunavailableexception": 503,
}

_MASKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\barn:[^\s\"',;)]+", re.IGNORECASE), "[arn]"),
    (re.compile(r"\b[a-z][a-z0-9+.-]{0,15}://[^\s\"'<>()]+", re.IGNORECASE), "[url]"),
    (re.compile(r"\b(?:AKIA|ASIA|ABSK)[A-Za-z0-9+/=]{8,}"), "[key]"),
    (re.compile(r"\b\d{12}\b"), "[account]"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE), "[id]"),
    (re.compile(r"\b(?:[a-z0-9-]{1,63}\.){1,8}(?:com|aws|net|internal|local)\b(?::\d+)?", re.IGNORECASE), "[host]"),
)


class _Body(msgspec.Struct, frozen=True):
    message: str = ""
    capital: str = msgspec.field(default="", name="Message")
    kind: str = msgspec.field(default="", name="__type")


_BODY = msgspec.json.Decoder(_Body)


def answered_error(status: int, body: bytes, provider: str, error_type: str = "") -> ProviderError:
    """The error of an HTTP answer; ``error_type`` is its ``x-amzn-ErrorType``. Any body will do."""
    vendor = _read(body)
    # `ThrottlingException:http://internal.amazon.com/coral/…` in the header, `com.amazon…#ThrottlingException` within.
    name = error_type.partition(":")[0] or vendor.kind.rpartition("#")[2]
    return _classify(_MEANINGS.get(name.strip().lower(), _plain(status)), vendor, provider, status)


def stream_error(name: str, payload: bytes, provider: str) -> ProviderError:
    """The error of an exception within the stream. Its ``status`` is ``None``: the answer had begun with 200."""
    return _classify(_MEANINGS.get(name.lower(), 500), _read(payload), provider, None)


def _plain(status: int) -> int:
    return 500 if status == 424 else status  # "Failed Dependency": the model failed, not the request


def _read(body: bytes) -> _Body:
    try:
        return _BODY.decode(body)
    except (ValueError, RecursionError):
        return _Body()


def _classify(meaning: int, vendor: _Body, provider: str, status: int | None) -> ProviderError:
    match meaning:
        case 401 | 402 | 403:
            # The gateway's own credential: not the client's fault, and none of its business.
            return ProviderUnavailable(
                "The provider refused the gateway's own credential or account.", provider=provider, status=status
            )
        case 404:
            return ProviderRejected(
                "The provider does not know this model.",
                provider=provider,
                status=status,
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        case 408 | 504:
            return ProviderTimeout("The provider timed out.", provider=provider, status=status)
        case 429:
            return ProviderRateLimited("The provider's rate limit is reached.", provider=provider, status=status)
        case 503 | 529:
            return ProviderUnavailable(
                "The provider is overloaded.", provider=provider, status=status, code=ErrorCode.PROVIDER_OVERLOADED
            )
        case _ if 400 <= meaning < 500:
            text = _mask(vendor.message or vendor.capital)
            return ProviderRejected(
                text or "The provider rejected the request and gave no reason.", provider=provider, status=status
            )
        case _:
            return ProviderUnavailable("The provider is out of order.", provider=provider, status=status)


def _mask(text: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in text[:_SCAN_CHARS_MAX])
    for pattern, replacement in _MASKS:
        printable = pattern.sub(replacement, printable)
    return " ".join(printable.split())[:_MESSAGE_CHARS_MAX]
