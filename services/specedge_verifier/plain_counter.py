"""A counter that one thread adds to thousands of times a second, without the lock that a Prometheus counter takes."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class PlainCounter(Collector):
    """A counter with one label; other threads read it at scrape time.

    Args:
        name, documentation, label: as of any counter.
        values: of the label.
        registry: where it is shown.

    Attributes:
        totals: by value of the label; to be added to.
    """

    def __init__(
        self, name: str, documentation: str, label: str, values: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self.totals = dict.fromkeys(values, 0)
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `Collector.collect`."""
        family = CounterMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, total in self.totals.items():
            family.add_metric([value], total)
        yield family
