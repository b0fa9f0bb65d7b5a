"""The verifier's Prometheus metrics: our own names, and vLLM's beside them for the tools that read those."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from specedge import __version__
from specedge.model.execution import Execution
from specedge_verifier.batch_histogram import BatchHistogram
from specedge_verifier.core import StepReport
from specedge_verifier.scheduler import Scheduler

logger = logging.getLogger(__name__)

_STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_QUEUE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROW_BUCKETS = tuple(float(1 << exponent) for exponent in range(12))
_MAX_DEPTH = 16
_PHASES = ("draft", "schedule", "forward", "sample", "settle", "all")


class VerifierMetrics:
    """Implements `EngineObserver`; owns its registry.

    Args:
        model_name: the target, as a label of the `vllm:` set.
        scheduler: read at scrape time (plain integers, safe from any thread).
    """

    def __init__(self, model_name: str, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "specedge_verifier"}
        steps = Histogram("step_seconds", "Engine step by phase", ["phase"], buckets=_STEP_BUCKETS, **own)
        self._phases = {phase: steps.labels(phase) for phase in _PHASES}
        draft_help = "Draft step beside the target"
        self.draft_step = Histogram("draft_step_seconds", draft_help, buckets=_STEP_BUCKETS, **own)
        self._rows = Histogram("step_rows", "Rows per step", buckets=_ROW_BUCKETS, **own)
        self._sessions = Histogram("step_sessions", "Sessions per step", buckets=_ROW_BUCKETS, **own)
        queue_help = "Ready to step, per session"
        self._queue = BatchHistogram("specedge_verifier_queue_seconds", queue_help, _QUEUE_BUCKETS, self.registry)
        rows = Counter("rows", "Rows computed by kind", ["kind"], **own)
        self._kinds = {kind: rows.labels(kind) for kind in ("prefill", "root", "draft")}
        self._moved = Counter("kv_moved_tokens", "Accepted tokens whose KV was copied", **own)
        bytes_help = "gRPC payload bytes by direction"
        self._bytes = Counter("wire_bytes", bytes_help, ["direction"], **own)
        self._rejected = Counter("rejected_sessions", "Sessions refused or ended with an error", ["reason"], **own)
        Gauge("info", "Version of the running verifier", ["version"], **own).labels(__version__).set(1)
        names = [field.name for field in fields(Execution)]
        self._execution = Gauge("execution_info", "What computes a model", ["model", *names], **own)
        vllm: dict[str, Any] = {"registry": self.registry}
        label = ["model_name"]
        self._prompt = Counter("vllm:prompt_tokens", "Prefilled tokens", label, **vllm).labels(model_name)
        self._generated = Counter("vllm:generation_tokens", "Committed tokens", label, **vllm).labels(model_name)
        self._drafts = Counter("vllm:spec_decode_num_drafts", "Verified trees", label, **vllm).labels(model_name)
        self._drafted = Counter("vllm:spec_decode_num_draft_tokens", "Verified draft nodes", label, **vllm).labels(
            model_name
        )
        self._accepted = Counter("vllm:spec_decode_num_accepted_tokens", "Accepted nodes", label, **vllm).labels(
            model_name
        )
        per_position = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted nodes by depth", [*label, "position"], **vllm
        )
        self._accepted_at = [per_position.labels(model_name, str(depth)) for depth in range(_MAX_DEPTH)]
        self.registry.register(_SchedulerCollector(model_name, scheduler))

    def runs(self, model: str, execution: Execution) -> None:
        """Show what computes a model, "target" or "draft"."""
        logger.info("%s model: %s", model, execution)
        self._execution.labels(model=model, **asdict(execution)).set(1)

    def step(self, report: StepReport) -> None:
        """Book a finished step."""
        for phase, seconds in self._phases.items():
            seconds.observe(report.step_s if phase == "all" else getattr(report, f"{phase}_s"))
        num_rows = report.num_prefill + report.num_nodes + len(report.queue_s)
        self._rows.observe(num_rows)
        self._sessions.observe(report.num_sessions)
        self._queue.observe(report.queue_s)
        self._kinds["prefill"].inc(report.num_prefill)
        self._kinds["root"].inc(len(report.queue_s))
        self._kinds["draft"].inc(report.num_nodes)
        self._moved.inc(report.num_moved)
        self._prompt.inc(report.num_prefill)
        self._generated.inc(report.num_committed)
        self._drafts.inc(len(report.accepted_depths))
        self._drafted.inc(report.num_nodes)
        self._accepted.inc(report.num_accepted)
        for depth in range(min(max(report.accepted_depths, default=0), _MAX_DEPTH)):
            self._accepted_at[depth].inc(sum(length > depth for length in report.accepted_depths))

    def wire_bytes(self, direction: str, num_bytes: int) -> None:
        """Count gRPC payload; `direction` is "up" (from edges) or "down"."""
        self._bytes.labels(direction).inc(num_bytes)

    def rejected(self, reason: str) -> None:
        """Count a session refused or ended with an error; `reason` is a gRPC status name."""
        self._rejected.labels(reason).inc()


class _SchedulerCollector(Collector):
    """Reads the scheduler's own numbers when asked, so that steps do not maintain them twice."""

    def __init__(self, model_name: str, scheduler: Scheduler) -> None:
        self._model_name = model_name
        self._scheduler = scheduler

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        scheduler, pool = self._scheduler, self._scheduler.pool
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        values: list[tuple[Callable[..., GaugeMetricFamily | CounterMetricFamily], str, str, float]] = [
            (gauge, "vllm:num_requests_running", "Sessions in the running set", len(scheduler.running)),
            (gauge, "vllm:num_requests_waiting", "Sessions waiting for a place", len(scheduler.waiting)),
            (gauge, "vllm:kv_cache_usage_perc", "Held KV blocks, 0 to 1", pool.num_held / pool.num_blocks),
            (counter, "vllm:num_preemptions", "Sessions preempted for lack of blocks", scheduler.num_preemptions),
            (counter, "vllm:prefix_cache_queries", "Tokens looked up", pool.stats.queries * pool.block_size),
            (counter, "vllm:prefix_cache_hits", "Tokens found", pool.stats.hits * pool.block_size),
        ]
        for kind, name, text, value in values:
            family = kind(name, text, labels=["model_name"])
            family.add_metric([self._model_name], value)
            yield family
        blocks = GaugeMetricFamily("specedge_verifier_kv_blocks", "KV blocks by state", labels=["state"])
        blocks.add_metric(["held"], pool.num_held)
        blocks.add_metric(["free"], pool.num_free)
        yield blocks
        yield CounterMetricFamily("specedge_verifier_kv_evictions", "Cached blocks evicted", value=pool.stats.evictions)
