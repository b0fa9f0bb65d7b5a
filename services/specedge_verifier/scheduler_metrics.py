"""The scheduler's own numbers as Prometheus metrics, read when scraped, so that steps do not keep them twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specedge.block_pool import BlockPool
from specedge.vllm_metrics import Alias, Reading
from specedge_verifier.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class KvBlocks(Collector):
    """KV blocks by state."""

    pool: BlockPool

    def collect(self) -> Iterator[Metric]:
        """Every block is held or free; those that the prefix cache can find are some of both."""
        blocks = GaugeMetricFamily("specedge_verifier_kv_blocks", "KV blocks that are held, or free", labels=["state"])
        blocks.add_metric(["held"], self.pool.num_held)
        blocks.add_metric(["free"], self.pool.num_free)
        yield blocks


def scheduler_metrics(scheduler: Scheduler, registry: CollectorRegistry) -> list[Alias]:
    """Shows what the scheduler and its block pool count, and says what vLLM calls it.

    Args:
        scheduler: its plain integers are read from the thread that scrapes.
        registry: where they are shown.
    """
    pool = scheduler.pool
    stats, block_size = pool.stats, pool.block_size

    def reading(
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        documentation: str,
        read: Callable[[], float],
    ) -> Reading:
        shown = Reading(family, f"specedge_verifier_{name}", documentation, read)
        registry.register(shown)
        return shown

    def live_nodes() -> int:
        return sum(session.trie.num_live for session in list(scheduler.running))

    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    registry.register(KvBlocks(pool))
    reading(gauge, "kv_cached_blocks", "KV blocks the prefix cache can find, held or free", lambda: pool.num_cached)
    reading(counter, "kv_evictions", "KV blocks taken from the prefix cache for new tokens", lambda: stats.evictions)
    reading(gauge, "live_draft_nodes", "Draft nodes of running sessions that no verdict has ruled out", live_nodes)
    running = reading(gauge, "sessions_running", "Sessions in the running set", lambda: len(scheduler.running))
    waiting = reading(gauge, "sessions_waiting", "Sessions that wait for a place", lambda: len(scheduler.waiting))
    usage = reading(
        gauge, "kv_usage_ratio", "Share of the KV blocks that is held, 0 to 1", lambda: pool.num_held / pool.num_blocks
    )
    preempted = reading(
        counter,
        "preemptions",
        "Sessions sent back to the queue for lack of KV blocks",
        lambda: scheduler.num_preemptions,
    )
    reading(
        counter,
        "memory_shortages",
        "Steps given up for want of memory, and tried again with fewer rows",
        lambda: scheduler.cap.num_shortages,
    )
    reading(gauge, "step_rows_limit", "Rows a step may have; fewer after memory ran out", lambda: scheduler.cap.rows)
    looked_up = reading(
        counter,
        "prefix_cache_queried_tokens",
        "Tokens looked up in the prefix cache",
        lambda: stats.queries * block_size,
    )
    found = reading(
        counter, "prefix_cache_hit_tokens", "Tokens found in the prefix cache", lambda: stats.hits * block_size
    )
    return [
        Alias(running, "num_requests_running"),
        Alias(waiting, "num_requests_waiting"),
        Alias(usage, "kv_cache_usage_perc"),
        Alias(preempted, "num_preemptions"),
        Alias(looked_up, "prefix_cache_queries"),
        Alias(found, "prefix_cache_hits"),
    ]
