"""What is compared of a measured and a simulated cell, each figure defined as in docs/benchmarking.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.simulation_accuracy.measured import MeasuredCell
from benchmarks.simulation_accuracy.predicted import HostCosts
from specedge_bench.simulation.result import SimResult
from specedge_bench.statistics import percentiles

HELD = ("tokens_per_s", "itl_p50_ms", "itl_p95_ms")
"""Figures that a simulation is held to."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One cell's numbers.

    Attributes:
        tokens_per_s: of the whole cell.
        itl_p50_ms, itl_p95_ms: per token.
        burst_p50_ms, burst_p95_ms: pauses between bursts.
        tokens_per_verification, nodes_per_verification, sessions_per_step: means.
    """

    tokens_per_s: float
    itl_p50_ms: float
    itl_p95_ms: float
    burst_p50_ms: float
    burst_p95_ms: float
    tokens_per_verification: float
    nodes_per_verification: float
    sessions_per_step: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One cell, predicted and measured.

    Attributes:
        pace: of the real forwards.
        hosts: costs beside the forwards that the prediction was given.
        late: share of the target's and of the draft's forwards that took longer than their pace.
    """

    pace: str
    system: str
    num_users: int
    rtt_ms: float
    hosts: HostCosts
    late: tuple[float, float]
    measured: Figures
    predicted: Figures

    def difference(self, name: str) -> float:
        """By which share the prediction of a figure is above what was measured."""
        measured: float = getattr(self.measured, name)
        return float(getattr(self.predicted, name)) / measured - 1

    @property
    def worst(self) -> float:
        """The largest difference among the held figures."""
        return max((self.difference(name) for name in HELD), key=abs)


def measured_figures(cell: MeasuredCell) -> Figures:
    """From the users' clocks and the verifier's counters."""
    num_tokens = sum(request.num_tokens for request in cell.requests)
    token = percentiles([gap for request in cell.requests for gap in request.token_gaps_s()])
    burst = percentiles([gap for request in cell.requests for gap in request.burst_gaps_s()])
    num_verifications = cell.record.num_verifications
    return Figures(
        tokens_per_s=num_tokens / cell.record.wall_s,
        itl_p50_ms=1e3 * token.p50,
        itl_p95_ms=1e3 * token.p95,
        burst_p50_ms=1e3 * burst.p50,
        burst_p95_ms=1e3 * burst.p95,
        tokens_per_verification=num_tokens / num_verifications,
        nodes_per_verification=cell.record.num_nodes_verified / num_verifications,
        sessions_per_step=num_verifications / len(cell.steps),
    )


def predicted_figures(result: SimResult) -> Figures:
    """From virtual time."""
    return Figures(
        tokens_per_s=result.tokens_per_s,
        itl_p50_ms=result.itl_ms[0],
        itl_p95_ms=result.itl_ms[1],
        burst_p50_ms=result.burst_ms[0],
        burst_p95_ms=result.burst_ms[1],
        tokens_per_verification=result.tokens_per_verification,
        nodes_per_verification=result.nodes_per_verification,
        sessions_per_step=result.sessions_per_step,
    )


def late_shares(cell: MeasuredCell) -> tuple[float, float]:
    """Of the target's and of the draft's forwards."""
    return _late(cell, "target"), _late(cell, "draft")


def _late(cell: MeasuredCell, model: str) -> float:
    late: Sequence[bool] = [forward.is_late for forward in cell.forwards if forward.model == model]
    return sum(late) / len(late) if late else 0.0
