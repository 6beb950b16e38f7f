"""What the router makes of cards and of what the configuration says of all models of a provider."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.catalogue.book import Catalogue
from gateway.catalogue.cards import ModelCard, entries_of
from gateway.config import Config, ConfigError
from gateway.metering.prices import Price, PriceBook, PriceSchedule
from gateway.providers.demo import DemoProvider
from gateway.router import ModelOptions, Router, Target
from gateway.wiring import validate

PRICE, OTHER = PriceSchedule(Price(input=1, output=2)), PriceSchedule(Price(input=3, output=4))


def router(cards: list[dict[str, Any]] | None = None, **models: ModelOptions) -> Router:
    """The demo provider; names are written with ``__`` for a slash and ``any`` for a star."""
    named = {name.replace("__", "/").replace("any", "*"): options for name, options in models.items()}
    return Router({"demo": DemoProvider()}, named, PriceBook({"demo/*": PRICE}), None, catalogue(cards or []))


def catalogue(cards: list[dict[str, Any]]) -> Catalogue:
    return Catalogue(entries_of({"cards": cards}))


def only(built: Router, name: str) -> Target:
    (target,) = built.resolve(name)
    return target


class TestPatterns:
    def test_a_pattern_says_what_exact_names_leave_unsaid(self) -> None:
        built = router(
            demo__any=ModelOptions(price=OTHER, output_tokens_max=9, tokenizer="bytes"),
            demo__fast=ModelOptions(output_tokens_max=5),
        )
        fast, slow = only(built, "demo/fast"), only(built, "demo/slow")
        assert (fast.terms.output_tokens_max, fast.tokenizer) == (5, "bytes")
        assert slow.terms.output_tokens_max == 9
        assert fast.terms.price is slow.terms.price is OTHER

    def test_the_longer_pattern_is_nearer_and_an_aliass_own_word_the_nearest(self) -> None:
        built = router(
            demo__any=ModelOptions(output_tokens_max=9, is_held_full=True),
            demo__fany=ModelOptions(output_tokens_max=7),
            quick=ModelOptions(targets=("demo/fast",), is_held_full=False),
        )
        assert only(built, "quick").terms == msgspec.structs.replace(only(built, "demo/fast").terms, is_held_full=False)
        assert only(built, "quick").terms.output_tokens_max == 7

    def test_a_pattern_is_no_model(self) -> None:
        assert "demo/*" not in [entry.id for entry in router(demo__any=ModelOptions(tokenizer="bytes")).models()]

    @pytest.mark.parametrize("more", [{"targets": ["demo/fast"]}, {"capacity": {"streams": 1}}, {"sticky": "chat"}])
    def test_a_pattern_takes_nothing_that_is_one_names_own(self, more: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"models\.demo/\*"):
            validate(Config.model_validate({"models": {"demo/*": more}}))


class TestCards:
    CARDS = ({"models": ["demo/*"], "context_tokens": 100, "capabilities": ["tools"], "refuses": ["seed"]},)

    def test_the_configuration_overrides_what_the_catalogue_knows(self) -> None:
        mine = ModelCard(capabilities=frozenset(("images",)), source="configuration")
        built = router(list(self.CARDS), demo__fast=ModelOptions(card=mine))
        card = only(built, "demo/fast").card
        assert card.capabilities == mine.capabilities and card.context_tokens == 100
        assert only(built, "demo/slow").card.capabilities == frozenset(("tools",))

    def test_a_window_of_the_catalogue_has_room_for_an_estimate_and_one_of_the_configuration_none(self) -> None:
        mine = ModelOptions(card=ModelCard(context_tokens=100))
        built = router(list(self.CARDS), demo__fast=mine)
        assert only(built, "demo/slow").prompt_tokens_max == 125
        assert only(built, "demo/fast").prompt_tokens_max == 100
        assert only(router(), "demo/fast").prompt_tokens_max is None

    def test_a_short_longest_answer_bounds_the_hold_and_a_long_one_does_not_raise_it(self) -> None:
        full = ModelOptions(is_held_full=True)
        short = router([{"models": ["demo/*"], "output_tokens_max": 4096}], demo__fast=full)
        long = router([{"models": ["demo/*"], "output_tokens_max": 128_000}], demo__fast=full)
        assert only(short, "demo/fast").terms.output_tokens_max == 4096
        assert only(long, "demo/fast").terms.output_tokens_max is None
        assert only(short, "demo/slow").terms.output_tokens_max is None, "a bound is not sent for what is not held"
        assert only(long, "demo/fast").card.output_tokens_max == 128_000

    def test_prices_come_from_the_configuration_then_the_catalogue_then_the_book(self) -> None:
        known = catalogue([{"models": ["openai/gpt-4o"], "price": {"input": 7, "output": 8}}])
        book = PriceBook({"mine/*": PRICE}, renewed=known.price)
        price = book.find("openai", "gpt-4o")
        assert price is not None and price.base.input == 7_000_000
        assert book.find("mine", "gpt-4o", vendor="openai") is PRICE
        shipped = book.find("openai", "gpt-4o-mini")
        assert shipped is not None and shipped.base.input == 150_000

    def test_a_catalogue_that_cannot_be_read_is_a_mistake_in_the_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gateway models refresh"):
            validate(Config(catalogue=tmp_path / "none.json"))
        (tmp_path / "bad.json").write_text('{"cards": [{"models": ["a/b"], "x": 1}]}')
        with pytest.raises(ConfigError, match="x"):
            validate(Config(catalogue=tmp_path / "bad.json"))
