"""The drafter's work as Prometheus metrics: each step as it happens, its totals and slots when scraped."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from specedge.block_pool import BlockPool
from specedge.drafting.draft_stats import DrafterStats, LookupStats, StepReport
from specedge.drafting.lookup_acceptance import SOURCES

_LEAD_BUCKETS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class DraftMetrics(Collector):
    """Give `step` to the drafter as `on_step`, then `watch` its statistics.

    Args:
        registry: where the totals are shown.
        prefix: of their names.
        durations: takes the duration of each step, in seconds.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, durations: Histogram) -> None:
        self._registry = registry
        self._prefix = prefix
        self._durations = durations
        self._stats = DrafterStats()
        self._pool: BlockPool | None = None

    def step(self, report: StepReport) -> None:
        """Takes the duration of a step; may be called on any thread."""
        self._durations.observe(report.schedule_s + report.forward_s + report.settle_s)

    def watch(self, stats: DrafterStats, pool: BlockPool) -> None:
        """Shows these totals from now on."""
        self._stats, self._pool = stats, pool
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """No families: nothing has to be read to register this collector."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The totals of this moment."""
        stats = self._stats
        for name, documentation, value in (
            ("draft_rows", "Rows of draft forwards", stats.num_rows),
            ("draft_session_steps", "Sessions in draft forwards, each time counted", stats.num_session_steps),
            ("draft_computed_tokens", "Committed tokens computed by the draft model", stats.num_computed),
            ("draft_nodes", "Nodes added to draft tries", stats.num_drafted),
            ("confirmed_draft_nodes", "Draft nodes that a verdict committed", stats.num_confirmed),
            (
                "late_draft_results",
                "Draft results that came after the verdict that killed them",
                stats.num_late_results,
            ),
            (
                "draft_rests",
                "Times a session, or all, stopped drafting for a while because hardly anything was accepted",
                stats.num_rests,
            ),
            ("draft_sessions_starved", "Times a session had to give its slots up", stats.num_starved),
            ("draft_memory_shortages", "Draft steps given up for want of memory", stats.num_shortages),
        ):
            yield CounterMetricFamily(f"{self._prefix}_{name}", documentation, value=value)
        wasted = {reason: stats.wasted[reason] for reason in ("rejected", "trimmed", "guess_missed", "released")}
        yield self._by_label(
            "wasted_draft_nodes",
            "Draft nodes lost: rejected by a verdict, trimmed by the budget, by a wrong guess, or with their session",
            "reason",
            wasted,
        )
        guesses = {"hit": stats.num_guesses_hit, "missed": stats.num_guesses_missed}
        yield self._by_label("draft_guesses", "Expansion heads guessed, by outcome", "outcome", guesses)
        yield self._leads()
        if self._pool is not None:
            slots = GaugeMetricFamily(f"{self._prefix}_draft_kv_slots", "KV slots of the draft model", labels=["state"])
            slots.add_metric(["held"], self._pool.num_held)
            slots.add_metric(["free"], self._pool.num_free)
            yield slots

    def _leads(self) -> Metric:
        family = HistogramMetricFamily(
            f"{self._prefix}_draft_lead_tokens", "Tokens the draft reaches beyond the committed text after a verdict"
        )
        counts = list(self._stats.leads)
        buckets = [(str(float(bound)), float(sum(counts[: bound + 1]))) for bound in _LEAD_BUCKETS]
        family.add_metric([], [*buckets, ("+Inf", float(sum(counts)))], self._stats.num_lead_tokens)
        return family

    def _by_label(self, name: str, documentation: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}_{name}", documentation, labels=[label])
        for value, count in values.items():
            family.add_metric([value], count)
        return family


class LookupMetrics(Collector):
    """Nodes that were looked up, by source, as Prometheus metrics; the draft model's are the others.

    Args:
        prefix: of the names.
        stats: the totals.
    """

    def __init__(self, prefix: str, stats: LookupStats) -> None:
        self._prefix = prefix
        self._stats = stats

    def describe(self) -> list[Metric]:
        """No families: nothing has to be read to register this collector."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The totals of this moment."""
        for name, documentation, counts in (
            ("lookup_draft_nodes", "Nodes looked up and added to draft tries, by source", self._stats.drafted),
            (
                "confirmed_lookup_draft_nodes",
                "Nodes looked up that a verdict committed, by source",
                self._stats.confirmed,
            ),
        ):
            family = CounterMetricFamily(f"{self._prefix}_{name}", documentation, labels=["source"])
            for source in SOURCES:
                family.add_metric([source], counts[source])
            yield family
