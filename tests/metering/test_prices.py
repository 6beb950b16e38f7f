"""Money is exact: integers from the price list to the balance, and one rounding per stream."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.usage import Usage
from gateway.metering.prices import (
    FREE,
    Price,
    PriceBook,
    PriceSchedule,
    microusd,
    microusd_of,
    picousd,
    picousd_per_token,
    usd_string,
)

rates = st.integers(0, 10**9)
tokens = st.integers(0, 10**7)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    optional = st.none() | rates
    return Price(
        input=draw(rates),
        output=draw(rates),
        cache_read=draw(optional),
        cache_write=draw(optional),
        reasoning=draw(optional),
        request=draw(rates),
    )


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cache_read, cache_write, reasoning = draw(tokens), draw(tokens), draw(tokens)
    return Usage(
        input=cache_read + cache_write + draw(tokens),
        output=reasoning + draw(tokens),
        cache_read=cache_read,
        cache_write=cache_write,
        reasoning=reasoning,
    )


@pytest.mark.parametrize(
    ("usd_per_million", "picousd"),
    [("0.0375", 37_500), ("15", 15_000_000), ("0.000001", 1), ("0.0000001", 1), ("0", 0), ("0.1", 100_000)],
)
def test_a_price_per_million_is_an_integer_per_token(usd_per_million: str, picousd: int) -> None:
    assert picousd_per_token(Decimal(usd_per_million)) == picousd


@given(micros=st.integers(0, 10**12))
def test_no_price_of_up_to_six_places_loses_anything(micros: int) -> None:
    usd_per_million = Decimal(micros).scaleb(-6)
    assert Fraction(picousd_per_token(usd_per_million), 10**12) * 10**6 == Fraction(usd_per_million)


@pytest.mark.parametrize(("usd", "amount"), [("0.012", 12_000_000_000), ("0.0000000000001", 1), ("0", 0)])
def test_a_price_per_request_or_picture_is_an_integer_too(usd: str, amount: int) -> None:
    assert picousd(Decimal(usd)) == amount


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("input", 100), ("cache_read", 60), ("cache_write", 20), ("output", 40), ("reasoning", 30)],
)
def test_each_kind_of_token_has_its_own_price(kind: str, tokens: int) -> None:
    usage = Usage(input=180, output=70, cache_read=60, cache_write=20, reasoning=30)
    free = {"input": 0, "output": 0, "cache_read": 0, "cache_write": 0, "reasoning": 0}
    assert Price(**{**free, kind: 7}).cost_picousd(usage) == 7 * tokens


def test_the_dearest_kind_is_what_a_hold_is_made_of() -> None:
    price = Price(input=3, output=5, cache_read=1, cache_write=4, reasoning=9)
    assert (price.dearest_input, price.dearest_output) == (4, 9)
    assert (FREE.base.dearest_input, FREE.base.dearest_output) == (0, 0)
    assert (Price(input=3, output=5).dearest_input, Price(input=3, output=5).dearest_output) == (3, 5)


@given(prices(), st.lists(usages(), max_size=20))
def test_the_ledger_of_many_streams_is_off_by_less_than_a_micro_each_and_never_below(
    price: Price, streams: list[Usage]
) -> None:
    exact = sum(price.cost_picousd(usage) for usage in streams)
    charged = sum(microusd(price.cost_picousd(usage)) for usage in streams)
    assert isinstance(exact, int)
    assert 0 <= charged * 1_000_000 - exact < 1_000_000 * max(len(streams), 1)


@given(prices(), usages())
def test_the_cost_is_the_sum_of_its_kinds(price: Price, usage: Usage) -> None:
    read = price.input if price.cache_read is None else price.cache_read
    write = price.input if price.cache_write is None else price.cache_write
    thought = price.output if price.reasoning is None else price.reasoning
    fresh = usage.input - usage.cache_read - usage.cache_write
    assert price.cost_picousd(usage) == (
        price.request
        + fresh * price.input
        + usage.cache_read * read
        + usage.cache_write * write
        + (usage.output - usage.reasoning) * price.output
        + usage.reasoning * thought
    )


@given(prices(), usages(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_tokens_never_cost_less(price: Price, usage: Usage, more_input: int, more_output: int) -> None:
    more = Usage(
        input=usage.input + more_input,
        output=usage.output + more_output,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        reasoning=usage.reasoning,
    )
    assert price.cost_picousd(more) >= price.cost_picousd(usage)


def test_cached_tokens_cost_what_the_book_says_and_like_fresh_ones_where_it_says_nothing() -> None:
    usage = Usage(input=100, output=10, cache_read=60, cache_write=20, reasoning=4)
    dear = Price(input=10, output=100)
    assert dear.cost_picousd(usage) == 100 * 10 + 10 * 100
    cached = Price(input=10, output=100, cache_read=1, cache_write=12, reasoning=50, request=7)
    assert cached.cost_picousd(usage) == 20 * 10 + 60 * 1 + 20 * 12 + 6 * 100 + 4 * 50 + 7


def test_a_cache_larger_than_the_input_never_makes_a_negative_price() -> None:
    assert Price(input=10, output=1, cache_read=1).cost_picousd(Usage(input=5, cache_read=9)) == 9


@given(st.integers(0, 10**18))
def test_rounding_is_up_and_by_less_than_one(picousd: int) -> None:
    rounded = microusd(picousd)
    assert 0 <= rounded * 1_000_000 - picousd < 1_000_000


@given(st.integers(-(10**15), 10**15))
def test_amounts_survive_being_written_and_read(amount: int) -> None:
    text = usd_string(amount)
    assert microusd_of(Decimal(text)) == amount
    assert len(text.partition(".")[2]) == 6


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.000000"), (1, "0.000001"), (-1, "-0.000001"), (12345678, "12.345678")]
)
def test_amounts_are_written_with_six_places(amount: int, text: str) -> None:
    assert usd_string(amount) == text


@pytest.mark.parametrize("amount", ["0.0000001", "1.2345678", "NaN", "Infinity", "-Infinity"])
def test_an_amount_that_is_no_micro_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="six decimal places"):
        microusd_of(Decimal(amount))


def test_a_tier_applies_to_all_tokens_from_its_first_input_token_on() -> None:
    base, long, longer = (Price(input=n, output=n) for n in (1, 2, 3))
    schedule = PriceSchedule(base, ((1000, long), (5000, longer)))
    expected = {0: base, 999: base, 1000: long, 4999: long, 5000: longer, 10**9: longer}
    assert {tokens: schedule.at(tokens) for tokens in expected} == expected


class TestPriceBook:
    OWN = PriceSchedule(Price(input=1, output=2))
    WILD = PriceSchedule(Price(input=3, output=4))

    def test_the_operators_word_comes_first_and_the_model_before_the_provider(self) -> None:
        book = PriceBook({"openai/gpt-4o": self.OWN, "openai/*": self.WILD})
        assert book.find("openai", "gpt-4o") is self.OWN
        assert book.find("openai", "gpt-4o-mini") is self.WILD

    def test_the_shipped_book_knows_the_well_known(self) -> None:
        book = PriceBook({})
        found = book.find("openai", "gpt-4o-mini")
        assert found is not None
        assert found.base == Price(input=150_000, output=600_000, cache_read=75_000)
        assert book.find("openai", "gpt-4o-mini") is found
        assert book.find("mine", "gpt-4o-mini", vendor="openai") is found

    def test_a_model_that_charges_long_prompts_more_has_its_tiers(self) -> None:
        found = PriceBook({}).find("google", "gemini-2.5-pro")
        assert found is not None and found.tiers
        start, price = found.tiers[0]
        assert start == 200_001  # the book says: above 200,000
        assert found.at(start).input == price.input > found.at(start - 1).input

    def test_a_fee_per_request_and_a_price_of_reasoning_are_taken_from_the_book(self) -> None:
        sonar = PriceBook({}).find("perplexity", "sonar")
        assert sonar is not None and sonar.base.request == 12_000_000_000  # 12 USD per thousand
        deep = PriceBook({}).find("perplexity", "sonar-deep-research")
        assert deep is not None and deep.base.reasoning == 3_000_000

    def test_where_nothing_costs_anything_the_operators_prices_count_for_nothing(self) -> None:
        book = PriceBook({"openai/gpt-4o": self.OWN}, everything=FREE)
        assert book.find("openai", "gpt-4o") is book.find("nobody", "nothing") is FREE

    @pytest.mark.parametrize(
        ("provider", "model"), [("openai", "no-such-model-at-all"), ("nobody", "gpt-4o"), ("", "")]
    )
    def test_what_nobody_priced_has_no_price_unless_that_is_allowed(self, provider: str, model: str) -> None:
        assert PriceBook({}).find(provider, model) is None
        assert PriceBook({}, free_if_unpriced=True).find(provider, model) is FREE
        assert FREE.at(5).cost_picousd(Usage(input=10, output=10)) == 0

    def test_what_clients_ask_for_does_not_pile_up(self) -> None:
        book = PriceBook({})
        book._found = {("x", str(number)): None for number in range(4096)}
        book.find("nobody", "nothing")
        assert len(book._found) == 1
