"""How an exchange can end, in the words that records, metrics and clients are told."""

from enum import StrEnum

import msgspec

from gateway.canonical.errors import GatewayError, StreamTruncated
from gateway.limits.reservation import Shortfall
from gateway.protocols.wire import Cut


class Outcome(StrEnum):
    """An ending in one word."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"
    CUT = "cut"
    FAILED = "failed"


class Ending(msgspec.Struct, frozen=True):
    """How an exchange ended; ``error`` or ``cut`` is what the client is told, where there is something left to tell."""

    outcome: Outcome
    reason: str = ""
    error: GatewayError | None = None
    cut: Cut | None = None


COMPLETE = Ending(Outcome.COMPLETE)
CLIENT_LEFT = Ending(Outcome.CANCELLED, "client_left")
CLIENT_STALLED = Ending(Outcome.CANCELLED, "client_stalled")
STOPPED = Ending(Outcome.CANCELLED, "gateway_stopped")
REVOKED = Ending(
    Outcome.CUT,
    "access_revoked",
    cut=Cut("access_revoked", "The account was suspended or the key revoked; the answer ends here."),
)
STOPPED_BY_CALLER = Ending(Outcome.CANCELLED, "stopped", cut=Cut("stopped", "The answer was stopped."))

_SHORTFALL_MESSAGES = {
    Shortfall.CREDITS_EXHAUSTED: "The account's credit is used up; the answer ends here.",
    Shortfall.BUDGET_EXCEEDED: "The budget is used up; the answer ends here.",
    Shortfall.CREDIT_STORE_UNAVAILABLE: "Credit cannot be checked at the moment; the answer ends here.",
    Shortfall.ACCOUNT_SUSPENDED: "The account was suspended; the answer ends here.",
    Shortfall.LEASE_LOST: "The gateway lost its hold on the account's credit; the answer ends here.",
}


def failed(error: GatewayError) -> Ending:
    """The ending of an exchange that an error stopped."""
    outcome = Outcome.TRUNCATED if isinstance(error, StreamTruncated) else Outcome.FAILED
    return Ending(outcome, error.code.value, error)


def broke_error() -> GatewayError:
    """What a client is told of a bug."""
    return GatewayError("The gateway failed. The request id helps its operator to find out why.")


def cut_for(shortfall: Shortfall) -> tuple[Cut, Ending]:
    """What a stream that cannot be paid for any longer says, and its ending."""
    return Cut(shortfall.value, _SHORTFALL_MESSAGES[shortfall]), Ending(Outcome.CUT, shortfall.value)


def cut_off(cut: Cut) -> Ending:
    """The ending of a stream that a rule stopped."""
    return Ending(Outcome.CUT, cut.reason)
