"""Counters that cost an addition: what is counted for every request must not look anything up, check or lock.

One thread counts. The registry reads the numbers when somebody asks for them.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class PlainCounter(Collector):
    """A counter with labels. A series is a list of one number: ``series[0] += 1`` counts."""

    def __init__(self, name: str, text: str, label_names: tuple[str, ...], *, registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._label_names = label_names
        self._series: dict[tuple[str, ...], list[int]] = {}
        registry.register(self)

    def labels(self, *values: str) -> list[int]:
        """The series of these labels, from 0 on; keep it."""
        return self._series.setdefault(values, [0])

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Every series as it stands."""
        family = CounterMetricFamily(self._name, self._text, labels=self._label_names)
        for values, (count,) in self._series.items():
            family.add_metric(values, count)
        yield family
