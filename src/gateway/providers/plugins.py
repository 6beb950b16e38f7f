"""Providers that other packages bring: found by an entry point, imported only where the configuration names one.

An entry point of the group ``gateway.providers`` names a factory that takes a provider's name and its ``settings``. The
factory opens nothing: ``gateway config check`` calls it too. docs/providers-plugin.md has a whole package.
"""

import importlib.metadata
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

import msgspec

from gateway.canonical.events import Batch
from gateway.canonical.request import Loss
from gateway.providers.provider import Call, Hangup, Provider, Timeouts

GROUP = "gateway.providers"

ProviderFactory: TypeAlias = Callable[[str, dict[str, Any]], Provider]

_MEMBERS = ("wire", "vendor", "timeouts", "hangup", "models", "knows", "holds_full", "losses", "stream", "aclose")


class PluginError(ValueError):
    """A plugin cannot be used; the message says which and why."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of a plugin's provider; ``None`` where it leaves that to the plugin."""

    vendor: str | None = None
    models: tuple[str, ...] | None = None
    timeouts: Timeouts | None = None
    hangup: Hangup | None = None
    is_held_full: bool | None = None


def offered() -> tuple[str, ...]:
    """The types that installed packages offer, sorted; nothing is imported."""
    return tuple(sorted(importlib.metadata.entry_points(group=GROUP).names))


def build_plugin(name: str, kind: str, settings: dict[str, Any], overrides: Overrides) -> Provider:
    """The provider ``name`` of the type ``kind``. Raises ``PluginError``."""
    found = list(importlib.metadata.entry_points(group=GROUP, name=kind))
    if len(found) != 1:
        owners = ", ".join(sorted(entry.dist.name if entry.dist is not None else entry.value for entry in found))
        raise PluginError(f"one installed package should offer the type {kind!r}, and not: {owners or 'none'}")
    try:
        factory: ProviderFactory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"the type {kind!r} cannot be loaded from {found[0].value}: {error}") from error
    try:
        provider = factory(name, settings)
    except (ValueError, TypeError, KeyError) as error:
        raise PluginError(f"settings: {type(error).__name__}: {error}") from error
    missing = [member for member in _MEMBERS if not hasattr(provider, member)]
    if missing:
        raise PluginError(f"{found[0].value} made something that is no provider: it has no {', '.join(missing)}")
    return PluginProvider(name, provider, overrides)


class PluginProvider:
    """A plugin's provider under its configured name, with what the configuration says of it in place of its own."""

    def __init__(self, name: str, provider: Provider, overrides: Overrides) -> None:
        self.name = name
        self.wire = provider.wire
        self.vendor = overrides.vendor or provider.vendor
        self.timeouts = overrides.timeouts or provider.timeouts
        self.hangup = overrides.hangup or provider.hangup
        self._provider = provider
        self._overrides = overrides

    @property
    def models(self) -> tuple[str, ...]:
        """Models to list for clients."""
        return self._provider.models if self._overrides.models is None else self._overrides.models

    def knows(self, model: str) -> bool:
        """As the plugin says."""
        return self._provider.knows(model)

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        """As the operator says, else the plugin."""
        if self._overrides.is_held_full is not None:
            return self._overrides.is_held_full
        return self._provider.holds_full(model, reasons=reasons)

    def losses(self, call: Call) -> tuple[Loss, ...]:
        """As the plugin says."""
        return self._provider.losses(call)

    def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """The plugin's own generator."""
        return self._provider.stream(call)

    async def aclose(self) -> None:
        """Whatever the plugin holds."""
        await self._provider.aclose()
