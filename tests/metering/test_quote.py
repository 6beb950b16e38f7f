"""The quote: what is held before a call, and the bound that goes to the provider so that the hold is enough."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.usage import Usage
from gateway.metering.prices import FREE, Price, PriceSchedule, microusd
from gateway.metering.quote import Quote, Terms, Wanted, bound, quote

# 1 µ$ per input token and 10 µ$ per output token.
SCHEDULE = PriceSchedule(Price(input=1_000_000, output=10_000_000))
SLICE = Terms(price=SCHEDULE)
FULL = Terms(price=SCHEDULE, is_held_full=True)
PLENTY = 10**12


def wanted(tokens: int = 100, output: int | None = None, **more: Any) -> Wanted:
    return Wanted(input=tokens, output=output, **more)


@st.composite
def schedules(draw: st.DrawFn) -> PriceSchedule:
    rates = st.integers(0, 200_000_000)
    optional = st.none() | rates

    def price() -> Price:
        return Price(
            input=draw(rates),
            output=draw(rates),
            cache_read=draw(optional),
            cache_write=draw(optional),
            reasoning=draw(optional),
            image=draw(st.sampled_from((0, 5_000_000_000))),
            request=draw(st.sampled_from((0, 12_000_000_000))),
        )

    return PriceSchedule(price(), ((1000, price()),) if draw(st.booleans()) else ())


@st.composite
def requests(draw: st.DrawFn) -> Wanted:
    return Wanted(
        input=draw(st.integers(0, 5000)),
        output=draw(st.none() | st.integers(1, 200_000)),
        choices=draw(st.integers(1, 8)),
        images=draw(st.integers(0, 3)),
        marks_cache=draw(st.booleans()),
    )


class TestHeldBeforeTheCall:
    def test_a_metered_stream_starts_with_its_input_and_one_token_and_would_like_a_slice(self) -> None:
        assert quote(wanted(), [SLICE]) == Quote(least=110, most=4100, is_full=False, tokens=500)

    @pytest.mark.parametrize(("output", "most"), [(5, 150), (400, 4100), (401, 4100), (100_000, 4100)])
    def test_a_slice_is_no_longer_than_the_answer_may_be(self, output: int, most: int) -> None:
        assert quote(wanted(output=output), [SLICE]).most == most

    @pytest.mark.parametrize(
        ("output", "output_tokens_max", "longest"),
        [
            (None, None, 32_000),
            (None, 64_000, 64_000),
            (None, 100, 100),
            (1000, None, 1000),
            (1000, 500, 500),
            (1000, 64_000, 1000),
            (50_000, None, 50_000),
        ],
    )
    def test_a_full_hold_pays_the_longest_answer_there_can_be(
        self, output: int | None, output_tokens_max: int | None, longest: int
    ) -> None:
        terms = Terms(price=SCHEDULE, is_held_full=True, output_tokens_max=output_tokens_max)
        made = quote(wanted(output=output), [terms])
        assert made.is_full
        assert made.most == 100 + longest * 10
        assert made.least == 100 + min(longest, 256) * 10

    def test_every_choice_is_held(self) -> None:
        assert quote(wanted(choices=3), [SLICE]).least == 100 + 3 * 10
        assert quote(wanted(choices=3), [FULL]).most == 100 + 3 * 32_000 * 10

    def test_whichever_target_answers_its_price_is_held(self) -> None:
        dear_input = Terms(price=PriceSchedule(Price(input=50_000_000, output=1_000_000)))
        made = quote(wanted(), [SLICE, dear_input])
        assert made.least == 100 * 50 + 1
        assert made.most == 100 * 50 + 400
        assert quote(wanted(), [SLICE, FULL]) == quote(wanted(), [FULL, SLICE]) == quote(wanted(), [FULL])

    def test_a_long_prompt_is_held_at_the_price_of_long_prompts(self) -> None:
        long = PriceSchedule(SCHEDULE.base, ((1000, Price(input=2_000_000, output=20_000_000)),))
        assert quote(wanted(999), [Terms(price=long)]).least == 999 + 10
        assert quote(wanted(1000), [Terms(price=long)]).least == 2000 + 20

    def test_pictures_and_the_request_itself_are_held(self) -> None:
        price = Price(input=1_000_000, output=10_000_000, image=5_000_000_000, request=12_000_000_000)
        assert quote(wanted(images=2), [Terms(price=PriceSchedule(price))]).least == 100 + 10 + 2 * 5000 + 12_000

    def test_input_that_a_provider_may_keep_is_held_at_what_keeping_costs(self) -> None:
        terms = Terms(price=PriceSchedule(Price(input=1_000_000, output=10_000_000, cache_write=1_250_000)))
        assert quote(wanted(), [terms]).least == 110
        assert quote(wanted(marks_cache=True), [terms]).least == 125 + 10

    def test_reasoning_that_costs_more_than_words_is_held(self) -> None:
        terms = Terms(
            price=PriceSchedule(Price(input=0, output=10_000_000, reasoning=30_000_000)),
            is_held_full=True,
            output_tokens_max=100,
        )
        assert quote(wanted(), [terms]).most == 100 * 30

    def test_token_limits_are_charged_with_a_slice_at_first(self) -> None:
        assert quote(wanted(choices=2), [FULL]).tokens == 100 + 2 * 400
        assert quote(wanted(output=5), [SLICE]).tokens == 105

    @given(requests(), st.lists(schedules(), min_size=1, max_size=3), st.booleans())
    def test_no_quote_wants_more_to_start_than_to_go_on(
        self, asked: Wanted, prices: list[PriceSchedule], is_full: bool
    ) -> None:
        made = quote(asked, [Terms(price=price, is_held_full=is_full) for price in prices])
        assert 0 <= made.least <= made.most


class TestBound:
    @pytest.mark.parametrize(
        ("output", "payable", "sent"),
        [
            (1000, 100 + 10_000, None),  # exactly enough for what the client named
            (1000, 100 + 9_999, 999),
            (1000, 100 + 10, 1),
            (1000, PLENTY, None),
            (None, 100 + 40_960, 4096),
            (None, 100 + 40_970, None),  # more than some models take: a bound might be refused
            (None, 100 + 30, 3),
            (None, 0, 1),
        ],
    )
    def test_it_is_what_the_account_could_pay(self, output: int | None, payable: int, sent: int | None) -> None:
        assert bound(wanted(output=output), SLICE, payable, None) == sent

    @pytest.mark.parametrize(
        ("output", "held", "sent"),
        [
            (None, 100 + 320_000, 32_000),
            (None, PLENTY, 32_000),
            (None, 100 + 50_000, 5000),
            (20_000, PLENTY, None),
            (20_000, 100 + 50_000, 5000),
            (100_000, PLENTY, None),
        ],
    )
    def test_a_full_hold_always_tells_the_provider_what_it_pays(
        self, output: int | None, held: int, sent: int | None
    ) -> None:
        assert bound(wanted(output=output), FULL, held, None) == sent

    def test_the_operators_bound_is_sent_where_the_answer_is_held_in_full(self) -> None:
        terms = Terms(price=SCHEDULE, is_held_full=True, output_tokens_max=64_000)
        assert bound(wanted(), terms, PLENTY, None) == 64_000
        assert bound(wanted(output=100_000), terms, PLENTY, None) == 64_000
        assert bound(wanted(), Terms(price=SCHEDULE, output_tokens_max=64_000), PLENTY, None) is None

    def test_a_bound_below_the_operators_is_known_to_be_taken(self) -> None:
        terms = Terms(price=SCHEDULE, output_tokens_max=64_000)
        assert bound(wanted(), terms, 100 + 500_000, None) == 50_000

    def test_choices_share_what_can_be_paid(self) -> None:
        assert bound(wanted(choices=4), SLICE, 100 + 4000, None) == 100
        assert bound(wanted(choices=4, output=100), SLICE, 100 + 4000, None) is None
        assert bound(wanted(choices=4, output=101), SLICE, 100 + 4000, None) == 100

    def test_the_tiers_tokens_per_request_leave_room_for_the_input(self) -> None:
        assert bound(wanted(), SLICE, PLENTY, 600) == 500
        assert bound(wanted(choices=2), SLICE, PLENTY, 600) == 250
        assert bound(wanted(output=200), SLICE, PLENTY, 600) is None
        assert bound(wanted(), FULL, PLENTY, 600) == 500
        assert bound(wanted(), SLICE, 100 + 40, 600) == 4
        assert bound(wanted(), SLICE, PLENTY, 100) == 1

    def test_what_is_free_is_not_bounded(self) -> None:
        for is_full in (False, True):
            free = Terms(price=FREE, is_held_full=is_full)
            assert bound(wanted(), free, 0, None) is None
            assert bound(wanted(), free, 0, 600) == 500
            assert bound(wanted(), free, 0, 50_000) is None

    @given(requests(), schedules(), st.integers(0, 10**9), st.integers(0, 10**6))
    def test_no_answer_within_the_bound_costs_more_than_its_full_hold(
        self, asked: Wanted, price: PriceSchedule, room: int, reasoned: int
    ) -> None:
        terms = Terms(price=price, is_held_full=True)
        made = quote(asked, [terms])
        held = min(made.most, made.least + room)
        sent = bound(asked, terms, held, None)
        longest = asked.output if sent is None else sent
        if longest is None:
            assert price.at(asked.input).dearest_output == 0
            return
        at = price.at(asked.input)
        output = longest * asked.choices
        usage = Usage(input=asked.input, output=output, reasoning=min(reasoned, output))
        assert microusd(at.cost_picousd(usage) + asked.images * at.image) <= held
