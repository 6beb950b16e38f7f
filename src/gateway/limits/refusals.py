"""What a script's refusal means to the client: which limit of whose, and whether waiting helps."""

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    PermissionDenied,
    RequestError,
    ServiceUnavailable,
)
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.scripts import CapReply, ReserveReply

_UNITS = {Unit.REQUESTS: "requests", Unit.TOKENS: "tokens", Unit.MONEY: "budget"}


def refusal(reply: ReserveReply, allowances: Allowances, least: int) -> GatewayError:
    """Why ``reserve`` said no. ``least`` is the hold it was asked for, in µ$."""
    match reply.code:
        case -3 | -4 | -5 | -7:
            limit = allowances.at(reply.index)
            error = limit_error(limit, reply.retry_after_ms, is_hopeless=reply.code == -7)
            if isinstance(limit, Bucket) and reply.left:
                rate = limit.rate(reply.left[0])
                error.standing = (rate.limit, rate.left, rate.reset_s)
            return error
        case -1:
            return PermissionDenied(
                "The account of this credential does not exist here. Ask the operator to create it.",
                code=ErrorCode.PERMISSION_DENIED,
            )
        case -2 | -8:
            return CreditsExhausted(
                f"The account has ${max(reply.available, 0) / 1e6:.6f} available; this request needs at least "
                f"${least / 1e6:.6f} to start. Add credit and try again."
            )
        case -6:
            return PermissionDenied("The account is suspended.", code=ErrorCode.ACCOUNT_SUSPENDED)
        case -20:
            return ServiceUnavailable("The credit store is recovering; nothing was charged.", retry_after_s=2)
        case 3 | 4 | 5:
            return _repeated(reply)
        case code:
            raise AssertionError(f"reserve answered {code}")


def share_refusal(reply: CapReply, allowances: Allowances) -> GatewayError:
    """Why shared capacity said no."""
    return limit_error(allowances.at(reply.index), reply.retry_after_ms, is_hopeless=reply.code == -7)


def limit_error(limit: Window | Bucket | Slots, retry_after_ms: int, *, is_hopeless: bool) -> LimitExceeded:
    """A limit's refusal. Where the request is more than the limit could ever allow, waiting does not help."""
    scope = limit.name.partition(".")[0]
    match limit:
        case Slots():
            return LimitExceeded(
                f"This {scope} runs as many requests at once as it may: {limit.max}.",
                limit="streams",
                scope=scope,
                code=ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
                retry_after_s=1,
            )
        case Bucket():
            word = _UNITS[limit.unit]
            text = f"This {scope} may use {limit.limit} {word} in {limit.period_ms / 1000:g} s, {limit.burst} at once."
            code = ErrorCode.RATE_LIMIT_EXCEEDED
        case Window():
            word = _UNITS[limit.unit]
            amount = _usd(limit.limit) if limit.unit is Unit.MONEY else f"{limit.limit} {word}"
            text = f"This {scope} may use {amount} in {_span(limit)}; it is used up or held by running requests."
            code = ErrorCode.BUDGET_EXCEEDED if limit.unit is Unit.MONEY else ErrorCode.RATE_LIMIT_EXCEEDED
    if is_hopeless:
        text += " This request alone needs more than that."
    return LimitExceeded(
        text, limit=word, scope=scope, code=code, retry_after_s=None if is_hopeless else retry_after_ms / 1000
    )


def _usd(amount_microusd: int) -> str:
    """Dollars with cents, and with more places where there are any."""
    text = f"{amount_microusd / 1e6:.6f}".rstrip("0")
    whole, _, places = text.partition(".")
    return f"${whole}.{places:0<2}"


def label_of(limit: Window | Bucket | Slots) -> str:
    """A limit's scope and what it counts, such as ``key.tokens``: from a bounded set, for metrics and records."""
    unit = "streams" if isinstance(limit, Slots) else _UNITS[limit.unit]
    return f"{limit.name.partition('.')[0]}.{unit}"


def _span(window: Window) -> str:
    width, parts, following = window.bounds
    if following:
        return f"a calendar {window.name.rpartition('.')[2]}"
    span_s = width * parts // 1000
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if span_s >= 2 * seconds or span_s == seconds:
            return f"{span_s / seconds:g} {unit if span_s > seconds else unit[:-1]}"
    return f"{span_s} s"


def _repeated(reply: ReserveReply) -> RequestError:
    match reply.code:
        case 3:
            text, code = "A request with this Idempotency-Key is running.", ErrorCode.IDEMPOTENCY_IN_PROGRESS
        case 4:
            text = (
                f"A request with this Idempotency-Key has run and was charged ${reply.held / 1e6:.6f}. "
                "A stream is not kept, so it cannot be sent again; use a new key to ask anew."
            )
            code = ErrorCode.CONFLICT
        case _:
            text, code = "This Idempotency-Key was used for another request.", ErrorCode.IDEMPOTENCY_MISMATCH
    return RequestError(text, code=code, param="idempotency-key")
