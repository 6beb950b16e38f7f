"""The billing matrix as a pure function: every ending against every way an exchange may have gone."""

import itertools

import pytest

from gateway.billing import Course, Owed, owed
from gateway.canonical.errors import ProviderUnavailable, StreamTruncated
from gateway.canonical.events import Frame, UsageReport
from gateway.canonical.usage import Usage
from gateway.conduct import RATE_LIMIT_EXCEEDED
from gateway.endings import (
    CLIENT_LEFT,
    CLIENT_STALLED,
    COMPLETE,
    REVOKED,
    STOPPED,
    Ending,
    Outcome,
    broke_error,
    cut_for,
    cut_off,
    failed,
)
from gateway.limits.reservation import Shortfall
from gateway.metering.meter import Bill, Meter
from gateway.metering.prices import Price, PriceSchedule
from gateway.metering.tokens import count_bytes
from gateway.protocols.wire import Cut
from gateway.providers.provider import Hangup

CANCEL = Hangup()
DRAIN = Hangup(policy="drain")
DRAIN_DELIVERED = Hangup(policy="drain", charge_delivered=True)
FREE = Hangup(policy="free")
HANGUPS = (CANCEL, DRAIN, DRAIN_DELIVERED, FREE)

FAILED = failed(ProviderUnavailable("Down.", provider="up"))
TRUNCATED = failed(StreamTruncated("Broken off.", provider="up"))
BROKE = failed(broke_error())
NO_CREDIT = cut_for(Shortfall.CREDITS_EXHAUSTED)[1]
RULE = cut_off(Cut(RATE_LIMIT_EXCEEDED, "Too fast."))
LEFT = (CLIENT_LEFT, CLIENT_STALLED)
ERRORS = (FAILED, TRUNCATED, BROKE)
CUTS = (NO_CREDIT, RULE, REVOKED)
ENDINGS = (COMPLETE, *LEFT, STOPPED, *ERRORS, *CUTS)

NOTHING = Bill(usage=Usage(), cost_microusd=0, estimated=False)
LEFT_WITH = Bill(usage=Usage(input=100, output=1), cost_microusd=110, estimated=True)
COUNTED = 100 + 4 * 10
REPORTED = 90 + 70 * 10


def meter() -> Meter:
    """Counted 100 tokens in and 4 out; the provider will have said 90 and 70."""
    running = Meter(PriceSchedule(Price(input=1_000_000, output=10_000_000)), count_bytes, 100)
    running.forwarded(4)
    return running


def reported() -> Meter:
    running = meter()
    running.weigh(Frame((UsageReport(Usage(input=90, output=70)),)))
    return running


def course(
    *,
    was_read: bool = True,
    is_shown: bool = True,
    is_whole: bool = False,
    hangup: Hangup = CANCEL,
    left_with: Bill | None = None,
) -> Course:
    return Course(was_read=was_read, is_shown=is_shown, is_whole=is_whole, hangup=hangup, left_with=left_with)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("hangup", HANGUPS)
def test_nothing_is_owed_while_no_provider_read_the_prompt(ending: Ending, hangup: Hangup) -> None:
    due = owed(ending, course(was_read=False, is_shown=False, hangup=hangup), meter())
    # A client that leaves has used its request; everybody else gets it back.
    assert due == Owed(NOTHING, refund=ending not in LEFT)


@pytest.mark.parametrize("ending", ERRORS)
@pytest.mark.parametrize("hangup", HANGUPS)
def test_an_error_before_anything_was_shown_costs_nothing_and_gives_the_request_back(
    ending: Ending, hangup: Hangup
) -> None:
    assert owed(ending, course(is_shown=False, hangup=hangup), reported()) == Owed(NOTHING, refund=True)


@pytest.mark.parametrize("ending", ERRORS)
@pytest.mark.parametrize("hangup", HANGUPS)
def test_an_error_after_something_was_shown_costs_what_was_forwarded(ending: Ending, hangup: Hangup) -> None:
    due = owed(ending, course(hangup=hangup), meter())
    if hangup.policy == "free":
        assert due == Owed(NOTHING, refund=False)
    else:
        assert (due.bill.cost_microusd, due.bill.estimated, due.refund) == (COUNTED, True, False)


def test_a_whole_answer_costs_the_providers_figure() -> None:
    due = owed(COMPLETE, course(is_whole=True), reported())
    assert due == Owed(Bill(usage=Usage(input=90, output=70), cost_microusd=REPORTED, estimated=False), refund=False)


def test_a_whole_answer_without_a_figure_costs_our_count() -> None:
    due = owed(COMPLETE, course(is_whole=True), meter())
    assert (due.bill.cost_microusd, due.bill.estimated) == (COUNTED, True)


