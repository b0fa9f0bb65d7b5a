"""The verifiers of a pool as Prometheus metrics, made when scraped: those that left the pool are gone from them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_agent.verifier_member import STATES, VerifierMember


class VerifierPoolMetrics(Collector):
    """Label values are the addresses in the operator's own list, `MAX_VERIFIERS` at most.

    Args:
        members: the pool's.
        now_s: the event loop's clock.
    """

    def __init__(
        self, members: Callable[[], Sequence[VerifierMember]], now_s: Callable[[], float] | None = None
    ) -> None:
        self._members = members
        self._now_s = asyncio.get_running_loop().time if now_s is None else now_s

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        name, now_s, members = "specedge_edge_verifier_", self._now_s(), self._members()
        state = GaugeMetricFamily(
            f"{name}state", "1 for how the verifier is seen now, 0 for the other ways", labels=["verifier", "state"]
        )
        sessions = GaugeMetricFamily(
            f"{name}sessions", "Answers of this edge that the verifier is at work on", labels=["verifier"]
        )
        load = GaugeMetricFamily(
            f"{name}load", "Sessions of all edges by places, as the verifier said last", labels=["verifier"]
        )
        opened = CounterMetricFamily(
            f"{name}sessions_opened", "Sessions of this edge that the verifier admitted", labels=["verifier"]
        )
        failed = CounterMetricFamily(
            f"{name}failures", "Streams and pings of this edge that failed at the verifier", labels=["verifier"]
        )
        for member in members:
            found = member.state(now_s)
            for word in STATES:
                state.add_metric([member.address, word], float(word == found))
            sessions.add_metric([member.address], len(member.sessions))
            load.add_metric([member.address], member.load)
            opened.add_metric([member.address], member.num_opened)
            failed.add_metric([member.address], member.num_failed)
        yield from (state, sessions, load, opened, failed)
