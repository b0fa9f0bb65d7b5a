"""How many ranks compute the target, and what it takes to keep them together, for Prometheus."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from specedge.model.ranks import Ranks


class RankMetrics(Collector):
    """Read from the group when asked.

    Args:
        ranks: None where one process computes all.
    """

    def __init__(self, ranks: Ranks | None) -> None:
        self._ranks = ranks

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """See `Collector.collect`."""
        ranks = self._ranks
        yield GaugeMetricFamily(
            "specedge_verifier_tensor_parallel_size",
            "Processes that hold the target together",
            value=1 if ranks is None else ranks.size,
        )
        yield CounterMetricFamily(
            "specedge_verifier_broadcast_bytes",
            "Bytes of batches that rank 0 has broadcast to the other ranks, each once however many there are",
            value=0 if ranks is None else ranks.num_bytes,
        )
