"""What each process that serves streams carries, for Prometheus; read when asked."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from specedge_verifier.stream_plan import StreamCounts

_PREFIX = "specedge_verifier_stream_process_"


class StreamProcessMetrics(Collector):
    """Metrics with the label `process`, counted from 0.

    Args:
        counts: the last that each process has told; read from any thread.
    """

    def __init__(self, counts: Callable[[], Sequence[StreamCounts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """See `Collector.collect`."""
        streams = GaugeMetricFamily(
            _PREFIX + "streams", "Streams open in a process that serves streams (stream_processes)", labels=["process"]
        )
        cpu = CounterMetricFamily(
            _PREFIX + "cpu_seconds", "CPU seconds of a process that serves streams", labels=["process"]
        )
        for index, counts in enumerate(self._counts()):
            streams.add_metric([str(index)], counts.num_streams)
            cpu.add_metric([str(index)], counts.cpu_s)
        yield from (streams, cpu)
