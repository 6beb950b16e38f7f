"""Functions that a client offers in groups (tools of type ``namespace``), for formats that know no groups.

Elsewhere such a function has one flat name, made of both of its own; a call of it comes back under those. A provider of
the format itself gets the groups as the client wrote them, and may call a function by its own name alone.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gateway.protocols.openai_responses.shapes import ResponsesTool

# What all formats take as the name of a function.
_FLAT_MAX = 64
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST = 8
_TOOLS = msgspec.json.Decoder(list[ResponsesTool] | None)


class FlatNames:
    """The flat names of a request's functions. ``plain`` are those of functions outside of any namespace."""

    def __init__(self, grouped: Iterable[tuple[str, str]] = (), plain: Iterable[str] = ()) -> None:
        self._taken = set(plain)
        self._flat: dict[tuple[str, str], str] = {}
        self._own: dict[str, tuple[str, str]] = {}
        alone: dict[str, list[tuple[str, str]]] = {}
        for own in grouped:
            flat = self._flat[own] = _flat(*own, self._taken)
            self._taken.add(flat)
            self._own[flat] = own
            alone.setdefault(own[1], []).append(own)
        for name, owners in alone.items():
            if len(owners) == 1 and name not in self._taken:
                self._own[name] = owners[0]

    def flat(self, namespace: str, name: str) -> str:
        """One name for both; a function that is no longer offered has one too."""
        return self._flat.get((namespace, name)) or _flat(namespace, name, self._taken)

    def own(self, name: str) -> tuple[str, str]:
        """Namespace and name of a function by the name it was called by; the first is empty where it has none."""
        return self._own.get(name, ("", name))


NO_NAMESPACES = FlatNames()


def flat_names(tools: Sequence[ResponsesTool]) -> FlatNames:
    """The flat names of what a request offers."""
    if not any(tool.type == "namespace" for tool in tools):
        return NO_NAMESPACES
    plain = [tool.name for tool in tools if tool.type == "function" and tool.name is not None]
    return FlatNames(dict.fromkeys(_grouped(tools)), plain)


def flat_names_of(raw: msgspec.Raw | None) -> FlatNames:
    """The same of the tools as they stand in a body that was read."""
    if raw is None or b'"namespace"' not in bytes(raw):
        return NO_NAMESPACES
    return flat_names(_TOOLS.decode(raw) or ())


def _grouped(tools: Sequence[ResponsesTool]) -> Iterator[tuple[str, str]]:
    for tool in tools:
        if tool.type == "namespace" and tool.name is not None:
            yield from ((tool.name, inner.name) for inner in tool.tools or () if inner.name is not None)


def _flat(namespace: str, name: str, taken: set[str]) -> str:
    flat = _UNFIT.sub("_", f"{namespace}__{name}")
    if len(flat) <= _FLAT_MAX and flat not in taken:
        return flat
    digest = hashlib.blake2b(f"{namespace}\n{name}".encode(), digest_size=_DIGEST // 2).hexdigest()
    return f"{flat[: _FLAT_MAX - _DIGEST - 1]}_{digest}"
