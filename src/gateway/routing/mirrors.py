"""Mirrors: which share of a name's requests is asked of another model too, and how many of those run in this process.

Nothing here runs one: ``gateway.mirror`` does. The count outlives a reload of the configuration, the rules do not.
"""

import random
from collections.abc import Callable

import msgspec
from prometheus_client import Counter


class MirrorRule(msgspec.Struct, frozen=True, kw_only=True):
    """What is mirrored of a name: a ``share`` of its requests, asked of ``to`` and paid by ``account``.

    ``streams`` is how many mirrors of the name run at once in one process.
    """

    to: str
    share: float
    account: str
    streams: int


class Mirrors:
    """The mirrors of this process, counted. ``results`` has each by how it ended, and those that were left out."""

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        """``dice`` throws a number from 0 to 1, 1 left out."""
        self._dice = dice
        self._running: dict[str, int] = {}
        self.results = Counter(
            "gateway_mirrored",
            "Requests that were to be mirrored, by what became of the mirror: its outcome, refused, or skipped.",
            ("result",),
            registry=None,
        )

    def take(self, name: str, rule: MirrorRule) -> bool:
        """Whether this request of ``name`` is mirrored; then ``leave`` has to follow."""
        if self._dice() >= rule.share:
            return False
        running = self._running.get(name, 0)
        if running >= rule.streams:
            self.results.labels("skipped").inc()
            return False
        self._running[name] = running + 1
        return True

    def leave(self, name: str, result: str) -> None:
        """A mirror of ``name`` has ended."""
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        self.results.labels(result).inc()
