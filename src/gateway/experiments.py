"""Comparisons of limits: which variant an account is in, and how variants did.

An account's variant follows from its name alone, so every gateway knows it without asking, and it stays for as long as
the experiment runs. Counting is not done here but in ``statistics``; ``report`` is handed the sums.
"""

import hashlib
import math
from collections.abc import Sequence
from itertools import accumulate

import msgspec

BUCKETS = 10_000
# A normal approximation of a share wants this many refused and this many served requests on each side.
_EXPECTED_MIN = 5
_FIELDS = ("requests", "completed", "failed", "refused", "input_tokens", "output_tokens", "cost")


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket."""

    limit: int
    period_ms: int
    burst: int


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One arm, named ``<experiment>/<variant>``; what is ``None`` is as in the tier. ``share`` in per cent."""

    name: str
    share: int
    requests: Rate | None = None
    tokens: Rate | None = None
    concurrent_streams: int | None = None
    tokens_per_request: int | None = None


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A tier's accounts, split between variants from ``start_s`` until ``end_s`` (Unix time)."""

    name: str
    tier: str
    start_s: float
    end_s: float
    variants: tuple[Variant, ...]

    def is_running(self, now_s: float) -> bool:
        """Whether it has begun and not ended."""
        return self.start_s <= now_s < self.end_s


class Experiments:
    """Every experiment of the configuration."""

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        self._by_name = {experiment.name: experiment for experiment in experiments}
        self._by_tier: dict[str, list[tuple[Experiment, list[int]]]] = {}
        for experiment in experiments:
            ends = [share * BUCKETS // 100 for share in accumulate(variant.share for variant in experiment.variants)]
            self._by_tier.setdefault(experiment.tier, []).append((experiment, ends))

    def names(self) -> list[str]:
        """Every experiment, in the order of the configuration."""
        return list(self._by_name)

    def get(self, name: str) -> Experiment | None:
        """One experiment, or ``None``."""
        return self._by_name.get(name)

    def variant_of(self, tier: str, account: str, now_s: float) -> Variant | None:
        """The account's variant in the tier's running experiment; ``None`` where it takes part in none."""
        for experiment, ends in self._by_tier.get(tier, ()):
            if experiment.is_running(now_s):
                bucket = bucket_of(experiment.name, account)
                return next((it for it, end in zip(experiment.variants, ends, strict=True) if bucket < end), None)
        return None


def bucket_of(experiment: str, account: str) -> int:
    """Where an account stands, 0 to 9,999: evenly spread, and another place in each experiment."""
    digest = hashlib.blake2b(f"{experiment}/{account}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted for one variant; ``requests`` include the refused ones, ``cost`` in µ$."""

    variant: str
    requests: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0

    @property
    def ran(self) -> int:
        """Requests that were not refused."""
        return self.requests - self.refused


def rows_of(counters: dict[str, int], variants: Sequence[str]) -> list[Row]:
    """An experiment's counters by variant: those of the configuration in its order, then any others."""
    others = sorted({field.partition(":")[0] for field in counters} - set(variants))
    return [
        Row(variant=variant, **{field: counters.get(f"{variant}:{field}", 0) for field in _FIELDS})
        for variant in (*variants, *others)
    ]


class Difference(msgspec.Struct, frozen=True):
    """A two-proportion z-test with a pooled share; ``p`` is two-sided."""

    z: float
    p: float


def refusals_differ(first: Row, other: Row) -> Difference | None:
    """How far the refused share is from the first variant's; ``None`` where there is too little to tell."""
    if not first.requests or not other.requests:
        return None
    pooled = (first.refused + other.refused) / (first.requests + other.requests)
    if min(first.requests, other.requests) * min(pooled, 1 - pooled) < _EXPECTED_MIN:
        return None
    error = math.sqrt(pooled * (1 - pooled) * (1 / first.requests + 1 / other.requests))
    z = (other.refused / other.requests - first.refused / first.requests) / error
    return Difference(z, math.erfc(abs(z) / math.sqrt(2)))


_HEAD = ("variant", "requests", "refused", "failed", "tokens/request", "cost/request", "z", "p")


def report(rows: Sequence[Row]) -> str:
    """The variants side by side, as plain text. ``z`` and ``p`` compare refusals with the first one's."""
    lines = [_HEAD, *(_line(row, rows[0]) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _line(row: Row, first: Row) -> tuple[str, ...]:
    tokens, cost = row.input_tokens + row.output_tokens, row.cost / 1_000_000
    return (
        row.variant,
        f"{row.requests:,}",
        _share(row.refused, row.requests),
        _share(row.failed, row.ran),
        f"{tokens / row.ran:,.1f}" if row.ran else "-",
        f"${cost / row.ran:.6f}" if row.ran else "-",
        *_verdict(row, first),
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _verdict(row: Row, first: Row) -> tuple[str, str]:
    if row is first:
        return "-", "-"
    difference = refusals_differ(first, row)
    if difference is None:
        return "too few", "-"
    return f"{difference.z:+.2f}", "<0.0001" if difference.p < 0.0001 else f"{difference.p:.4f}"
