"""The edge agent's Prometheus metrics: its own names, and the names vLLM's dashboards and tools read.

Labels take values from small sets only: fixed ones, and the names in the file of API keys. The `vllm:` families are
views of our own ones, made when scraped.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specedge import __version__
from specedge.model.execution import Execution
from specedge.vllm_metrics import Alias, VllmAliases

logger = logging.getLogger(__name__)

_TTFT_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_DRAFT_STEP_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
_ROUND_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Slo:
    """What users are promised: an answer meets it if its time to first token and its mean ITL per token both do."""

    ttft_s: float = 1.0
    itl_s: float = 0.1


class EdgeMetrics:
    """All metrics of one edge agent, in a registry of their own.

    Args:
        model_name: what clients call the model; asked for at each scrape since the verifier may give it late, "" until
            then.
        slo: what answers are measured against.

    Attributes:
        model_name, slo: these.
        target_model: what the verifier calls the model, likewise.
    """

    def __init__(self, model_name: Callable[[], str] = lambda: "", slo: Slo | None = None) -> None:
        self.registry = CollectorRegistry()
        self.model_name = self.target_model = model_name
        self.slo = Slo() if slo is None else slo
        self._create_request_metrics()
        self._create_speculation_metrics()
        self._create_network_metrics()
        self._create_key_metrics()
        self.registry.register(VllmAliases(self._aliases(), lambda: self.model_name()))
        self.registry.register(_Info(lambda: self.model_name(), lambda: self.target_model()))

    def drafts_with(self, execution: Execution) -> None:
        """Show what computes the draft model."""
        logger.info("draft model: %s", execution)
        self._draft_execution.labels(**asdict(execution)).set(1)

    def costs(self, price_per_hour: float | None) -> None:
        """Show what the edge's device costs, in dollars; an unknown price is not shown."""
        if price_per_hour is not None:
            price = Gauge(
                "specedge_edge_price_dollars_per_second",
                "Dollars that a second of its device costs",
                registry=self.registry,
            )
            price.set(price_per_hour / 3600)

    def _create_request_metrics(self) -> None:
        name, registry = "specedge_edge_", self.registry
        self.http_requests = Counter(
            f"{name}http_requests", "HTTP requests answered", ["endpoint", "status"], registry=registry
        )
        self.refused_unread = Counter(
            f"{name}requests_refused_unread",
            "Requests refused before their bodies were looked at, because the verifiers had just refused every session",
            registry=registry,
        )
        self.running = Gauge(f"{name}requests_running", "Answers past their first token", registry=registry)
        self.waiting = Gauge(f"{name}requests_waiting", "Answers before their first token", registry=registry)
        self.finished = Counter(f"{name}answers", "Answers ended, by reason", ["finished_reason"], registry=registry)
        for reason in ("stop", "length", "abort", "error"):
            self.finished.labels(reason)
        self.prompt_tokens = Counter(f"{name}prompt_tokens", "Prompt tokens of started answers", registry=registry)
        self.cached_tokens = Counter(
            f"{name}cached_prompt_tokens", "Prompt tokens found in the verifier's prefix cache", registry=registry
        )
        self.generated_tokens = Counter(f"{name}generated_tokens", "Tokens of answers", registry=registry)
        slo_answers = Counter(
            f"{name}slo_answers", "Answers that ended well, by whether they met the SLO", ["met"], registry=registry
        )
        self.slo_answers = {is_met: slo_answers.labels("yes" if is_met else "no") for is_met in (True, False)}
        self.slo_tokens = Counter(f"{name}slo_tokens", "Tokens of answers that met the SLO", registry=registry)
        limits = Gauge(
            f"{name}slo_seconds", "Limits of the SLO in seconds, by what is limited", ["of"], registry=registry
        )
        limits.labels("time_to_first_token").set(self.slo.ttft_s)
        limits.labels("inter_token").set(self.slo.itl_s)
        self.first_token = Histogram(
            f"{name}time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token",
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        self.inter_token = Histogram(
            f"{name}inter_token_seconds",
            "Seconds between tokens: a burst's gap shared by its tokens",
            buckets=_ITL_BUCKETS_S,
            registry=registry,
        )
        self.inter_burst = Histogram(
            f"{name}inter_burst_seconds",
            "Seconds between bursts, the tokens of one verdict",
            buckets=_ITL_BUCKETS_S,
            registry=registry,
        )
        self.answer_seconds = Histogram(
            f"{name}answer_seconds",
            "Seconds from a request's arrival to its last token",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )

    def _create_speculation_metrics(self) -> None:
        name, registry = "specedge_edge_", self.registry
        self.verifications = Counter(
            f"{name}verifications", "Verifications that had draft nodes to verify", registry=registry
        )
        self.drafted_nodes = Counter(f"{name}drafted_nodes", "Draft nodes sent to the verifier", registry=registry)
        self.verified_nodes = Counter(f"{name}verified_draft_nodes", "Draft nodes verified", registry=registry)
        self.accepted_nodes = Counter(f"{name}accepted_draft_nodes", "Draft nodes accepted", registry=registry)
        self.accepted_at_depth = Counter(
            f"{name}accepted_draft_nodes_by_depth", "Draft nodes accepted, by depth", ["depth"], registry=registry
        )
        self.draft_step = Histogram(
            f"{name}draft_step_seconds",
            "Seconds of a draft step of all sessions: choosing rows, forward, growing the tries",
            buckets=_DRAFT_STEP_BUCKETS_S,
            registry=registry,
        )

        names = [field.name for field in fields(Execution)]
        self._draft_execution = Gauge(
            f"{name}draft_execution_info", "1; the labels say what computes the draft model", names, registry=registry
        )

    def _create_network_metrics(self) -> None:
        name, registry = "specedge_edge_", self.registry
        self.round = Histogram(
            f"{name}round_seconds",
            "Seconds from a draft's first message to the verdict on it",
            buckets=_ROUND_BUCKETS_S,
            registry=registry,
        )
        parts = Counter(
            f"{name}round_part_seconds",
            "Seconds of rounds, by part: waiting on the verifier (queue), its step, and the rest (network)",
            ["part"],
            registry=registry,
        )
        self.round_parts = {part: parts.labels(part) for part in ("queue", "step", "network")}
        self.round_trip = Histogram(
            f"{name}round_trip_seconds",
            "Seconds of a ping to the verifier and back; there is one every second",
            buckets=_ROUND_BUCKETS_S,
            registry=registry,
        )
        self.stream_open = Histogram(
            f"{name}stream_open_seconds",
            "Seconds from opening a stream to the verifier's admission",
            buckets=_ROUND_BUCKETS_S,
            registry=registry,
        )
        self.bytes = Counter(
            f"{name}verifier_bytes",
            "Bytes exchanged with the verifier, by direction (up is to the verifier)",
            ["direction"],
            registry=registry,
        )
        self.reconnects = Counter(f"{name}reconnects", "Streams that broke and were opened again", registry=registry)
        self.failovers = Counter(
            f"{name}failovers", "Answers that went on at another verifier, each time counted", registry=registry
        )
        self.resumed_tokens = Counter(
            f"{name}resumed_tokens", "Committed tokens sent again to resume answers", registry=registry
        )
        self.failed_handshakes = Counter(
            f"{name}failed_handshakes",
            "Attempts that found no TLS connection to the verifier possible, at most one in 5 s",
            ["reason"],
            registry=registry,
        )
        self.drafts_refused = Counter(
            f"{name}drafts_refused",
            "Answers that went on without drafts because the verifier refused them",
            registry=registry,
        )
        self.answers_lost = Counter(
            f"{name}answers_lost", "Answers given up because no verifier went on with them", registry=registry
        )

    def _create_key_metrics(self) -> None:
        """What each API key has used, by its name in the key file; without such a file these have no samples."""
        name, registry = "specedge_edge_", self.registry
        self.key_requests = Counter(f"{name}key_requests", "POST requests let through", ["key"], registry=registry)
        self.key_prompt_tokens = Counter(
            f"{name}key_prompt_tokens", "Prompt tokens of answers, as in their usage", ["key"], registry=registry
        )
        self.key_generated_tokens = Counter(
            f"{name}key_generated_tokens", "Tokens of answers, as in their usage", ["key"], registry=registry
        )
        self.refused_requests = Counter(
            f"{name}refused_requests",
            "Requests refused for want of a known key (which then is empty) or by a key's limits",
            ["key", "reason"],
            registry=registry,
        )

    def refused_head(self, status: int) -> None:
        """Counts what was refused before it was a request for anything."""
        self.http_requests.labels("other", str(status)).inc()

    def _aliases(self) -> list[Alias]:
        return [
            Alias(self.first_token, "time_to_first_token_seconds"),
            Alias(self.inter_burst, "inter_token_latency_seconds"),
            Alias(self.answer_seconds, "e2e_request_latency_seconds"),
            Alias(self.stream_open, "request_queue_time_seconds"),
            Alias(self.running, "num_requests_running"),
            Alias(self.waiting, "num_requests_waiting"),
            Alias(self.prompt_tokens, "prompt_tokens"),
            Alias(self.generated_tokens, "generation_tokens"),
            Alias(self.finished, "request_success"),
            Alias(self.prompt_tokens, "prefix_cache_queries"),
            Alias(self.cached_tokens, "prefix_cache_hits"),
            Alias(self.verifications, "spec_decode_num_drafts"),
            Alias(self.verified_nodes, "spec_decode_num_draft_tokens"),
            Alias(self.accepted_nodes, "spec_decode_num_accepted_tokens"),
            Alias(self.accepted_at_depth, "spec_decode_num_accepted_tokens_per_pos", zero_based=("depth", "position")),
        ]


class _Info(Collector):
    """Says which edge agent runs and what it serves; names are empty until the verifier has told them."""

    def __init__(self, model_name: Callable[[], str], target_model: Callable[[], str]) -> None:
        self._model_name = model_name
        self._target_model = target_model

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        info = GaugeMetricFamily(
            "specedge_edge_info",
            "1; the labels say which edge agent runs, what the verifier calls its model and what clients call it",
            labels=["version", "model", "served_model"],
        )
        info.add_metric([__version__, self._target_model(), self._model_name()], 1)
        yield info
