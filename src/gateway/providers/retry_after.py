"""How long a provider asks to be left alone, in each of the forms that vendors have for it.

The most exact form counts: ``retry-after-ms``, then ``Retry-After`` in seconds or as a date. A vendor that says neither
may say when its rate limits are whole again, as OpenAI and those who copy it do in durations like ``6m0s``.
"""

import email.utils
import math
import re
import time
from collections.abc import Mapping

_WAIT_S_MAX = 3600.0
_LEFT, _RESET = "x-ratelimit-remaining-", "x-ratelimit-reset-"
_LIMITS = ("requests", "tokens")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_AMOUNT = r"(\d{1,9}(?:\.\d{1,9})?)"
_TERM = re.compile(rf"{_AMOUNT}(ms|us|µs|ns|h|m|s)")
_DURATION = re.compile(rf"(?:{_AMOUNT}(?:ms|us|µs|ns|h|m|s))+")


def retry_after_s(headers: Mapping[str, str], *, is_limit: bool) -> float | None:
    """Seconds from now, an hour at most; ``None`` where the answer names no time in the future.

    ``headers`` do not care for the case of their names. ``is_limit`` says that the answer is about a rate limit.
    """
    waits = (_of_ms(headers.get("retry-after-ms")), _of_either(headers.get("retry-after")))
    wait_s = next((wait_s for wait_s in waits if wait_s is not None), None)
    if wait_s is None and is_limit:
        wait_s = _of_resets(headers)
    return None if wait_s is None else min(wait_s, _WAIT_S_MAX)


def used_up_s(headers: Mapping[str, str]) -> float | None:
    """How long it takes until more may be asked, where an answer that came says that nothing is left."""
    for limit in _LIMITS:
        if headers.get(_LEFT + limit) == "0" and (wait_s := _duration_s(headers.get(_RESET + limit, ""))):
            return min(wait_s, _WAIT_S_MAX)
    return None


def _of_ms(value: str | None) -> float | None:
    milliseconds = _number(value)
    return None if milliseconds is None else milliseconds / 1000


def _of_either(value: str | None) -> float | None:
    if value is None:
        return None
    seconds = _number(value)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if seconds >= 0 else None


def _of_resets(headers: Mapping[str, str]) -> float | None:
    """The longest of the limits that are used up; else the soonest of those that may be too small for a request."""
    resets = {name.lower().removeprefix(_RESET): value for name, value in headers.items() if _is_reset(name)}
    waits = {limit: wait_s for limit, value in resets.items() if (wait_s := _duration_s(value)) is not None}
    left = {limit: _number(headers.get(_LEFT + limit)) for limit in waits}
    used_up = [wait_s for limit, wait_s in waits.items() if left[limit] == 0]
    if used_up:
        return max(used_up)
    # Too few tokens for this request may be left, or nothing may be said of it; requests that are left are enough.
    return min((wait_s for limit, wait_s in waits.items() if left[limit] is None or "tokens" in limit), default=None)


def _is_reset(name: str) -> bool:
    return name.lower().startswith(_RESET)


def _duration_s(value: str) -> float | None:
    """A duration as Go writes it, ``1h2m3.5s``, or a bare number of seconds."""
    if _DURATION.fullmatch(value) is None:
        return _number(value)
    return sum(float(amount) * _UNIT_S[unit] for amount, unit in _TERM.findall(value))


def _number(value: str | None) -> float | None:
    """A number that is neither negative nor endless."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number and math.isfinite(number) else None
