"""What a running stream is held to beside its credit: the tier's rules, and being told how far its budget is used.

It only decides; the exchange writes, waits and ends. Nothing here is asked where a tier has no such rules.
"""

from collections.abc import Callable, Iterable

import msgspec

from gateway.canonical.events import Frame, ReasoningDelta, RefusalDelta, TextDelta
from gateway.limits.allowances import Unit
from gateway.limits.reservation import Reservation
from gateway.limits.tiers import Tier
from gateway.metering.flow import Finding, Flow, FlowRules
from gateway.protocols.wire import Cut, Notice

_NEVER_AGAIN = 1_000_000
# One wait is short, since the client may leave meanwhile and the clock has to be looked at; too short is no wait.
_DEBT_PAUSE_S_MAX = 0.25
_DEBT_PAUSE_S_MIN = 0.005

RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
ABUSE_DETECTED = "abuse_detected"
TOKEN_LIMIT = "tokens_per_request_exceeded"


class Verdict(msgspec.Struct, frozen=True):
    """What follows from the rules: things to tell the client, and why the stream has to end, where it has to."""

    notices: tuple[Notice, ...] = ()
    cut: Cut | None = None


_NOTHING = Verdict()


class Conduct:
    """One stream and its tier's rules."""

    __slots__ = (
        "_debt_until",
        "_downgrade",
        "_flow",
        "_has_debt_notice",
        "_reads",
        "_reservation",
        "_tier",
        "_tokens_max",
        "found",
        "is_waived",
    )

    def __init__(self, tier: Tier, reservation: Reservation, now: float, downgrade: Callable[[], None]) -> None:
        """``downgrade`` is called where a rule wants the account's next turns on a cheaper model."""
        flow = tier.flow
        self._tier = tier
        self._reservation = reservation
        self._downgrade = downgrade
        self._reads = flow.loop_action != "off"
        self._flow: Flow | None = None
        if self._reads or flow.tokens_per_minute is not None:
            self._flow = Flow(FlowRules(flow.tokens_per_minute, flow.rate_action, flow.loop_action), now)
        self._tokens_max = tier.tokens_per_request
        self._has_debt_notice = False
        self._debt_until = 0.0
        self.found = ""
        # Nobody reads the answer any more: it is read to its end for the bill alone.
        self.is_waived = False

    @property
    def is_needed(self) -> bool:
        """Whether there is any rule to look at."""
        return self._flow is not None or self._tokens_max is not None or any_token_limit(self._reservation)

    def judge(self, frames: Iterable[Frame], tokens: int, total: int, now: float) -> Verdict:
        """After ``tokens`` were forwarded in these frames, ``total`` with the input."""
        if self._tokens_max is not None and total >= self._tokens_max:
            return Verdict(cut=tokens_cut(self._tokens_max))
        verdict = self._judge_debt(now) if self._reservation.debt_ms else _NOTHING
        flow = self._flow
        if flow is None or verdict.cut is not None:
            return verdict
        flow.forwarded(tokens, _text(frames) if self._reads else "", now)
        finding = flow.finding(now)
        return verdict if finding is None else self._judge(finding, verdict.notices)

    def _judge_debt(self, now: float) -> Verdict:
        """The account's own token limit went into debt while this stream ran; each debt is looked at once."""
        action = self._tier.flow.rate_action
        debt_ms, self._reservation.debt_ms = self._reservation.debt_ms, 0
        if action == "pace":
            self._debt_until = now + debt_ms / 1000
        if action == "pace" or self._has_debt_notice:
            return _NOTHING
        self._has_debt_notice = True
        return self._judge(Finding("token_rate", action, "more tokens than the account's limit allows"), ())

    def _judge(self, finding: Finding, notices: tuple[Notice, ...]) -> Verdict:
        is_loop = finding.kind == "loop"
        self.found = finding.kind
        reason = ABUSE_DETECTED if is_loop else RATE_LIMIT_EXCEEDED
        if finding.action == "cut":
            return Verdict(notices, Cut(reason, f"The answer was ended: {finding.detail}."))
        if finding.action == "downgrade":
            self._downgrade()
            text = f"The next answers come from a cheaper model: {finding.detail}."
            return Verdict((*notices, Notice(kind="downgrade", reason=reason, message=text)))
        if finding.action == "warn":
            return Verdict((*notices, Notice(kind="warning", reason=reason, message=f"Take care: {finding.detail}.")))
        return Verdict(notices)

    def pause_s(self, now: float) -> float:
        """How long the next write waits for a rate or a debt; ask again afterwards, until it is 0."""
        paced_s = self._flow.pause_s(now) if self._flow is not None else 0.0
        debt_s = self._debt_until - now
        return max(paced_s, min(debt_s, _DEBT_PAUSE_S_MAX) if debt_s >= _DEBT_PAUSE_S_MIN else 0.0)


def tokens_cut(tokens_max: int) -> Cut:
    """The end of an answer that has as many tokens as its tier allows."""
    return Cut(TOKEN_LIMIT, f"A request and its answer may have {tokens_max} tokens; the answer ends here.")


def any_token_limit(reservation: Reservation) -> bool:
    """Whether a token bucket of the account may go into debt while the stream runs."""
    return any(bucket.unit is Unit.TOKENS for bucket in reservation.stream.allowances.buckets)


def budget_notice(permille: int, name: str) -> tuple[Notice, int]:
    """What to say of a balance (``name`` empty) or of a budget's use so far, and from where on to say more."""
    share, then = (0.95, _NEVER_AGAIN) if permille >= 950 else (0.8, 950)
    scope = name.partition(".")[0]  # what follows is for Redis: digests and widths
    whose = f"this {scope}'s budget" if scope else "the account's credit"
    text = f"{share:.0%} of {whose} is used or held."
    limit = f"{scope}.budget" if scope else None
    return Notice(kind="budget", reason="budget_used", message=text, share=share, limit=limit), then


def _text(frames: Iterable[Frame]) -> str:
    return "".join(
        event.text
        for frame in frames
        for event in frame.events
        if isinstance(event, TextDelta | ReasoningDelta | RefusalDelta)
    )
