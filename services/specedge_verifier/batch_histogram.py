"""A Prometheus histogram that takes many values at a time, for what a step observes once per session."""

from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class BatchHistogram(Collector):
    """A histogram without labels; written by one thread, read by any.

    Args:
        name, documentation: as shown.
        buckets: upper bounds, ascending, in the unit of the values; one without bound comes after them.
        registry: where it is shown.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.array(buckets)
        self._bound_names = [*map(str, buckets), "+Inf"]
        self._totals = (np.zeros(len(buckets) + 1, dtype=np.int64), 0.0)  # values by bucket, and their sum
        registry.register(self)

    def observe(self, values: Sequence[float]) -> None:
        """Take in values."""
        if len(values) > 0:
            counts, total = self._totals
            found = np.bincount(np.searchsorted(self._bounds, values), minlength=len(counts))
            self._totals = (counts + found, total + float(np.sum(values)))  # one assignment: never half seen

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `Collector.collect`."""
        counts, total = self._totals
        buckets = list(zip(self._bound_names, np.cumsum(counts).tolist(), strict=True))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets=buckets, sum_value=total)
        yield family
