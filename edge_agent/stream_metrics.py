"""What happens on the streams to the verifier, as Prometheus metrics."""

from typing import Final

from edge_agent.metrics import EdgeMetrics
from specedge.wire.messages import SessionOpened, Verdict

_MAX_DEPTH: Final = 32
"""Deeper nodes are counted at this depth: labels stay few."""


class StreamMetrics:
    """A `StreamObserver` that writes into the process's metrics."""

    def __init__(self, metrics: EdgeMetrics) -> None:
        self._metrics = metrics
        self._accepted_at_depth = [metrics.accepted_at_depth.labels(str(depth + 1)) for depth in range(_MAX_DEPTH)]
        self._bytes_up = metrics.bytes.labels("up")
        self._bytes_down = metrics.bytes.labels("down")

    def opened(self, message: SessionOpened, open_s: float, num_resumed_tokens: int) -> None:
        """Counts cached prompt tokens of new sessions, and the tokens that resumed ones had to bring again."""
        self._metrics.stream_open.observe(open_s)
        if num_resumed_tokens:
            self._metrics.resumed_tokens.inc(num_resumed_tokens)
        else:
            self._metrics.cached_tokens.inc(message.num_cached_tokens)

    def sent(self, num_bytes: int, num_nodes: int) -> None:
        """Counts bytes and draft nodes."""
        self._bytes_up.inc(num_bytes)
        self._metrics.drafted_nodes.inc(num_nodes)

    def received(self, num_bytes: int) -> None:
        """Counts bytes."""
        self._bytes_down.inc(num_bytes)

    def verdict(self, message: Verdict, round_s: float | None) -> None:
        """Counts verification and acceptance."""
        metrics = self._metrics
        if round_s is not None:
            metrics.round.observe(round_s)
            # A step may have begun before the draft was sent: what survived the last verdict needs no draft.
            step_s = min(1e-6 * message.step_us, round_s)
            queue_s = min(1e-6 * message.queue_us, round_s - step_s)
            metrics.round_parts["step"].inc(step_s)
            metrics.round_parts["queue"].inc(queue_s)
            metrics.round_parts["network"].inc(round_s - step_s - queue_s)
        if message.num_nodes_verified:
            metrics.verifications.inc()
            metrics.verified_nodes.inc(message.num_nodes_verified)
            metrics.accepted_nodes.inc(message.num_accepted)
            for depth in range(message.num_accepted):
                self._accepted_at_depth[min(depth, _MAX_DEPTH - 1)].inc()

    def round_trip(self, seconds: float) -> None:
        """Takes the time of a ping."""
        self._metrics.round_trip.observe(seconds)

    def drafts_refused(self) -> None:
        """Counts fallbacks to plain decoding."""
        self._metrics.drafts_refused.inc()

    def broken(self, reason: str) -> None:
        """Counts reconnections."""
        self._metrics.reconnects.inc()

    def failed_over(self) -> None:
        """Counts failovers."""
        self._metrics.failovers.inc()

    def gave_up(self, reason: str) -> None:
        """Counts answers lost."""
        self._metrics.answers_lost.inc()

    def handshake_failed(self, reason: str) -> None:
        """Counts handshakes by reason."""
        self._metrics.failed_handshakes.labels(reason).inc()
