"""The operator's catalogue: read, renewed from our form or LiteLLM's, and never half written."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.catalogue import litellm
from gateway.catalogue.book import Catalogue
from gateway.catalogue.files import CatalogueError, read, refresh

LITELLM: dict[str, Any] = {
    "sample_spec": {"litellm_provider": "one of …", "max_input_tokens": "a number"},
    "gpt-4o-mini": {
        "litellm_provider": "openai",
        "mode": "chat",
        "max_input_tokens": 128_000,
        "max_output_tokens": 16_384,
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "input_cost_per_token_batches": 7.5e-08,
        "input_cost_per_token_priority": 2.5e-07,
        "output_cost_per_token_priority": 1e-06,
        "input_cost_per_token_flex": 7.5e-08,
        "supports_vision": False,
    },
    "xai/grok-9": {
        "litellm_provider": "xai",
        "mode": "chat",
        "input_cost_per_token": 3e-06,
        "output_cost_per_token": 1.5e-05,
        "input_cost_per_token_above_200k_tokens": 6e-06,
        "supports_function_calling": True,
    },
    "bedrock/us-east-1/some.model-v1": {"litellm_provider": "bedrock", "mode": "chat"},
    "text-embedding-9": {"litellm_provider": "openai", "mode": "embedding", "input_cost_per_token": 1e-08},
    "dall-e-3": {"litellm_provider": "openai", "mode": "image_generation"},
    "vertex_ai/claude-9": {"litellm_provider": "vertex_ai-anthropic_models", "mode": "chat"},
}


def written(folder: Path, value: Any, name: str = "source.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def converted(folder: Path) -> Catalogue:
    target = folder / "data" / "models.json"
    assert refresh(written(folder, LITELLM), target) == 4
    return Catalogue(read(target))


class TestLiteLlm:
    def test_limits_and_prices_are_taken_over_exactly(self, tmp_path: Path) -> None:
        card = converted(tmp_path).known("openai", "gpt-4o-mini")
        assert (card.context_tokens, card.output_tokens_max) == (128_000, 16_384)
        assert card.price is not None
        price = card.price.base
        assert (price.input, price.output, price.cache_read, price.cache_write) == (150_000, 600_000, 75_000, None)
        assert card.source == "LiteLLM, source.json" and card.as_of is not None

    def test_a_capability_it_does_not_mention_is_as_shipped(self, tmp_path: Path) -> None:
        book = converted(tmp_path)
        mini, grok = book.known("openai", "gpt-4o-mini"), book.known("x-ai", "grok-9")
        assert mini.lacks("images") and mini.lacks("reasoning") and not mini.lacks("tools")
        assert not any(grok.lacks(it) for it in ("tools", "images", "reasoning"))

    def test_long_prompts_cost_what_they_cost(self, tmp_path: Path) -> None:
        price = converted(tmp_path).price("x-ai", "grok-9")
        assert price is not None
        assert (price.at(200_000).input, price.at(200_001).input, price.at(200_001).output) == (
            3_000_000,
            6_000_000,
            15_000_000,
        )

    def test_service_tiers_that_have_both_prices_are_taken_over(self, tmp_path: Path) -> None:
        price = converted(tmp_path).price("openai", "gpt-4o-mini")
        assert price is not None and price.in_service_tier("flex") is None
        priority = price.in_service_tier("priority")
        assert priority is not None and (priority.base.input, priority.base.output) == (250_000, 1_000_000)

    def test_a_long_prompt_is_never_cheaper_for_want_of_a_tiers_price(self) -> None:
        facts = {
            **{"litellm_provider": "openai", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06},
            **{"input_cost_per_token_flex": 1e-06, "output_cost_per_token_flex": 4e-06},
            **{"input_cost_per_token_above_200k_tokens": 4e-06, "output_cost_per_token_above_200k_tokens": 9e-06},
        }
        (entry,) = litellm.convert({"gpt-9": facts}, Catalogue().known, source="s", as_of=datetime.date(2026, 1, 1))
        price = entry.card().price
        flex = None if price is None else price.in_service_tier("flex")
        assert flex is not None
        assert (flex.at(200_000).input, flex.at(200_001).input, flex.at(200_001).output) == (
            1_000_000,
            4_000_000,
            9_000_000,
        )

    def test_a_long_prompt_in_a_dearer_tier_costs_no_less_and_pictures_are_never_free(self) -> None:
        facts = {
            **{"litellm_provider": "openai", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06},
            **{"input_cost_per_token_priority": 5e-06, "output_cost_per_token_priority": 20e-06},
            **{"input_cost_per_token_above_200k_tokens": 4e-06, "output_cost_per_token_above_200k_tokens": 9e-06},
            "input_cost_per_image": 0.01,
        }
        (entry,) = litellm.convert({"gpt-9": facts}, Catalogue().known, source="s", as_of=datetime.date(2026, 1, 1))
        price = entry.card().price
        priority = None if price is None else price.in_service_tier("priority")
        assert price is not None and priority is not None
        assert (priority.at(200_001).input, priority.at(200_001).output) == (5_000_000, 20_000_000)
        schedules = [(it, tokens) for it in (price, priority) for tokens in (0, 200_001)]
        assert {it.at(tokens).image for it, tokens in schedules} == {10_000_000_000}

    def test_names_are_those_of_the_price_book(self, tmp_path: Path) -> None:
        book = converted(tmp_path)
        assert book.models("google") == ["claude-9"] and book.models("aws") == []
        vectors = book.price("openai", "text-embedding-9")
        assert vectors is not None and vectors.is_input_only

    @pytest.mark.parametrize(
        "facts", [{"input_cost_per_token": "dear"}, {"input_cost_per_token": -1}, {"max_input_tokens": "x"}]
    )
    def test_what_cannot_be_read_is_told_with_the_models_name(self, tmp_path: Path, facts: dict[str, Any]) -> None:
        source = written(tmp_path, {"gpt-x": {"litellm_provider": "openai", **facts}})
        with pytest.raises(CatalogueError, match="gpt-x"):
            refresh(source, tmp_path / "models.json")


class TestOwnForm:
    CARDS = "cards:\n  - models: [openai/x]\n    context_tokens: 7\n    price: {input: 0.1, output: 0.2}\n"

    def test_yaml_of_our_form_is_taken_as_it_is(self, tmp_path: Path) -> None:
        target = tmp_path / "models.json"
        assert refresh(written(tmp_path, self.CARDS, "cards.yaml"), target) == 1
        card = Catalogue(read(target)).known("openai", "x")
        assert card.context_tokens == 7 and card.source == "cards.yaml"
        assert card.price is not None and card.price.base.input == 100_000

    def test_a_price_for_long_prompts_leaves_nothing_free(self, tmp_path: Path) -> None:
        rates = "{input: 1, output: 2, image: 0.01, request: 0.02, tiers: [{from_input_tokens: 9, input: 3}]}"
        path = tmp_path / "models.json"
        refresh(written(tmp_path, f"cards:\n  - models: [openai/x]\n    price: {rates}\n", "cards.yaml"), path)
        price = Catalogue(read(path)).price("openai", "x")
        assert price is not None
        assert (price.at(9).input, price.at(9).output) == (3_000_000, 2_000_000)
        assert (price.at(9).image, price.at(9).request) == (price.base.image, price.base.request)
        assert price.base.image > 0 < price.base.request

    def test_a_price_may_have_those_of_service_tiers(self, tmp_path: Path) -> None:
        cards = "cards:\n  - models: [openai/x]\n    price: {{input: 1, output: 2, service_tiers: {tiers}}}\n"
        path = tmp_path / "models.json"
        refresh(written(tmp_path, cards.format(tiers="{flex: {input: 0.5, output: 1}}"), "cards.yaml"), path)
        price = Catalogue(read(path)).price("openai", "x")
        flex = None if price is None else price.in_service_tier("flex")
        assert flex is not None and flex.base.output == 1_000_000
        refresh(written(tmp_path, cards.format(tiers="ignore"), "cards.yaml"), path)
        price = Catalogue(read(path)).price("openai", "x")
        assert price is not None and price.in_service_tier("anything") is price
        with pytest.raises(CatalogueError, match="flex has no price for output"):
            refresh(written(tmp_path, cards.format(tiers="{flex: {input: 0.5}}"), "cards.yaml"), path)

    def test_a_file_that_was_written_can_be_read_and_written_again(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first.json", tmp_path / "second.json"
        refresh(written(tmp_path, LITELLM), first)
        refresh(first, second)
        assert first.read_bytes() == second.read_bytes()

    @pytest.mark.parametrize("text", ["", "[]", "{", "cards: [{models: [a/b], contxt: 1}]", "cards: []", "\x00"])
    def test_a_bad_file_leaves_the_last_one_alone(self, tmp_path: Path, text: str) -> None:
        target = tmp_path / "models.json"
        refresh(written(tmp_path, self.CARDS, "cards.yaml"), target)
        before = target.read_bytes()
        with pytest.raises(CatalogueError):
            refresh(written(tmp_path, text, "bad.yaml"), target)
        assert target.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "cards.yaml", "models.json"]

    def test_a_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogueError, match="No such file"):
            refresh(tmp_path / "none.json", tmp_path / "models.json")
