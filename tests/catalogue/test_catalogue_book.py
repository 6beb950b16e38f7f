"""Cards found by a model's name: patterns, the order of knowledge, what ships."""

import datetime
from typing import Any

import msgspec
import pytest

from gateway.catalogue.book import Catalogue
from gateway.catalogue.cards import NOTHING_KNOWN, CardEntry, ModelCard, entries_of, merged
from gateway.catalogue.files import shipped


def entry(*models: str, **facts: Any) -> CardEntry:
    return entries_of({"cards": [{"models": models, **facts}]})[0]


class TestLookup:
    def test_the_more_specific_entry_has_the_last_word_field_by_field(self) -> None:
        book = Catalogue(
            [
                entry("a/gpt-4o", context_tokens=3),
                entry("a/gpt-*", context_tokens=2, output_tokens_max=20),
                entry("a/*", context_tokens=1, output_tokens_max=10, refuses=["seed"]),
            ]
        )
        card = book.known("a", "gpt-4o")
        assert (card.context_tokens, card.output_tokens_max) == (3, 20) and card.refuses == frozenset(("seed",))
        assert book.known("a", "other").context_tokens == 1
        assert book.known("b", "gpt-4o") == NOTHING_KNOWN

    def test_a_later_list_knows_better(self) -> None:
        book = Catalogue([entry("a/x", context_tokens=1, output_tokens_max=5)], [entry("a/*", context_tokens=2)])
        assert book.known("a", "x") == ModelCard(context_tokens=2, output_tokens_max=5)

    def test_a_provider_has_its_vendors_cards_and_those_of_its_own_name(self) -> None:
        book = Catalogue([entry("openai/x", context_tokens=1), entry("eu/x", output_tokens_max=2)])
        assert book.card("eu", "x", vendor="openai") == ModelCard(context_tokens=1, output_tokens_max=2)

    def test_only_a_star_has_a_meaning_in_a_pattern(self) -> None:
        book = Catalogue([entry("a/x[1]*", context_tokens=1), entry("a/y?*", context_tokens=2)])
        assert book.known("a", "x[1]-z").context_tokens == 1
        assert book.known("a", "x1") == book.known("a", "yz") == NOTHING_KNOWN

    def test_an_empty_list_of_capabilities_is_knowledge(self) -> None:
        card = merged(ModelCard(capabilities=frozenset(("tools",))), ModelCard(capabilities=frozenset()))
        assert card.lacks("tools")
        assert not NOTHING_KNOWN.lacks("tools")


class TestForm:
    @pytest.mark.parametrize(
        "card",
        [
            {},
            {"models": []},
            {"models": ["no-provider"]},
            {"models": ["a/b"], "context": 1},
            {"models": ["a/b"], "context_tokens": 0},
            {"models": ["a/b"], "capabilities": ["telepathy"]},
            {"models": ["a/b"], "refuses": ["manners"]},
            {"models": ["a/b"], "price": {"input": -1}},
            {"models": ["a/b"], "price": {"input": "NaN"}},
            {"models": ["a/b"], "price": {"output": 1}},
        ],
    )
    def test_mistakes_are_found(self, card: dict[str, Any]) -> None:
        with pytest.raises(msgspec.ValidationError):
            entries_of({"cards": [card]})

    def test_prices_are_usd_per_million_tokens_with_tiers_by_input(self) -> None:
        price = {"input": 1.5, "output": 6, "tiers": [{"from_input_tokens": 200_001, "input": 3, "output": 12}]}
        schedule = entry("a/b", price=price).card().price
        assert schedule is not None
        assert (schedule.at(200_000).input, schedule.at(200_001).input) == (1_500_000, 3_000_000)
        assert not schedule.is_input_only
        vectors = entry("a/b", price={"input": 1}).card().price
        assert vectors is not None and vectors.is_input_only

    def test_source_and_date_are_those_of_the_file_where_an_entry_has_none(self) -> None:
        first, second = entries_of(
            {"source": "s", "as_of": "2026-01-02", "cards": [{"models": ["a/b"]}, {"models": ["a/c"], "source": "t"}]}
        )
        assert (first.source, second.source) == ("s", "t")
        assert first.as_of == second.as_of == datetime.date(2026, 1, 2)


class TestShipped:
    def test_every_shipped_card_says_where_it_is_from_and_when(self) -> None:
        assert all(card.source and card.as_of for card in shipped())

    @pytest.mark.parametrize(
        ("vendor", "model", "context_tokens", "lacking"),
        [
            ("openai", "gpt-4o-mini", 128_000, "reasoning"),
            ("openai", "gpt-3.5-turbo", 16_385, "images"),
            ("openai", "ft:gpt-4o-mini-2024-07-18:acme::1", 128_000, "audio"),
            ("anthropic", "claude-3-haiku-20240307", 200_000, "reasoning"),
            ("aws", "us.anthropic.claude-haiku-4-5-20251001-v1:0", 200_000, "audio"),
            ("google", "claude-sonnet-4@20250514", 1_000_000, "json_schema"),
            ("groq", "llama-3.3-70b-versatile", 131_072, "json_schema"),
        ],
    )
    def test_well_known_models_are_known(self, vendor: str, model: str, context_tokens: int, lacking: Any) -> None:
        card = Catalogue(shipped()).known(vendor, model)
        assert card.context_tokens == context_tokens and card.lacks(lacking)

    def test_reasoning_models_refuse_sampling(self) -> None:
        book = Catalogue(shipped())
        for vendor, model in (("openai", "gpt-5"), ("openai", "o3"), ("anthropic", "claude-opus-4-7-20260416")):
            assert "temperature" in (book.known(vendor, model).refuses or ())
        for vendor, model in (("openai", "gpt-5-chat-latest"), ("openai", "gpt-5.1"), ("anthropic", "claude-opus-4-6")):
            assert not book.known(vendor, model).refuses

    def test_a_model_that_nobody_here_knows_is_not_restricted(self) -> None:
        assert Catalogue(shipped()).known("openai", "gpt-77") == NOTHING_KNOWN
