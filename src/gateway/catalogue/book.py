"""The catalogue: what is known of a model by its name, from the shipped cards and those of the operator's file.

Within one list the more general patterns come first and the more specific ones have the last word, field by field.
"""

import fnmatch
from collections.abc import Iterator, Sequence

from gateway.catalogue.cards import NOTHING_KNOWN, CardEntry, ModelCard, merged
from gateway.metering.prices import PriceSchedule

_FOUND_MAX = 4_096


class Catalogue:
    """Looks cards up. A later list knows better than an earlier one."""

    def __init__(self, *lists: Sequence[CardEntry]) -> None:
        self._lists = [_Cards(entries) for entries in lists]
        self._found: dict[tuple[str, str, str], ModelCard] = {}

    def card(self, provider: str, model: str, *, vendor: str) -> ModelCard:
        """What is known of a provider's model; ``vendor`` is the price book's name for the provider."""
        key = (provider, model, vendor)
        found = self._found.get(key)
        if found is None:
            names = tuple(dict.fromkeys((f"{vendor}/{model}", f"{provider}/{model}")))
            found = NOTHING_KNOWN
            for cards in self._lists:
                for card in cards.of(names):
                    found = merged(found, card)
            if len(self._found) >= _FOUND_MAX:
                self._found.clear()
            self._found[key] = found
        return found

    def known(self, vendor: str, model: str) -> ModelCard:
        """What is known of a vendor's model, whichever provider has it."""
        return self.card(vendor, model, vendor=vendor)

    def price(self, vendor: str, model: str) -> PriceSchedule | None:
        """What a vendor's model costs by the cards, ``None`` where they do not say."""
        return self.known(vendor, model).price

    def models(self, vendor: str) -> list[str]:
        """The models of a vendor that have a card of their own, sorted."""
        names = {name for cards in self._lists for name in cards.named}
        return sorted(name.partition("/")[2] for name in names if name.startswith(f"{vendor}/"))


class _Cards:
    def __init__(self, entries: Sequence[CardEntry]) -> None:
        self.named: dict[str, ModelCard] = {}
        patterns: list[tuple[str, ModelCard]] = []
        for entry in entries:
            card = entry.card()
            for name in entry.models:
                if "*" in name:
                    patterns.append((name, card))
                else:
                    self.named[name] = merged(self.named.get(name, NOTHING_KNOWN), card)
        self._patterns = sorted(patterns, key=lambda pattern: specificity(pattern[0]))

    def of(self, names: Sequence[str]) -> Iterator[ModelCard]:
        for pattern, card in self._patterns:
            if any(matches(name, pattern) for name in names):
                yield card
        for name in names:
            if name in self.named:
                yield self.named[name]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern stands for the name; only ``*`` has a meaning of its own."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def specificity(pattern: str) -> int:
    """What patterns are sorted by: how much of the name they spell out."""
    return len(pattern) - pattern.count("*")
