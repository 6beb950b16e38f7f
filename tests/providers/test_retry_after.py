"""How long a provider asks to be left alone, in every form that vendors have for it."""

import email.utils
import time

import pytest
from multidict import CIMultiDict

from gateway.providers.retry_after import retry_after_s, used_up_s

FORMS: dict[str, tuple[dict[str, str], float | None]] = {
    "nothing": ({}, None),
    "seconds": ({"Retry-After": "7"}, 7),
    "a fraction": ({"retry-after": "1.5"}, 1.5),
    "nought": ({"retry-after": "0"}, 0),
    "negative": ({"retry-after": "-3"}, None),
    "not a number": ({"retry-after": "nan"}, None),
    "endless": ({"retry-after": "inf"}, None),
    "beyond an hour": ({"retry-after": "86400"}, 3600),
    "words": ({"retry-after": "soon"}, None),
    "a date gone by": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
    "a date that is none": ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
    "milliseconds": ({"retry-after-ms": "6500", "retry-after": "600"}, 6.5),
    "milliseconds that are none": ({"retry-after-ms": "x", "retry-after": "6"}, 6),
    "a duration": ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3600),
    "minutes": ({"X-RateLimit-Reset-Tokens": "6m0s"}, 360),
    "a short duration": ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
    "a bare number": ({"x-ratelimit-reset-requests": "12"}, 12),
    "no duration": ({"x-ratelimit-reset-requests": "a while"}, None),
    "the one that is used up": (
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s", "x-ratelimit-reset-tokens": "1s"},
        9,
    ),
    "two that are used up": (
        {
            **{"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s"},
            **{"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s"},
        },
        30,
    ),
    "requests that are left": (
        {"x-ratelimit-remaining-requests": "99", "x-ratelimit-reset-requests": "6ms"},
        None,
    ),
    "tokens of which too few are left": (
        {"x-ratelimit-remaining-tokens": "40", "x-ratelimit-reset-tokens": "11s"},
        11,
    ),
    "retry-after before resets": ({"retry-after": "3", "x-ratelimit-reset-tokens": "11s"}, 3),
}


@pytest.mark.parametrize(("headers", "wait_s"), FORMS.values(), ids=FORMS.keys())
def test_each_form_is_read(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(CIMultiDict(headers), is_limit=True) == wait_s


def test_a_date_is_a_time_from_now() -> None:
    at = email.utils.formatdate(time.time() + 100, usegmt=True)
    found = retry_after_s(CIMultiDict({"retry-after": at}), is_limit=False)
    assert found is not None and 0 < found <= 100


def test_resets_say_nothing_of_other_errors() -> None:
    headers = CIMultiDict({"x-ratelimit-reset-tokens": "11s"})
    assert retry_after_s(headers, is_limit=False) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "8s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "8s"}, 8),
        (
            {
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            360,
        ),
        ({"x-ratelimit-remaining-requests": "0"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "90h"}, 3600),
    ],
)
def test_an_answer_says_that_nothing_is_left_and_until_when(headers: dict[str, str], expected: float | None) -> None:
    assert used_up_s(headers) == expected
