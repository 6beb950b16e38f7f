"""LiteLLM's ``model_prices_and_context_window.json`` as entries of our own form.

What it says outright is taken over. It mentions few capabilities, and what it leaves out is as the shipped cards say.
Format: https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json.
"""

import datetime
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gateway.catalogue.cards import CAPABILITIES, Capability, CardEntry, LongEntry, ModelCard, PriceEntry, TierEntry

# Its names of providers, as the price book calls them; those that are left out here are called the same.
_VENDORS = {
    "azure_ai": "azure",
    "azure_text": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "moonshot": "moonshotai",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "xai": "x-ai",
}
_VERTEX = "vertex_ai"
_MODES = ("chat", "completion", "embedding", "responses")
_SUPPORTS: dict[str, Capability] = {
    "supports_function_calling": "tools",
    "supports_vision": "images",
    "supports_pdf_input": "documents",
    "supports_audio_input": "audio",
    "supports_reasoning": "reasoning",
    "supports_response_schema": "json_schema",
}
_RATES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "reasoning": "output_cost_per_reasoning_token",
}
# Its suffixes for service tiers are called as vendors call these.
_SERVICE_TIERS = ("flex", "priority")
_TIER = re.compile(r"input_cost_per_token_above_([0-9]{1,6})k_tokens")
_MILLION = 1_000_000

# What is known of a model by its vendor's name and its own.
Known = Callable[[str, str], ModelCard]


def is_litellm(value: object) -> bool:
    """Whether a file that was read has LiteLLM's shape: an object of models, each with its provider."""
    return isinstance(value, dict) and any(isinstance(it, dict) and "litellm_provider" in it for it in value.values())


def convert(value: Mapping[str, Any], known: Known, *, source: str, as_of: datetime.date) -> tuple[CardEntry, ...]:
    """An entry per model that answers or makes vectors; raises ``ValueError`` that names the model it cannot read."""
    entries = []
    for key, facts in value.items():
        if not isinstance(facts, dict) or facts.get("mode", "chat") not in _MODES or key == "sample_spec":
            continue
        name = _name(key, str(facts.get("litellm_provider", "")))
        if name is None:
            continue
        try:
            facts_of_ours = _facts(facts, known(*name))
            entries.append(CardEntry(models=("/".join(name),), source=source, as_of=as_of, **facts_of_ours))
        except ArithmeticError:
            raise ValueError(f"{key}: a price is no number") from None
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return tuple(entries)


def _name(key: str, provider: str) -> tuple[str, str] | None:
    """The vendor and the model, ``None`` for a name that only LiteLLM knows (a region's prices)."""
    vendor = "google" if provider.startswith(_VERTEX) else _VENDORS.get(provider, provider)
    prefix, slash, rest = key.partition("/")
    model = rest if slash and prefix in (provider, _VERTEX, "bedrock", "azure") else key
    is_regional = vendor in ("aws", "azure") and "/" in model
    is_name = vendor.isascii() and model.isascii() and not {*vendor, *model} & {"*", " "}
    return (vendor, model) if vendor and model and is_name and not is_regional else None


def _facts(facts: Mapping[str, Any], known: ModelCard) -> dict[str, Any]:
    return {
        "context_tokens": _count(facts.get("max_input_tokens")),
        "output_tokens_max": _count(facts.get("max_output_tokens")),
        "capabilities": _capabilities(facts, known),
        "price": _price(facts),
    }


def _count(value: object) -> int | None:
    count = int(Decimal(str(value))) if value is not None else 0
    return count if count > 0 else None


def _capabilities(facts: Mapping[str, Any], known: ModelCard) -> tuple[Capability, ...] | None:
    has = {capability: facts.get(name) for name, capability in _SUPPORTS.items()}
    if all(it is None for it in has.values()):
        return None
    return tuple(it for it in CAPABILITIES if (not known.lacks(it) if has[it] is None else has[it]))


def _price(facts: Mapping[str, Any]) -> PriceEntry | None:
    rates: dict[str, Any] | None = _rates(facts, "")
    if rates is None:
        return None
    starts = sorted(int(found.group(1)) for name in facts if (found := _TIER.fullmatch(name)))
    tiers = []
    for start in starts:
        dearer: dict[str, Any] = {**rates, **(_rates(facts, f"_above_{start}k_tokens") or {})}
        tiers.append(TierEntry(**dearer, from_input_tokens=start * 1000 + 1))
    others = {name: entry for name in _SERVICE_TIERS if (entry := _service_tier(facts, name, starts)) is not None}
    image, request = _decimal(facts.get("input_cost_per_image")), _decimal(facts.get("input_cost_per_request"))
    return PriceEntry(**rates, tiers=tuple(tiers), image=image, request=request, service_tiers=others)


def _service_tier(facts: Mapping[str, Any], name: str, starts: list[int]) -> LongEntry | None:
    """A tier's prices; where it has none for a long prompt, the dearer of its own and of a long prompt in no tier."""
    rates: dict[str, Any] = _rates(facts, f"_{name}") or {}
    if "output" not in rates:
        return None
    tiers = []
    for start in starts:
        long = f"_above_{start}k_tokens"
        ordinary = _rates(facts, long) or {}
        dearer = {kind: max(rates[kind], usd) for kind, usd in ordinary.items() if kind in rates}
        own: dict[str, Any] = {**rates, **dearer, **(_rates(facts, f"{long}_{name}") or {})}
        tiers.append(TierEntry(**own, from_input_tokens=start * 1000 + 1))
    return LongEntry(**rates, tiers=tuple(tiers))


def _rates(facts: Mapping[str, Any], suffix: str) -> dict[str, Decimal] | None:
    """USD per million tokens of each kind that is named, ``None`` where input has no price."""
    found = {}
    for name, key in _RATES.items():
        usd = _decimal(facts.get(key + suffix))
        if usd is not None:
            found[name] = Decimal(f"{(usd * _MILLION).normalize():f}")
    return found if "input" in found else None


def _decimal(value: object) -> Decimal | None:
    return None if value is None else Decimal(str(value))
