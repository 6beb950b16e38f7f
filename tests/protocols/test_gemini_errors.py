"""What Google refuses with, as our errors: whose fault it is, when to come back, and nothing of the gateway's own."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.gemini.errors import provider_error

CLIENT = GeminiClient()
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.4s"}


def envelope(code: int, status: str, message: str = "No.", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, **more}}


def decode(code: int, body: Any) -> ProviderError:
    return CLIENT.decode_error(code, body if isinstance(body, bytes) else json.dumps(body).encode(), "g")


@pytest.mark.parametrize(
    ("status", "name", "kind", "code"),
    [
        (400, "INVALID_ARGUMENT", ProviderRejected, ErrorCode.PROVIDER_REJECTED),
        (400, "FAILED_PRECONDITION", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
        (401, "UNAUTHENTICATED", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
        (403, "PERMISSION_DENIED", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
        (404, "NOT_FOUND", ProviderRejected, ErrorCode.MODEL_NOT_FOUND),
        (429, "RESOURCE_EXHAUSTED", ProviderRateLimited, ErrorCode.PROVIDER_RATE_LIMITED),
        (499, "CANCELLED", ProviderTimeout, ErrorCode.PROVIDER_TIMEOUT),
        (500, "INTERNAL", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
        (503, "UNAVAILABLE", ProviderUnavailable, ErrorCode.PROVIDER_OVERLOADED),
        (504, "DEADLINE_EXCEEDED", ProviderTimeout, ErrorCode.PROVIDER_TIMEOUT),
    ],
)
def test_statuses_are_understood_as_answers_and_within_streams(
    status: int, name: str, kind: type[ProviderError], code: ErrorCode
) -> None:
    body = envelope(status, name)
    for answer in (body, [body]):
        error = decode(status, answer)
        assert (type(error), error.code, error.status, error.provider) == (kind, code, status, "g")
    within = provider_error(None, body["error"], "g")
    assert (type(within), within.code, within.status) == (kind, code, None)
    named = provider_error(None, {"status": name}, "g")
    assert type(named) is kind


def test_the_vendors_words_are_passed_on_where_they_speak_about_the_request() -> None:
    error = decode(400, envelope(400, "INVALID_ARGUMENT", "Unknown name\n'foo'"))
    assert (error.message, error.vendor_code) == ("Unknown name 'foo'", "INVALID_ARGUMENT")
    assert "No." not in decode(500, envelope(500, "INTERNAL")).message


@pytest.mark.parametrize("reason", ["API_KEY_INVALID", "API_KEY_EXPIRED"])
def test_a_bad_key_is_the_gateways_fault_although_its_status_says_the_clients(reason: str) -> None:
    error = decode(400, envelope(400, "INVALID_ARGUMENT", "API key not valid.", details=[{"reason": reason}]))
    assert isinstance(error, ProviderUnavailable) and error.retryable and "key" not in error.message.lower()


def test_when_to_come_back_is_told() -> None:
    assert decode(429, envelope(429, "RESOURCE_EXHAUSTED", details=[{}, RETRY])).retry_after_s == 34.4
    assert decode(503, envelope(503, "UNAVAILABLE", details=[RETRY])).retry_after_s == 34.4


@pytest.mark.parametrize("delay", ["", "s", "-1s", "1e9s", "1m", 5, None, ["1s"]])
def test_a_delay_that_is_none_is_none(delay: Any) -> None:
    error = decode(429, envelope(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": delay}]))
    assert error.retry_after_s is None


def test_a_delay_is_bounded() -> None:
    error = decode(429, envelope(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "999999s"}]))
    assert error.retry_after_s == 3600


@pytest.mark.parametrize(
    "secret",
    [
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "ya29.a0AfH6SMBx",
        "https://console.cloud.google.com/x?project=acme-prod",
        "projects/acme-prod/locations/us-central1",
        "project:123456789",
        "bot@acme-prod.iam.gserviceaccount.com",
        "us-central1-aiplatform.googleapis.com",
    ],
)
def test_keys_projects_and_hosts_are_masked(secret: str) -> None:
    message = decode(400, envelope(400, "INVALID_ARGUMENT", f"Wrong: {secret} is bad")).message
    assert message.startswith("Wrong: ") and message.endswith(" is bad") and "***" in message
    for piece in ("acme", "AIza", "ya29", "123456", "aiplatform"):
        assert piece not in message


def test_a_message_is_bounded() -> None:
    assert len(decode(400, envelope(400, "INVALID_ARGUMENT", "x y " * 10_000)).message) <= 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"[1]",
        b"1",
        b'{"error":"text"}',
        b'{"error":{"details":[5]}}',
        b'{"error":{"details":5}}',
        b'{"error":{"details":[{"reason":[]}],"status":[],"code":[],"message":[]}}',
    ],
)
def test_any_body_will_do(body: bytes) -> None:
    assert isinstance(decode(400, body), ProviderRejected)
    assert isinstance(decode(502, body), ProviderUnavailable)


def test_an_error_without_a_status_is_a_failure_of_the_provider() -> None:
    for error in ("text", {}, {"code": "nonsense"}, 5):
        assert isinstance(provider_error(None, error, "g"), ProviderUnavailable)
