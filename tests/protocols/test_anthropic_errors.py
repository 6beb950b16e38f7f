"""Anthropic failing: a stream that breaks off or breaks its form, and answers that are errors."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Failure, Finish, TextDelta
from tests.protocols.anthropic_shapes import (
    CLIENT,
    EVERYTHING,
    EVERYTHING_BYTES,
    STOP,
    delta,
    ended,
    events_of,
    failure,
    finishes,
    hear,
    read,
    said,
    sse,
    start,
)


class TestAStreamThatFails:
    @pytest.mark.parametrize(
        ("kind", "error_class", "code"),
        [
            ("overloaded_error", ProviderUnavailable, ErrorCode.PROVIDER_OVERLOADED),
            ("api_error", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
            ("unheard_of_error", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
            ("rate_limit_error", ProviderRateLimited, ErrorCode.PROVIDER_RATE_LIMITED),
            ("timeout_error", ProviderTimeout, ErrorCode.PROVIDER_TIMEOUT),
            ("invalid_request_error", ProviderRejected, ErrorCode.PROVIDER_REJECTED),
            ("request_too_large", ProviderRejected, ErrorCode.PROVIDER_REJECTED),
            ("authentication_error", ProviderError, ErrorCode.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_an_error_event_becomes_its_error(
        self, kind: str, error_class: type[ProviderError], code: ErrorCode
    ) -> None:
        frames, is_done = read(sse(start()) + sse({"type": "error", "error": {"type": kind, "message": "Why."}}))
        error = failure(events_of(frames))
        assert type(error) is error_class
        assert (error.code, error.provider, error.status) == (code, "anthropic", None)
        assert frames[-1].raw is None
        assert not is_done

    @pytest.mark.parametrize("cut", range(len(EVERYTHING) - 2))
    def test_a_stream_cut_before_its_finish_is_truncated(self, cut: int) -> None:
        events = hear(*EVERYTHING[: cut + 1])
        assert type(failure(events)) is StreamTruncated
        assert sum(isinstance(event, Failure) for event in events) == 1

    @pytest.mark.parametrize("tail", [b"", b"data", b'event: ping\ndata: {"type":"pi', b"event: ping\r"])
    def test_half_an_event_at_the_end_is_truncation_too(self, tail: bytes) -> None:
        frames, _ = read(sse(start()) + tail)
        assert type(failure(events_of(frames))) is StreamTruncated

    def test_nothing_at_all_is_truncation(self) -> None:
        assert type(failure(hear())) is StreamTruncated

    def test_a_stream_cut_after_its_finish_is_whole(self) -> None:
        events = hear(start(), ended("end_turn", output_tokens=1))
        assert isinstance(events[-1], Finish)

    def test_a_last_event_without_its_blank_line_counts(self) -> None:
        frames, is_done = read(EVERYTHING_BYTES.removesuffix(b"\n\n"))
        assert is_done
        assert frames == read(EVERYTHING_BYTES)[0]

    @pytest.mark.parametrize(
        "broken",
        [
            b"{",
            b"null",
            b"[]",
            b'"text"',
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"type":5}',
            b'{"type":"message_start","message":5}',
            b'{"type":"message_start","message":{"content":[5]}}',
            b'{"type":"message_start","message":{"content":[{"type":"text","text":5}]}}',
            b'{"type":"content_block_start","index":0}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\ud800"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\xff"}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":-1}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":"5"}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1e300}}',
        ],
    )
    def test_a_broken_event_fails_after_what_came_before_it(self, broken: bytes) -> None:
        text = sse(delta(0, "text_delta", text="kept"))
        frames, _ = read(sse(start()) + text + b"data: " + broken + b"\n\n" + text)
        events = events_of(frames)
        assert type(failure(events)) is ProviderProtocolError
        assert said(events)[:-1] == [TextDelta("kept")]

    def test_an_event_that_never_ends_fails(self) -> None:
        decoder = CLIENT.decoder("anthropic")
        frames = [frame for _ in range(12) for frame in decoder.feed(b"x" * 1024 * 1024)]
        assert type(failure(events_of(frames))) is ProviderProtocolError
        assert decoder.end_of_bytes() == []

    def test_an_end_without_a_beginning_fails(self) -> None:
        assert type(failure(hear(STOP))) is ProviderProtocolError

    @given(st.lists(st.binary(max_size=200), max_size=8))
    def test_random_bytes_never_raise(self, chunks: list[bytes]) -> None:
        assert isinstance(events_of(read(*chunks)[0])[-1], Failure)

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_random_mutations_of_a_stream_never_raise(self, data: st.DataObject) -> None:
        stream = bytearray(EVERYTHING_BYTES)
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(stream) - 1))
            stream[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=12))
        cut = data.draw(st.integers(0, len(stream)))
        frames, is_done = read(bytes(stream[:cut]), bytes(stream[cut:]))
        events = events_of(frames)
        assert all(frame.events or frame.raw is not None for frame in frames)
        assert is_done or isinstance(events[-1], Failure) or finishes(events)

    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=6)
    )
    @settings(deadline=None)
    def test_any_value_in_the_place_of_any_field_never_raises(self, value: Any) -> None:
        for payload in EVERYTHING:
            for field, inner in dict[str, Any](payload).items():
                read(sse(start()) + b"data: " + json.dumps({**payload, field: value}).encode() + b"\n\n")
                for name in inner if isinstance(inner, dict) else ():
                    changed = {**payload, field: {**inner, name: value}}
                    read(sse(start()) + b"data: " + json.dumps(changed).encode() + b"\n\n")


class TestReadingAnError:
    @staticmethod
    def error(status: int, message: str = "prompt is too long", kind: str = "x") -> ProviderError:
        body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
        return CLIENT.decode_error(status, body, "anthropic")

    @pytest.mark.parametrize(
        ("status", "error_class", "retryable"),
        [
            (400, ProviderRejected, False),
            (404, ProviderRejected, False),
            (413, ProviderRejected, False),
            (422, ProviderRejected, False),
            (408, ProviderTimeout, True),
            (504, ProviderTimeout, True),
            (429, ProviderRateLimited, True),
            (500, ProviderUnavailable, True),
            (502, ProviderUnavailable, True),
            (503, ProviderUnavailable, True),
            (529, ProviderUnavailable, True),
            (302, ProviderProtocolError, True),
        ],
    )
    def test_the_status_decides(self, status: int, error_class: type[ProviderError], retryable: bool) -> None:
        error = self.error(status)
        assert type(error) is error_class
        assert (error.status, error.retryable, error.provider) == (status, retryable, "anthropic")

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_a_refused_credential_of_ours_is_not_the_clients_fault(self, status: int) -> None:
        error = self.error(status, "invalid x-api-key sk-ant-123")
        assert (type(error), error.code, error.retryable) == (ProviderError, ErrorCode.PROVIDER_UNAVAILABLE, True)
        assert "x-api-key" not in error.message

    def test_a_rejection_says_what_the_vendor_said(self) -> None:
        assert self.error(400, "prompt is too long: 9 > 8").message == "prompt is too long: 9 > 8"

    @pytest.mark.parametrize(
        "secret",
        [
            "sk-ant-api03-abc_DEF",
            "SK-proj-abc",
            "https://user:pw@api.anthropic.com/v1?key=1",
            "api.anthropic.com",
            "gpu-7.eu.internal:8443",
            "10.1.2.3:80",
            "Bearer abcdef",
            "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        ],
    )
    def test_a_rejection_leaks_no_key_host_or_account(self, secret: str) -> None:
        message = self.error(400, f"bad field ({secret}) in messages.0").message
        assert message.startswith("bad field (")
        assert "messages.0" in message
        assert not any(word in message for word in (secret, "anthropic", "internal", "abc", "10.1"))

    def test_a_rejection_is_one_bounded_line(self) -> None:
        assert self.error(400, "a\r\n\x1b[31mb\u2028c\u202e").message == "a [31mb c"
        assert len(self.error(400, "é" * 100_000).message) == 500

    @pytest.mark.parametrize("body", [b"", b"<html>nginx at 10.0.0.1</html>", b"[]", b'{"error":"text"}', b"\xff" * 9])
    def test_a_body_that_is_no_error_gets_a_message_of_ours(self, body: bytes) -> None:
        assert CLIENT.decode_error(400, body, "p").message == "The provider rejected the request and gave no reason."
        assert "nginx" not in CLIENT.decode_error(502, body, "p").message
