"""The verifier's Prometheus metrics: our own names, and vLLM's beside them for the tools that read those.

Labels take values from small fixed sets only; never a session's, a client's or a request's name.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, Final, get_args

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from specedge import __version__
from specedge.model.execution import Execution
from specedge.vllm_metrics import Alias, VllmAliases
from specedge_verifier.batch_histogram import BatchHistogram
from specedge_verifier.forecast import Forecast
from specedge_verifier.plain_counter import PlainCounter
from specedge_verifier.scheduler import Scheduler
from specedge_verifier.scheduler_metrics import scheduler_metrics
from specedge_verifier.step_report import StepReport
from specedge_verifier.stream_observer import Direction

logger = logging.getLogger(__name__)

_STEP_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_QUEUE_BUCKETS_S: Final = (*(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),)
_ROW_BUCKETS: Final = tuple(float(1 << exponent) for exponent in range(12))
_MAX_DEPTH: Final = 32
"""Deeper nodes are counted at this depth: labels stay few."""

_PHASES: Final = ("draft", "schedule", "forward", "sample", "settle", "all")


class VerifierMetrics:
    """Implements `EngineObserver` and `StreamObserver`; owns its registry.

    Args:
        model_name: the target.
        scheduler: read at scrape time (plain integers, safe from any thread).
    """

    def __init__(self, model_name: str, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "specedge_verifier"}
        self._create_step_metrics(own)
        self._create_speculation_metrics(own)
        self._create_stream_metrics(own)
        info = Gauge("info", "1; the labels say which verifier runs and what it serves", ["version", "model"], **own)
        info.labels(__version__, model_name).set(1)
        names = [field.name for field in fields(Execution)]
        self._execution = Gauge("execution_info", "1; the labels say what computes a model", ["model", *names], **own)
        self._own = own
        aliases = [*self._aliases(), *scheduler_metrics(scheduler, self.registry)]
        self.registry.register(VllmAliases(aliases, lambda: model_name))

    def _create_step_metrics(self, own: dict[str, Any]) -> None:
        steps = Histogram(
            "step_seconds", "Seconds of an engine step, by phase", ["phase"], buckets=_STEP_BUCKETS_S, **own
        )
        self._phases = {phase: steps.labels(phase) for phase in _PHASES}
        self.draft_step = Histogram(
            "draft_step_seconds", "Seconds of a draft step beside the target", buckets=_STEP_BUCKETS_S, **own
        )
        self._num_rows = Histogram(
            "step_rows", "Tokens computed in a step: of prompts, roots and draft nodes", buckets=_ROW_BUCKETS, **own
        )
        self._sessions = Histogram("step_sessions", "Sessions in a step", buckets=_ROW_BUCKETS, **own)
        self._queue = BatchHistogram(
            "specedge_verifier_queue_seconds",
            "Seconds a session was ready before its step began",
            _QUEUE_BUCKETS_S,
            self.registry,
        )
        self._admission = BatchHistogram(
            "specedge_verifier_admission_seconds",
            "Seconds from a session's arrival until its first step began",
            _QUEUE_BUCKETS_S,
            self.registry,
        )
        self._rows = Counter("rows", "Tokens computed, by what they are", ["kind"], **own)
        self._kinds = {kind: self._rows.labels(kind) for kind in ("prefill", "root", "draft")}
        self._committed = Counter("committed_tokens", "Tokens of answers", **own)
        self._moved = Counter("kv_moved_tokens", "Accepted tokens whose KV was copied", **own)

    def _create_speculation_metrics(self, own: dict[str, Any]) -> None:
        self._verifications = Counter("verifications", "Verifications that had draft nodes to verify", **own)
        self._accepted = Counter("accepted_draft_nodes", "Draft nodes accepted", **own)
        verified = Counter("verified_draft_nodes_by_depth", "Draft nodes verified, by depth", ["depth"], **own)
        self._accepted_by_depth = Counter(
            "accepted_draft_nodes_by_depth", "Draft nodes accepted, by depth", ["depth"], **own
        )
        depths = [str(depth + 1) for depth in range(_MAX_DEPTH)]
        self._verified_at = [verified.labels(depth) for depth in depths]
        self._accepted_at = [self._accepted_by_depth.labels(depth) for depth in depths]
        following = Counter(
            "verdicts",
            "Verdicts after which an answer goes on, by whether live draft nodes were there already (drafted) or not "
            "(bare)",
            ["next"],
            **own,
        )
        self._drafted_next, self._bare_next = following.labels("drafted"), following.labels("bare")

    def _create_stream_metrics(self, own: dict[str, Any]) -> None:
        self._bytes = PlainCounter(
            "specedge_verifier_wire_bytes",
            "Bytes exchanged with edges, by direction (up is from the edges)",
            "direction",
            get_args(Direction),
            self.registry,
        )
        self._rejected = Counter(
            "rejected_sessions", "Sessions refused or ended with an error, by gRPC status", ["reason"], **own
        )
        for status in grpc.StatusCode:  # each is there from the beginning: the first refusal is an increase too
            if status is not grpc.StatusCode.OK:
                self._rejected.labels(status.name)

    def _aliases(self) -> list[Alias]:
        return [
            Alias(self._admission, "request_queue_time_seconds"),
            Alias(self._rows, "prompt_tokens", only={"kind": "prefill"}),
            Alias(self._committed, "generation_tokens"),
            Alias(self._verifications, "spec_decode_num_drafts"),
            Alias(self._rows, "spec_decode_num_draft_tokens", only={"kind": "draft"}),
            Alias(self._accepted, "spec_decode_num_accepted_tokens"),
            Alias(
                self._accepted_by_depth,
                "spec_decode_num_accepted_tokens_per_pos",
                zero_based=("depth", "position"),
            ),
        ]

    def runs(self, model: str, execution: Execution) -> None:
        """Show what computes a model, "target" or "draft"."""
        logger.info("%s model: %s", model, execution)
        self._execution.labels(model=model, **asdict(execution)).set(1)

    def costs(self, price_per_hour: float | None) -> None:
        """Show what the verifier's device costs, in dollars; an unknown price is not shown."""
        if price_per_hour is not None:
            price = Gauge("price_dollars_per_second", "Dollars that a second of its device costs", **self._own)
            price.set(price_per_hour / 3600)

    def forecasts(self, picture: Callable[[], Forecast]) -> None:
        """Show what the engine's latest picture says of its queue."""
        for name, documentation, read in (
            ("queued_tokens", "Tokens of prompts that wait to be computed", lambda: picture().num_queued_tokens),
            (
                "predicted_ttft_seconds",
                "Seconds to the first token predicted for a short prompt that comes now; beyond max_predicted_ttft_s "
                "sessions are refused",
                lambda: picture().predicted_ttft_s,
            ),
        ):
            Gauge(name, documentation, **self._own).set_function(read)

    def step(self, report: StepReport) -> None:
        """Book a finished step."""
        for phase, seconds in self._phases.items():
            seconds.observe(report.step_s if phase == "all" else getattr(report, f"{phase}_s"))
        num_rows = report.num_prefill + report.num_nodes + len(report.queue_s)
        self._num_rows.observe(num_rows)
        self._sessions.observe(report.num_sessions)
        self._queue.observe(report.queue_s)
        self._admission.observe(report.admission_s)
        self._kinds["prefill"].inc(report.num_prefill)
        self._kinds["root"].inc(len(report.queue_s))
        self._kinds["draft"].inc(report.num_nodes)
        self._moved.inc(report.num_moved)
        self._committed.inc(report.num_committed)
        self._verifications.inc(len(report.accepted_depths))
        self._accepted.inc(report.num_accepted)
        self._drafted_next.inc(report.num_drafted_next)
        self._bare_next.inc(report.num_bare_next)
        _count_by_depth(self._verified_at, report.nodes_by_depth)
        deepest = max(report.accepted_depths, default=0)
        _count_by_depth(
            self._accepted_at, [sum(length > depth for length in report.accepted_depths) for depth in range(deepest)]
        )

    def wire_bytes(self, direction: Direction, num_bytes: int) -> None:
        """See `StreamObserver`."""
        self._bytes.totals[direction] += num_bytes

    def rejected(self, reason: str) -> None:
        """See `StreamObserver`."""
        self._rejected.labels(reason).inc()


def _count_by_depth(counters: Sequence[Counter], counts: Sequence[int]) -> None:
    for depth, count in enumerate(counts):
        counters[min(depth, len(counters) - 1)].inc(count)
