"""What the journal tells Prometheus."""

from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

TakenUp = Literal["begun", "continued", "replayed"]
FailureReason = Literal["disk_full", "io", "slow", "too_large", "damaged"]
RemovalReason = Literal["age", "size"]

TAKEN_UP: Final[tuple[TakenUp, ...]] = ("begun", "continued", "replayed")
FAILURES: Final[tuple[FailureReason, ...]] = ("disk_full", "io", "slow", "too_large", "damaged")
REMOVALS: Final[tuple[RemovalReason, ...]] = ("age", "size")


class JournalMetrics:
    """Counts answers and what goes wrong with them; its counters may be used on any thread.

    Args:
        registry: where they are shown.
        num_bytes: bytes on disk, asked for when scraped.
    """

    def __init__(self, registry: CollectorRegistry, num_bytes: Callable[[], int] = lambda: 0) -> None:
        name = "specedge_edge_journal_"
        size = Gauge(f"{name}bytes", "Bytes on disk of the journal's answers", registry=registry)
        size.set_function(num_bytes)
        self.answers = Counter(
            f"{name}answers",
            "Answers under a key, by whether they were begun, continued or told again as a whole",
            ["how"],
            registry=registry,
        )
        self.replayed_tokens = Counter(
            f"{name}replayed_tokens", "Tokens told again instead of being generated", registry=registry
        )
        self.failures = Counter(
            f"{name}failures",
            "Answers that are not recorded any further, or whose record is not whole, by reason",
            ["reason"],
            registry=registry,
        )
        self.removed = Counter(
            f"{name}removed_answers",
            "Answers removed to keep the bounds on size and age",
            ["reason"],
            registry=registry,
        )
        for how in TAKEN_UP:
            self.answers.labels(how)
        for reason in FAILURES:
            self.failures.labels(reason)
        for removal in REMOVALS:
            self.removed.labels(removal)
