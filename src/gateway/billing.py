"""Who pays what when an exchange ends: the billing matrix, as one function. docs/billing.md tells it in words.

Nothing here does I/O; the exchange asks once, at its end.
"""

import msgspec

from gateway.canonical.usage import Usage
from gateway.endings import CLIENT_LEFT, CLIENT_STALLED, Ending, Outcome
from gateway.metering.meter import Bill, Meter
from gateway.providers.provider import Hangup

_NOTHING = Bill(usage=Usage(), cost_microusd=0, estimated=False)


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How far an exchange had come. ``was_read`` says that a provider had begun to work on the prompt.

    ``is_shown`` says that the client was sent some of the answer, and ``is_whole`` that the provider's answer was read
    to its end. ``left_with`` is the bill at the moment a client left whose answer was then drained.
    """

    was_read: bool
    is_shown: bool
    is_whole: bool
    hangup: Hangup
    left_with: Bill | None = None


class Owed(msgspec.Struct, frozen=True):
    """What the account owes, and whether the request itself is taken off its limits again."""

    bill: Bill
    refund: bool


def owed(ending: Ending, course: Course, meter: Meter) -> Owed:
    """What one exchange costs its account."""
    has_left = ending in (CLIENT_LEFT, CLIENT_STALLED)
    if not course.was_read:
        return Owed(_NOTHING, refund=not has_left)
    if ending.outcome in (Outcome.FAILED, Outcome.TRUNCATED) and not course.is_shown:
        return Owed(_NOTHING, refund=True)
    has_failed = ending.outcome in (Outcome.FAILED, Outcome.TRUNCATED)
    if (has_left or has_failed) and course.hangup.policy == "free":
        return Owed(_NOTHING, refund=False)
    if course.left_with is not None and course.hangup.charge_delivered:
        return Owed(course.left_with, refund=False)
    return Owed(meter.bill(complete=course.is_whole), refund=False)
