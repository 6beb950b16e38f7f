"""Metrics of several processes as one: what each has counted, as values that travel, and their sum.

Counters and histograms are added up, and go on counting what a process that has gone had told. Gauges are the sum of
those that live, except that an ``_info`` is 1 however many agree on it.
"""

from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_COUNTING = frozenset(("counter", "histogram"))

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with all its series: each a sample's name, its labels in order, and its value."""

    name: str
    documentation: str
    type: str
    series: tuple[tuple[SeriesKey, float], ...]


def families_of(registry: CollectorRegistry) -> tuple[Family, ...]:
    """What a process has counted so far."""
    return tuple(
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            tuple(((sample.name, tuple(sample.labels.items())), sample.value) for sample in metric.samples),
        )
        for metric in registry.collect()
    )


def counting(families: Iterable[Family]) -> tuple[Family, ...]:
    """Those that stay true of a process that has gone."""
    return tuple(family for family in families if family.type in _COUNTING)


def summed(processes: Iterable[Iterable[Family]]) -> tuple[Family, ...]:
    """Each metric once, over all processes."""
    found: dict[str, Family] = {}
    series: dict[str, dict[SeriesKey, float]] = {}
    for families in processes:
        for family in families:
            found[family.name] = family
            sums = series.setdefault(family.name, {})
            for key, value in family.series:
                sums[key] = _together(key[0], sums[key], value) if key in sums else value
    return tuple(Family(name, f.documentation, f.type, tuple(series[name].items())) for name, f in found.items())


def _together(name: str, one: float, other: float) -> float:
    if name.endswith("_created"):  # since when the sum is counted
        return min(one, other)
    return max(one, other) if name.endswith("_info") else one + other


def exposition(families: Iterable[Family]) -> bytes:
    """Prometheus's text format."""
    return generate_latest(_Told(families))


class _Told(Collector):
    """Families in the library's own shape."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.type)
            metric.samples = [Sample(name, dict(labels), value) for (name, labels), value in family.series]
            yield metric
