"""The limits of one stream, as every script takes them.

A stream's limits are fixed when it is admitted: windows, token buckets and slots, each with the key it is kept under.
The same keys and numbers go to every script, and a copy travels in the stream's record, so that whoever finishes an
abandoned stream knows what it had taken.
"""

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from gateway.limits import keys


class Unit(IntEnum):
    """What a limit counts."""

    REQUESTS = 0
    TOKENS = 1
    MONEY = 2


class Window(msgspec.Struct, frozen=True, array_like=True):
    """At most ``limit`` of its unit per window. Money in µ$.

    A rolling window has ``bounds`` (width of a part in ms, number of parts, 0): its sum covers at least the window, by
    at most one part more. A calendar window has the starts of the period before, of this one and of the next, in ms.
    """

    name: str
    limit: int
    bounds: tuple[int, int, int]
    unit: Unit
    is_shadow: bool = False


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """A token bucket: ``limit`` per ``period_ms``, at most ``burst`` at once."""

    name: str
    limit: int
    period_ms: int
    burst: int
    unit: Unit = Unit.REQUESTS
    is_shadow: bool = False

    def rate(self, remaining: int) -> "Rate":
        """How it stands with so much left."""
        reset_s = (self.burst - remaining) * self.period_ms / self.limit / 1000
        return Rate(self.unit, self.limit, max(remaining, 0), reset_s)


class Slots(msgspec.Struct, frozen=True, array_like=True):
    """A concurrency limit."""

    name: str
    max: int
    is_shadow: bool = False


class Rate(msgspec.Struct, frozen=True):
    """How a rate limit stands: what is left of it, and when all of it is there again."""

    unit: Unit
    limit: int
    left: int
    reset_s: float


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    windows: tuple[Window, ...]
    buckets: tuple[Bucket, ...]
    slots: tuple[Slots, ...]


class Allowances:
    """Everything that limits one stream beside its balance. Immutable; made once and shared by many streams.

    ``packed`` is what every script reads of it, in MessagePack, ``stored`` what a stream's record keeps, in JSON.
    """

    __slots__ = ("buckets", "keys", "packed", "slots", "stored", "windows", "without_buckets")

    def __init__(
        self,
        owner: keys.Owner,
        *,
        windows: Sequence[Window] = (),
        buckets: Sequence[Bucket] = (),
        slots: Sequence[Slots] = (),
    ) -> None:
        """``owner`` is whose keys the limits are kept under: an account, or capacity that accounts share."""
        self.windows = tuple(windows)
        self.buckets = tuple(buckets)
        self.slots = tuple(slots)
        self.keys = (
            *(owner.window(window.name) for window in windows),
            *(owner.bucket(bucket.name) for bucket in buckets),
            *(owner.slots(limit.name) for limit in slots),
        )
        self.packed = msgspec.msgpack.encode(
            (
                [(it.limit, *it.bounds, it.unit, int(it.is_shadow)) for it in windows],
                [(it.limit, it.period_ms, it.burst, it.unit, int(it.is_shadow)) for it in buckets],
                [(it.max, int(it.is_shadow)) for it in slots],
            )
        )
        self.without_buckets = Allowances(owner, windows=windows, slots=slots) if buckets else self
        self.stored = msgspec.json.encode(_Stored(self.windows, self.buckets, self.slots))

    @classmethod
    def load(cls, owner: keys.Owner, stored: bytes) -> "Allowances":
        """The allowances that a stream's record names."""
        limits = msgspec.json.decode(stored, type=_Stored)
        return cls(owner, windows=limits.windows, buckets=limits.buckets, slots=limits.slots)

    def at(self, index: int) -> Window | Bucket | Slots:
        """The limit a script names by its number: windows first, then buckets, then slots, from 1."""
        limits: tuple[Window | Bucket | Slots, ...] = (*self.windows, *self.buckets, *self.slots)
        return limits[index - 1]

    def rates(self, left: Sequence[int]) -> list[Rate]:
        """The tightest limit on requests and on tokens, given what a script said is left of each bucket."""
        tightest: dict[Unit, tuple[int, Bucket]] = {}
        for bucket, remaining in zip(self.buckets, left, strict=False):
            known = tightest.get(bucket.unit)
            if not bucket.is_shadow and (known is None or remaining * known[1].burst < known[0] * bucket.burst):
                tightest[bucket.unit] = (remaining, bucket)
        return [bucket.rate(remaining) for remaining, bucket in tightest.values()]
