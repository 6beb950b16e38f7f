"""How a stream of Anthropic's can end, what may be told on the way, and how errors look before it begins."""

import json

import pytest

from gateway.canonical.errors import ErrorCode, GatewayError, ProviderUnavailable
from gateway.canonical.events import (
    MessageStart,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from gateway.protocols.wire import Allowance, Notice
from tests.protocols.anthropic_listener import (
    CUT,
    SERVER,
    USAGE,
    encoder,
    kinds,
    parsed,
    say,
)
from tests.protocols.anthropic_shapes import (
    closed,
)


class TestEndings:
    def test_a_cut_names_its_reason_beside_max_tokens(self) -> None:
        fresh = encoder()
        out = say(fresh, MessageStart("x", "m", 1), TextDelta("Hel")) + fresh.cut(CUT, USAGE)
        ending = parsed(out)[-2]
        assert ending["delta"]["stop_reason"] == "max_tokens"
        assert ending["x_gateway"] == {"outcome": "cut", "reason": CUT.reason, "message": CUT.message}
        assert ending["usage"]["output_tokens"] == 7

    def test_a_cut_before_the_first_event_is_a_message_of_nothing(self) -> None:
        assert kinds(encoder().cut(CUT, USAGE)) == ["message_start", "message_delta", "message_stop"]

    def test_a_whole_message_that_was_cut_says_so(self) -> None:
        whole = encoder(stream=False)
        say(whole, MessageStart("x", "m", 1), TextDelta("Hel"), ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"x'))
        message = json.loads(whole.cut(CUT, USAGE))
        assert (message["stop_reason"], message["x_gateway"]["reason"]) == ("max_tokens", CUT.reason)
        assert message["content"][1]["input"] == {"_raw": '{"x'}

    def test_the_digits_of_a_calls_input_stay(self) -> None:
        whole = encoder(stream=False)
        say(
            whole,
            ToolCallStart(0, "a", "f"),
            ToolCallDelta(0, '{"x":1.10, "y":12345678901234567890.5}'),
            ToolCallEnd(0),
        )
        assert b'"input":{"x":1.10, "y":12345678901234567890.5}' in whole.end(USAGE)

    def test_an_error_closes_text_but_not_a_call_and_nothing_follows(self) -> None:
        error = ProviderUnavailable("The provider is overloaded.", provider="p", code=ErrorCode.PROVIDER_OVERLOADED)
        fresh = encoder()
        say(fresh, MessageStart("x", "m", 1), TextDelta("Hel"))
        closing, failed = parsed(fresh.fail(error))
        assert closing == closed(0)
        assert failed == {
            "type": "error",
            "error": {
                "type": "overloaded_error",
                "message": "The provider is overloaded.",
                "details": {"error_code": "provider_overloaded"},
            },
            "request_id": "r1",
        }
        calling = encoder()
        say(calling, MessageStart("x", "m", 1), ToolCallStart(0, "a", "f"))
        assert kinds(calling.fail(error)) == ["error"]

    def test_the_heartbeat_is_a_ping(self) -> None:
        assert kinds(encoder().heartbeat) == ["ping"]
        assert encoder(stream=False).heartbeat == b""


class TestNotices:
    NOTICE = Notice(kind="budget", reason="budget_used", message="80% is used.", share=0.8)

    def test_a_notice_is_a_ping_with_more_in_it(self) -> None:
        (ping,) = parsed(encoder(notices=True).notice(self.NOTICE))
        assert ping == {"type": "ping", "x_gateway": self.NOTICE.fields}

    def test_nobody_gets_one_unasked(self) -> None:
        assert encoder().notice(self.NOTICE) == b""

    def test_a_whole_message_lists_them(self) -> None:
        whole = encoder(stream=False, notices=True)
        whole.notice(self.NOTICE)
        assert json.loads(whole.end(USAGE))["x_gateway"]["events"] == [self.NOTICE.fields]


class TestErrorsAndHeaders:
    @pytest.mark.parametrize(
        ("code", "status", "kind"),
        [
            (ErrorCode.INVALID_VALUE, 400, "invalid_request_error"),
            (ErrorCode.INVALID_API_KEY, 401, "authentication_error"),
            (ErrorCode.CREDITS_EXHAUSTED, 402, "billing_error"),
            (ErrorCode.MODEL_NOT_ALLOWED, 403, "permission_error"),
            (ErrorCode.MODEL_NOT_FOUND, 404, "not_found_error"),
            (ErrorCode.METHOD_NOT_ALLOWED, 405, "invalid_request_error"),
            (ErrorCode.IDEMPOTENCY_IN_PROGRESS, 409, "conflict_error"),
            (ErrorCode.REQUEST_TOO_LARGE, 413, "request_too_large"),
            (ErrorCode.RATE_LIMIT_EXCEEDED, 429, "rate_limit_error"),
            (ErrorCode.INTERNAL_ERROR, 500, "api_error"),
            (ErrorCode.PROVIDER_UNAVAILABLE, 502, "api_error"),
            (ErrorCode.DRAINING, 503, "overloaded_error"),
            (ErrorCode.PROVIDER_TIMEOUT, 504, "timeout_error"),
            (ErrorCode.PROVIDER_OVERLOADED, 529, "overloaded_error"),
        ],
    )
    def test_every_status_has_its_type(self, code: ErrorCode, status: int, kind: str) -> None:
        error = GatewayError("It went wrong.", code=code)
        error.request_id = "r7"
        reply = SERVER.encode_error(error)
        body = json.loads(reply.body)
        assert (reply.status, body["error"]["type"], body["request_id"]) == (status, kind, "r7")
        assert body["error"]["details"]["error_code"] == code.value
        assert (b"request-id", b"r7") in reply.headers

    def test_rate_limits_are_told_in_anthropics_headers(self) -> None:
        names = [name for name, _ in SERVER.rate_headers([Allowance("requests", 10, 9, 1.0)])]
        assert names[0] == b"anthropic-ratelimit-requests-limit"

    def test_a_stream_names_its_request(self) -> None:
        assert (b"request-id", b"r1") in encoder().headers
        assert (b"content-type", b"application/json") in encoder(stream=False).headers
