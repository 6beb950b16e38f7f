"""What a running stream looks like while it flows: how fast it is, and whether it goes round in circles.

Plain arithmetic without I/O and without a clock: the time is passed in, in seconds of a monotonic clock. Nothing here
decides what happens to a stream; a ``Finding`` names the action that its rule asks for, and the caller takes it.
"""

import hashlib

import msgspec

from gateway.canonical.request import Request

# How far a stream may be ahead of its rate. Where it is slowed down, by a few seconds' worth, so that it flows evenly.
# Where it is judged, by a whole minute's: nothing is found as long as every minute keeps to the rate, however the
# tokens are spread over it.
_PACED_BURST_S = 5
_JUDGED_BURST_S = 60

# One wait is short enough to look smooth, and too short a one is not worth its timer: it is owed and waited for later.
_PAUSE_S_MAX = 0.25
_PAUSE_S_MIN = 0.005
# The rate of a stream that goes round in circles where none is given; about as fast as one reads.
_LOOP_TOKENS_PER_MINUTE = 600

# A loop is a tail of this many characters that says one thing at least so many times over and nothing else. Shorter
# tails have their honest uses: rulers, tables of zeros (28 × 28 is 2,400 characters), a line asked for twenty times.
_TAIL_CHARACTERS = 4096
_REPEATS_MIN = 12
_PERIOD_MAX = _TAIL_CHARACTERS // _REPEATS_MIN
_LOOK_EVERY_TOKENS = 128
# Where a period is looked for: the last characters must have been said before, one period earlier.
_PROBE_CHARACTERS = 32

_NS_PER_S = 1_000_000_000
_NS_PER_MINUTE = 60 * _NS_PER_S

_DIGEST_BYTES = 8


class FlowRules(msgspec.Struct, frozen=True):
    """What is looked for in a stream. An action is ``off``, ``pace``, ``warn``, ``downgrade`` or ``cut``.

    ``tokens_per_minute`` is positive, or ``None`` for any rate. A loop that is to be paced flows at that rate too, or
    at 600 tokens per minute where there is none.
    """

    tokens_per_minute: int | None = None
    rate_action: str = "off"
    loop_action: str = "off"


class Finding(msgspec.Struct, frozen=True):
    """Something a rule is about: ``kind`` is ``token_rate`` or ``loop``, ``detail`` a phrase for people."""

    kind: str
    action: str
    detail: str


class Flow:
    """One stream against its rules. Per read: ``forwarded``, then ``finding``, and ``pause_s`` before the write.

    The rate is a bucket in whole numbers. ``_full_at`` is the time at which it would be full again, in nanoseconds
    times tokens per minute; a token is worth a minute's nanoseconds, so nothing is ever rounded.
    """

    __slots__ = (
        "_allowance",
        "_burst",
        "_full_at",
        "_is_paced",
        "_look_at",
        "_loop",
        "_pieces",
        "_rate",
        "_rules",
        "_tail",
        "_tokens",
    )

    def __init__(self, rules: FlowRules, now: float) -> None:
        self._rules = rules
        self._tokens = 0
        self._look_at = _LOOK_EVERY_TOKENS
        self._pieces: list[str] | None = [] if rules.loop_action != "off" else None
        self._tail = ""
        self._loop: Finding | None = None
        rate = rules.tokens_per_minute if rules.rate_action != "off" else None
        self._set_rate(rate or 0, now)
        self._is_paced = rate is not None and rules.rate_action == "pace"
        # How far ahead the stream may be before that is a finding; None where no rate is judged, or it was already.
        self._allowance: int | None = None
        if rate is not None:
            self._allowance = rate * (_PACED_BURST_S if self._is_paced else _JUDGED_BURST_S) * _NS_PER_S

    def _set_rate(self, tokens_per_minute: int, now: float) -> None:
        self._rate = tokens_per_minute
        self._burst = tokens_per_minute * _PACED_BURST_S * _NS_PER_S
        self._full_at = self._at(now)

    def _at(self, now: float) -> int:
        return int(now * _NS_PER_S) * self._rate

    def forwarded(self, tokens: int, text: str, now: float) -> None:
        """So many tokens go to the client, and this is what they say."""
        if self._rate:
            at = int(now * _NS_PER_S) * self._rate
            full_at = self._full_at
            self._full_at = (full_at if full_at > at else at) + tokens * _NS_PER_MINUTE
        if self._pieces is not None:
            self._pieces.append(text)
            self._tokens += tokens or 1
            if self._tokens >= self._look_at:
                self._look(self._pieces, now)

    def pause_s(self, now: float) -> float:
        """How long the next write has to wait, a quarter of a second at most; ask again afterwards, until it is 0."""
        if not self._is_paced:
            return 0.0
        pause_s = (self._full_at - self._at(now) - self._burst) / (self._rate * _NS_PER_S)
        return min(pause_s, _PAUSE_S_MAX) if pause_s >= _PAUSE_S_MIN else 0.0

    def finding(self, now: float) -> Finding | None:
        """What was not reported before; each kind once in a stream."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            return loop
        if self._allowance is None or self._full_at - self._at(now) <= self._allowance:
            return None
        self._allowance = None
        detail = f"faster than {self._rules.tokens_per_minute} tokens per minute"
        return Finding("token_rate", self._rules.rate_action, detail)

    def _look(self, pieces: list[str], now: float) -> None:
        """Keep the tail, and see whether it goes round in circles; once it does, nobody looks again."""
        self._look_at = self._tokens + _LOOK_EVERY_TOKENS
        self._tail = (self._tail + "".join(pieces))[-_TAIL_CHARACTERS:]
        pieces.clear()
        period = _period(self._tail)
        if not period:
            return
        unit, action = self._tail[-period:], self._rules.loop_action
        self._loop = Finding("loop", action, f"{len(self._tail) // period} times in a row: {unit[:40]!r}")
        self._pieces, self._tail = None, ""
        if action == "pace" and not self._is_paced:
            self._is_paced = True
            self._set_rate(self._rules.tokens_per_minute or _LOOP_TOKENS_PER_MINUTE, now)


def _period(tail: str) -> int:
    """The length of what a whole tail repeats often enough, or 0."""
    if len(tail) < _TAIL_CHARACTERS:
        return 0
    probe, earliest = tail[-_PROBE_CHARACTERS:], len(tail) - _PROBE_CHARACTERS - _PERIOD_MAX
    end = len(tail) - 1
    while (found := tail.rfind(probe, earliest, end)) >= 0:
        period = len(tail) - _PROBE_CHARACTERS - found
        if tail[period] == tail[0] and tail.startswith(tail[period:]):
            return period
        end = found + _PROBE_CHARACTERS - 1
    return 0


def prompt_digest(request: Request) -> str:
    """A name of 16 hexadecimal characters for what a request says, whichever model it asks."""
    content = msgspec.json.encode((request.messages, request.tools))
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
