"""The meter: what a frame weighs, what comes next costs, and whose figure is believed in the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.metering.meter import Meter
from gateway.metering.prices import Price, PriceSchedule
from gateway.metering.tokens import count_bytes

SCHEDULE = PriceSchedule(
    Price(input=150_000, output=600_000, cache_read=75_000, request=1),
    ((1000, Price(input=300_000, output=1_200_000, cache_read=75_000)),),
)


def meter(input_tokens: int = 100) -> Meter:
    return Meter(SCHEDULE, count_bytes, input_tokens)


def told(running: Meter, **usage: int) -> None:
    assert running.weigh(Frame((UsageReport(Usage(**usage)),))) == 0


def say(running: Meter, *events: Event) -> None:
    running.forwarded(running.weigh(Frame(events)))


texts = st.text(max_size=30)
spoken: st.SearchStrategy[Event] = st.one_of(
    st.builds(TextDelta, texts),
    st.builds(ReasoningDelta, texts),
    st.builds(RefusalDelta, texts),
    st.builds(ToolCallStart, st.just(0), st.just("id"), texts),
    st.builds(ToolCallDelta, st.just(0), texts),
)


@pytest.mark.parametrize(
    ("event", "weight"),
    [
        (TextDelta("four"), 4),
        (ReasoningDelta("four"), 4),
        (RefusalDelta("four"), 4),
        (ToolCallStart(0, "a long id", "four"), 4),
        (ToolCallDelta(0, "four"), 4),
        (TextDelta(""), 0),
        (MessageStart("id", "model", 1), 0),
        (ReasoningEnd("signature"), 0),
        (ToolCallEnd(0), 0),
        (Finish(FinishReason(Unified.STOP)), 0),
    ],
)
def test_a_frame_weighs_what_the_model_said_in_it(event: Event, weight: int) -> None:
    assert meter().weigh(Frame((event,))) == weight
    assert meter().weigh(Frame((event, event))) == 2 * weight


@given(st.lists(st.lists(spoken, max_size=4), max_size=10))
def test_the_sum_of_the_weighings_is_the_output(frames: list[list[Event]]) -> None:
    running, weighed = meter(), 0
    for events in frames:
        tokens = running.weigh(Frame(tuple(events)))
        weighed += tokens
        running.forwarded(tokens)
    assert running.output == running.counted.output == weighed
    assert running.bill(complete=False).usage.output == weighed


@given(st.lists(spoken, max_size=12), st.data())
def test_the_bill_does_not_depend_on_how_events_are_framed(events: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events)))
    whole, halves = meter(), meter()
    say(whole, *events)
    say(halves, *events[:cut])
    say(halves, *events[cut:])
    assert whole.bill(complete=False) == halves.bill(complete=False)


@given(st.integers(0, 5000), st.lists(st.integers(0, 1000), max_size=20))
def test_the_cost_ahead_grows_with_tokens_and_ends_in_the_bill(input_tokens: int, steps: list[int]) -> None:
    running = meter(input_tokens)
    costs = [running.cost_with(0)]
    for tokens in steps:
        costs.append(running.cost_with(tokens))
        running.forwarded(tokens)
        assert running.cost_with(0) == costs[-1]
    assert costs == sorted(costs)
    assert running.bill(complete=False).cost_microusd == costs[-1]


def test_the_cost_is_rounded_once_and_not_per_frame() -> None:
    running = meter(0)
    for _ in range(10):
        say(running, TextDelta("x"))
    # Ten tokens at 0.6 µ$ and a request at 0.000001 µ$: 6.000001 µ$, not ten times one.
    assert running.bill(complete=False).cost_microusd == 7


def test_the_providers_figure_is_believed_where_the_stream_ran_to_its_end() -> None:
    running = meter()
    say(running, TextDelta("twelve bytes"))
    told(running, input=200, output=5, cache_read=120)
    bill = running.bill(complete=True)
    assert not bill.estimated
    assert bill.cost_microusd == -(-(1 + 80 * 150_000 + 120 * 75_000 + 5 * 600_000) // 10**6)
    cut = running.bill(complete=False)
    assert cut.estimated
    assert cut.usage == Usage(input=200, output=12, cache_read=120)


def test_a_later_report_replaces_an_earlier_one() -> None:
    running = meter()
    told(running, input=200, output=1)
    told(running, input=210, output=9)
    assert running.bill(complete=True).usage == Usage(input=210, output=9)


def test_the_providers_input_counts_as_soon_as_it_is_known() -> None:
    running = meter(10)
    told(running, input=2000, output=0)
    assert running.input == 2000
    assert running.cost_with(1) == -(-(2000 * 300_000 + 1_200_000) // 10**6)


def test_the_tier_follows_the_input() -> None:
    assert meter(999).cost_with(1) == -(-(1 + 999 * 150_000 + 600_000) // 10**6)
    assert meter(1000).cost_with(1) == -(-(1000 * 300_000 + 1_200_000) // 10**6)


@pytest.mark.parametrize(
    "usage",
    [
        {"input": -1, "output": 5},
        {"input": 10, "output": -5},
        {"input": 10, "output": 5, "cache_read": -1},
        {"input": 10, "output": 5, "cache_read": 6, "cache_write": 5},
        {"input": 10, "output": 5, "reasoning": 6},
        {"input": 20_000_001, "output": 5},
        {"input": 10, "output": 5_000_001},
    ],
)
def test_an_absurd_figure_is_not_believed(usage: dict[str, int]) -> None:
    running = meter()
    say(running, TextDelta("four"))
    told(running, **usage)
    bill = running.bill(complete=True)
    assert (bill.usage, bill.estimated) == (Usage(input=100, output=4), True)


@pytest.mark.parametrize("usage", [{"input": 0, "output": 3}, {"input": 90, "output": 0}, {}])
def test_a_figure_that_forgets_half_does_not_make_it_free(usage: dict[str, int]) -> None:
    running = meter()
    say(running, TextDelta("four"))
    told(running, **usage)
    bill = running.bill(complete=True)
    assert bill.estimated
    assert bill.usage == Usage(input=usage.get("input") or 100, output=4)


def test_an_answer_that_said_nothing_may_report_nothing() -> None:
    running = meter()
    told(running, input=90, output=0)
    bill = running.bill(complete=True)
    assert (bill.usage, bill.estimated) == (Usage(input=90, output=0), False)


def test_hidden_reasoning_is_charged_by_the_providers_figure() -> None:
    running = Meter(PriceSchedule(Price(input=0, output=1_000_000, reasoning=2_000_000)), count_bytes, 1)
    say(running, TextDelta("four"))
    told(running, input=1, output=304, reasoning=300)
    assert running.bill(complete=True).cost_microusd == 4 + 600


def test_reasoning_that_is_shown_is_counted_as_it_comes() -> None:
    running = meter(0)
    say(running, ReasoningDelta("four"), TextDelta("four"))
    assert running.tokens == running.output == 8


def test_pictures_cost_what_they_cost_whoever_counted_the_tokens() -> None:
    schedule = PriceSchedule(Price(input=1_000_000, output=1_000_000, image=5_000_000_000))
    running = Meter(schedule, count_bytes, 100, images=2)
    assert running.cost_with(0) == 100 + 10_000
    told(running, input=50, output=1)
    assert running.cost_with(1) == running.bill(complete=True).cost_microusd == 50 + 1 + 10_000


def test_input_that_went_into_the_providers_cache_costs_more_as_soon_as_it_is_known() -> None:
    running = Meter(
        PriceSchedule(Price(input=1_000_000, output=0, cache_read=100_000, cache_write=1_250_000)), len, 100
    )
    assert running.cost_with(0) == 100
    told(running, input=100, output=0, cache_write=40, cache_read=20)
    assert running.cost_with(0) == 40 + 50 + 2


def test_kinds_we_have_no_price_for_are_part_of_a_total_and_cost_what_it_costs() -> None:
    # Audio, rejected predictions: vendors count them in their totals. They are charged as output, never as nothing.
    running = meter(0)
    told(running, input=10, output=50, reasoning=0)
    assert running.bill(complete=True).cost_microusd == -(-(1 + 10 * 150_000 + 50 * 600_000) // 10**6)


@given(
    st.integers(0, 2000), st.integers(0, 2000), st.lists(st.integers(0, 300), max_size=10), st.booleans(), st.booleans()
)
def test_a_bill_is_one_of_two_figures_and_its_cost_follows_from_it(
    counted_input: int, reported_output: int, steps: list[int], is_complete: bool, has_report: bool
) -> None:
    running = meter(counted_input)
    for tokens in steps:
        running.forwarded(tokens)
    if has_report:
        told(running, input=counted_input + 1, output=reported_output)
    bill = running.bill(complete=is_complete)
    assert bill.usage.output == (running.output if bill.estimated else reported_output)
    assert bill.cost_microusd == -(-SCHEDULE.at(bill.usage.input).cost_picousd(bill.usage) // 10**6)
    if not is_complete or not has_report:
        assert bill.estimated
