"""Rate limits as headers: the names, the durations of OpenAI and the times of Anthropic."""

import re

import pytest

from gateway.protocols.rates import anthropic_headers, openai_headers
from gateway.protocols.wire import Allowance

GO_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def reset(seconds: float) -> str:
    return dict(openai_headers([Allowance("requests", 10, 3, seconds)]))[b"x-ratelimit-reset-requests"].decode()


def in_seconds(text: str) -> float:
    found = GO_DURATION.fullmatch(text)
    assert found is not None and text, text
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def test_openais_names() -> None:
    headers = openai_headers([Allowance("requests", 600, 599, 0.1), Allowance("tokens", 90_000, 12, 59.992)])
    assert headers == (
        (b"x-ratelimit-limit-requests", b"600"),
        (b"x-ratelimit-remaining-requests", b"599"),
        (b"x-ratelimit-reset-requests", b"100ms"),
        (b"x-ratelimit-limit-tokens", b"90000"),
        (b"x-ratelimit-remaining-tokens", b"12"),
        (b"x-ratelimit-reset-tokens", b"59.992s"),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0121, "12ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (10, "10s"),
        (59.9996, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3599.7, "1h0m0s"),
        (3723, "1h2m3s"),
        (90_000, "25h0m0s"),
        (-1, "0ms"),
    ],
)
def test_openais_durations(seconds: float, text: str) -> None:
    assert reset(seconds) == text


def test_a_duration_says_what_it_was_made_of() -> None:
    for tenths in range(0, 80_000, 7):
        seconds = tenths / 10
        assert abs(in_seconds(reset(seconds)) - seconds) <= (0.5 if seconds >= 60 else 0.001)


def test_anthropics_names_and_times() -> None:
    now = 1_795_260_000.0
    headers = anthropic_headers([Allowance("requests", 50, 49, 1.2), Allowance("tokens", 1000, 0, 86_400)], now)
    assert headers == (
        (b"anthropic-ratelimit-requests-limit", b"50"),
        (b"anthropic-ratelimit-requests-remaining", b"49"),
        (b"anthropic-ratelimit-requests-reset", b"2026-11-21T11:20:02Z"),
        (b"anthropic-ratelimit-tokens-limit", b"1000"),
        (b"anthropic-ratelimit-tokens-remaining", b"0"),
        (b"anthropic-ratelimit-tokens-reset", b"2026-11-22T11:20:00Z"),
    )


def test_nothing_to_say_is_nothing_said() -> None:
    assert openai_headers([]) == anthropic_headers([]) == ()