@pytest.mark.parametrize("ending", LEFT)
@pytest.mark.parametrize("hangup", [CANCEL, DRAIN, DRAIN_DELIVERED])
def test_a_client_that_leaves_and_is_hung_up_for_owes_what_was_forwarded(ending: Ending, hangup: Hangup) -> None:
    due = owed(ending, course(hangup=hangup), meter())
    assert (due.bill.cost_microusd, due.bill.estimated, due.refund) == (COUNTED, True, False)


@pytest.mark.parametrize("ending", LEFT)
def test_a_client_that_leaves_before_the_first_token_owes_the_prompt(ending: Ending) -> None:
    running = Meter(PriceSchedule(Price(input=1_000_000, output=10_000_000)), count_bytes, 100)
    due = owed(ending, course(is_shown=False), running)
    assert (due.bill.cost_microusd, due.refund) == (100, False)


def test_a_drained_answer_costs_the_providers_figure_once_it_was_read_to_its_end() -> None:
    due = owed(CLIENT_LEFT, course(is_whole=True, hangup=DRAIN, left_with=LEFT_WITH), reported())
    assert (due.bill.cost_microusd, due.bill.estimated) == (REPORTED, False)


def test_a_drained_answer_costs_what_was_read_where_the_drain_came_to_no_end() -> None:
    due = owed(CLIENT_LEFT, course(hangup=DRAIN, left_with=LEFT_WITH), meter())
    assert (due.bill.cost_microusd, due.bill.estimated) == (COUNTED, True)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_drained_answer_costs_what_was_delivered_where_that_is_the_policy(is_whole: bool) -> None:
    due = owed(CLIENT_LEFT, course(is_whole=is_whole, hangup=DRAIN_DELIVERED, left_with=LEFT_WITH), reported())
    assert due == Owed(LEFT_WITH, refund=False)


@pytest.mark.parametrize("ending", [REVOKED, RULE, FAILED])
def test_whatever_ends_a_drain_the_client_owes_no_more_than_it_was_delivered(ending: Ending) -> None:
    due = owed(ending, course(hangup=DRAIN_DELIVERED, left_with=LEFT_WITH), meter())
    assert due == Owed(LEFT_WITH, refund=False)


@pytest.mark.parametrize("ending", LEFT)
@pytest.mark.parametrize("is_shown", [True, False])
def test_leaving_is_free_where_that_is_the_policy_but_the_request_is_used(ending: Ending, is_shown: bool) -> None:
    assert owed(ending, course(is_shown=is_shown, hangup=FREE), meter()) == Owed(NOTHING, refund=False)


@pytest.mark.parametrize("ending", [*CUTS, STOPPED])
@pytest.mark.parametrize("hangup", HANGUPS)
def test_what_the_gateway_ends_costs_what_was_forwarded(ending: Ending, hangup: Hangup) -> None:
    due = owed(ending, course(hangup=hangup), meter())
    assert (due.bill.cost_microusd, due.bill.estimated, due.refund) == (COUNTED, True, False)


@pytest.mark.parametrize("ending", CUTS)
def test_a_cut_before_the_first_token_costs_the_prompt(ending: Ending) -> None:
    running = Meter(PriceSchedule(Price(input=1_000_000, output=10_000_000)), count_bytes, 100)
    assert owed(ending, course(is_shown=False), running).bill.cost_microusd == 100


def test_a_late_report_does_not_make_a_stream_that_was_cut_a_whole_one() -> None:
    # The input is known for certain then; of the output, only what was forwarded is owed.
    due = owed(NO_CREDIT, course(), reported())
    assert (due.bill.usage, due.bill.estimated) == (Usage(input=90, output=4), True)


def test_every_cell_has_an_answer_and_only_what_cost_nothing_is_given_back() -> None:
    flags = (True, False)
    for ending, hangup, was_read, is_shown, is_whole, left_with in itertools.product(
        ENDINGS, HANGUPS, flags, flags, flags, (None, LEFT_WITH)
    ):
        if is_whole and ending.outcome not in (Outcome.COMPLETE, Outcome.CANCELLED):
            continue
        due = owed(
            ending,
            course(was_read=was_read, is_shown=is_shown, is_whole=is_whole, hangup=hangup, left_with=left_with),
            reported(),
        )
        assert due.bill.cost_microusd in (0, LEFT_WITH.cost_microusd, 90 + 4 * 10, REPORTED)
        assert not due.refund or due.bill.cost_microusd == 0
        assert not due.refund or ending not in LEFT
