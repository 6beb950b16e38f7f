"""What a refusal says: whose limit, how much it is, and whether waiting helps."""

import pytest

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    PermissionDenied,
    RequestError,
    ServiceUnavailable,
)
from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.refusals import refusal, share_refusal
from gateway.limits.scripts import CapReply, ReserveReply

DAY = (1_800_000_000_000, 1_800_086_400_000, 1_800_172_800_000)
LIMITS = Allowances(
    keys.limits_of("acme"),
    windows=[
        Window("account.budget.month", 5_000_000, DAY, Unit.MONEY),
        Window("key.0f0f.tokens.86400000", 1000, (1_440_000, 60, 0), Unit.TOKENS),
    ],
    buckets=[Bucket("user.0f0f.requests.60000", 7, 60_000, 3)],
    slots=[Slots("model.0f0f.streams", 4)],
)


def told(code: int, index: int = 0, retry_after_ms: int = 0, *, held: int = 0, available: int = 0) -> GatewayError:
    reply = ReserveReply(code, index, retry_after_ms, held, available, 0, 0, 0, [], [])
    return refusal(reply, LIMITS, 12)


@pytest.mark.parametrize(
    ("code", "index", "scope", "limit", "words"),
    [
        (-3, 1, "account", "budget", ["account", "$5.00", "a calendar month"]),
        (-3, 2, "key", "tokens", ["key", "1000 tokens", "day"]),
        (-4, 3, "user", "requests", ["user", "7 requests", "60 s", "3 at once"]),
    ],
)
def test_a_limit_is_named_with_whose_it_is_and_how_much(
    code: int, index: int, scope: str, limit: str, words: list[str]
) -> None:
    error = told(code, index, 2500)
    assert isinstance(error, LimitExceeded)
    assert (error.scope, error.limit, error.retry_after_s) == (scope, limit, 2.5)
    assert [word for word in words if word not in error.message] == []
    assert error.code is (ErrorCode.BUDGET_EXCEEDED if index == 1 else ErrorCode.RATE_LIMIT_EXCEEDED)
    assert error.code.http_status == 429
    assert "0f0f" not in error.message


@pytest.mark.parametrize("index", [1, 2, 3])
def test_what_could_never_fit_is_not_told_to_wait(index: int) -> None:
    error = told(-7, index)
    assert isinstance(error, LimitExceeded)
    assert error.retry_after_s is None
    assert "This request alone needs more" in error.message


def test_streams_at_once_are_counted() -> None:
    error = told(-5, 4)
    assert isinstance(error, LimitExceeded)
    assert error.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    assert (error.scope, error.limit, error.retry_after_s) == ("model", "streams", 1)
    assert "model" in error.message and "4" in error.message


@pytest.mark.parametrize("code", [-2, -8])
def test_credit_says_what_there_is_and_what_is_needed(code: int) -> None:
    error = told(code, available=5)
    assert isinstance(error, CreditsExhausted)
    assert "$0.000005" in error.message and "$0.000012" in error.message
    assert error.retry_after_s is None
    assert "$0.000000 available" in told(code, available=-3).message


@pytest.mark.parametrize(
    ("code", "kind", "error_code"),
    [
        (-1, PermissionDenied, ErrorCode.PERMISSION_DENIED),
        (-6, PermissionDenied, ErrorCode.ACCOUNT_SUSPENDED),
        (-20, ServiceUnavailable, ErrorCode.CREDIT_STORE_UNAVAILABLE),
        (3, RequestError, ErrorCode.IDEMPOTENCY_IN_PROGRESS),
        (4, RequestError, ErrorCode.CONFLICT),
        (5, RequestError, ErrorCode.IDEMPOTENCY_MISMATCH),
    ],
)
def test_every_other_no_has_its_own_error(code: int, kind: type[GatewayError], error_code: ErrorCode) -> None:
    error = told(code, held=70)
    assert isinstance(error, kind)
    assert error.code is error_code
    assert (error.retry_after_s is None) == (code != -20)


def test_a_request_that_has_run_says_what_it_was_charged() -> None:
    assert "$0.000070" in told(4, held=70).message


def test_an_answer_nobody_knows_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        told(1)


def test_shared_capacity_is_named_too() -> None:
    shared = Allowances(
        keys.capacity("model.x"),
        buckets=[Bucket("model.0f0f.tokens.60000", 1000, 60_000, 1000, Unit.TOKENS)],
        slots=[Slots("tier.streams", 2)],
    )
    rate = share_refusal(CapReply(-4, 1, 700, []), shared)
    assert isinstance(rate, LimitExceeded)
    assert (rate.scope, rate.limit, rate.retry_after_s) == ("model", "tokens", 0.7)
    streams = share_refusal(CapReply(-5, 2, 1000, []), shared)
    assert isinstance(streams, LimitExceeded)
    assert (streams.scope, streams.limit) == ("tier", "streams")
    assert share_refusal(CapReply(-7, 1, 0, []), shared).retry_after_s is None
