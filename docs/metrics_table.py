"""Writes the tables of `docs/metrics.md` from the code: `python docs/metrics_table.py`. A test holds them together."""

from collections import Counter
from pathlib import Path

from prometheus_client import CollectorRegistry

from edge_agent.draft_only import DraftOnlyMetrics
from edge_agent.journal.metrics import JournalMetrics
from edge_agent.metrics import EdgeMetrics
from edge_agent.stream_metrics import StreamMetrics
from edge_agent.verifier_pool_metrics import VerifierPoolMetrics
from specedge.block_pool import BlockPool
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_stats import DrafterStats
from specedge.tls.metrics import CertificateMetrics
from specedge_verifier.forecast import forecast
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.rank_metrics import RankMetrics
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.stream_metrics import StreamProcessMetrics
from specedge_verifier.stream_plan import StreamCounts
from specedge_verifier.tenant_account import TenantAccount
from specedge_verifier.tenant_metrics import TenantMetrics

PAGE = Path(__file__).with_name("metrics.md")
BEGIN, END = "<!-- tables: written by docs/metrics_table.py -->\n", "<!-- end of tables -->\n"


def edge_registry() -> CollectorRegistry:
    """Everything an edge agent may show."""
    metrics, stats = EdgeMetrics(lambda: "model"), DrafterStats()
    StreamMetrics(metrics)
    metrics.costs(price_per_hour=1.0)
    CertificateMetrics(metrics.registry, "specedge_edge")
    DraftMetrics(metrics.registry, "specedge_edge", metrics.draft_step).watch(stats, BlockPool(1, 1))
    metrics.registry.register(LookupMetrics("specedge_edge", stats.lookup))
    metrics.registry.register(VerifierPoolMetrics(tuple, lambda: 0.0))
    JournalMetrics(metrics.registry)
    DraftOnlyMetrics(metrics.registry)
    return metrics.registry


def verifier_registry() -> CollectorRegistry:
    """Everything a verifier may show; the draft families are those of system server-only."""
    scheduler = Scheduler(BlockPool(1, 16), SchedulerLimits(1, 16, 0), StepTime(16, [(1, 0.01)]))
    metrics = VerifierMetrics("model", scheduler)
    metrics.costs(price_per_hour=1.0)
    metrics.registry.register(RankMetrics(None))
    metrics.forecasts(lambda: forecast(scheduler, 0, 0.0))
    stats = DrafterStats()
    DraftMetrics(metrics.registry, "specedge_verifier", metrics.draft_step).watch(stats, BlockPool(1, 1))
    metrics.registry.register(LookupMetrics("specedge_verifier", stats.lookup))
    CertificateMetrics(metrics.registry, "specedge_verifier")
    Handshakes(metrics.registry)
    metrics.registry.register(TenantMetrics(lambda: [TenantAccount()], Counter()))
    metrics.registry.register(StreamProcessMetrics(lambda: [StreamCounts()]))
    return metrics.registry


def rows(registry: CollectorRegistry) -> list[str]:
    """A line for each family, sorted by name as they are queried."""
    lines = []
    for collector in registry._collector_to_names:
        for family in collector.collect():
            names: set[str] = {name for sample in family.samples for name in sample.labels}
            names |= {*getattr(collector, "_labelnames", ()), *getattr(family, "_labelnames", ())}
            labels = ", ".join(f"`{name}`" for name in sorted(names - {"le"}))
            name = f"{family.name}_total" if family.type == "counter" else family.name
            lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return sorted(lines)


def written() -> str:
    """The tables as Markdown."""
    parts = []
    for title, registry in (("Edge agent", edge_registry()), ("Verifier", verifier_registry())):
        parts.append(
            "\n".join((f"## {title}\n", "| metric | type | labels | meaning |", "|---|---|---|---|", *rows(registry)))
        )
    return "\n" + "\n\n".join(parts) + "\n\n"


def page(text: str) -> str:
    """A page with its tables made anew."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + written() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
