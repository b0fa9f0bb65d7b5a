"""What each process held over a run, and whether that grows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import httpx
import psutil
from processes import Edge, Service, Verifier
from prometheus_client.parser import text_string_to_metric_families
from resilience.site import Site
from resilience.usage import Usage, slope


@dataclass(frozen=True, slots=True)
class Held:
    """What one process held at one moment; `process_id` changes with a restart."""

    process_id: int
    usage: Usage
    num_kv: int  # KV blocks of a verifier, draft KV slots of an edge
    num_sessions: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment, in seconds of a steady clock."""

    time_s: float
    held: dict[str, Held]


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that must not grow.

    Attributes:
        max_growth: that the line through the samples of a run's second half may rise from its first to its last; None
            where the load makes it rise and fall, and the rests between phases find nothing held.
    """

    name: str
    of: Callable[[Held], float]
    max_growth: float | None = None


QUANTITIES: Final = (
    Quantity("RSS, MiB", lambda held: held.usage.rss_mib, 24.0),
    Quantity("file descriptors", lambda held: held.usage.num_fds, 6.0),
    Quantity("threads", lambda held: held.usage.num_threads, 3.0),
    Quantity("KV held", lambda held: held.num_kv),
    Quantity("sessions", lambda held: held.num_sessions),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A quantity of a process: first, last and highest value, and how it rises in the second half.

    Attributes:
        is_judged: the process was not restarted in the second half.
    """

    process: str
    quantity: Quantity
    first: float
    last: float
    highest: float
    slope_per_h: float
    growth: float
    is_judged: bool

    @property
    def is_flat(self) -> bool:
        return self.quantity.max_growth is None or self.growth <= self.quantity.max_growth


@dataclass(slots=True)
class Watch:
    """The samples of a run."""

    samples: list[Sample] = field(default_factory=list)

    async def sample(self, site: Site) -> Sample:
        """Takes one now; processes that are not there or not yet ready are left out."""
        held = {}
        for name, service in names(site).items():
            if service.is_running and (found := await _held(service)) is not None:
                held[name] = found
        sample = Sample(time.monotonic(), held)
        self.samples.append(sample)
        return sample

    def lines(self) -> Iterator[Line]:
        """What became of each quantity of each process."""
        if not self.samples:
            return
        middle_s = (self.samples[0].time_s + self.samples[-1].time_s) / 2
        for process in dict.fromkeys(name for sample in self.samples for name in sample.held):
            found = [(sample.time_s, sample.held[process]) for sample in self.samples if process in sample.held]
            later = [(time_s, held) for time_s, held in found if time_s >= middle_s]
            is_judged = len(later) > 1 and len({held.process_id for _, held in later}) == 1
            for quantity in QUANTITIES:
                values = [quantity.of(held) for _, held in found]
                times_s = [time_s for time_s, _ in later]
                rise = slope(times_s, [quantity.of(held) for _, held in later]) if is_judged else 0.0
                growth = rise * (times_s[-1] - times_s[0]) if is_judged else 0.0
                yield Line(process, quantity, values[0], values[-1], max(values), 3600 * rise, growth, is_judged)

    def problems(self) -> Iterator[str]:
        """What grows."""
        for line in self.lines():
            if not line.is_flat:
                yield (
                    f"{line.process}: {line.quantity.name} rose by {line.growth:.1f} in the second half; "
                    f"{line.quantity.max_growth:g} may be"
                )


def names(site: Site) -> dict[str, Verifier | Edge]:
    """The processes of a site by name."""
    verifiers: dict[str, Verifier | Edge] = {f"verifier {n + 1}": service for n, service in enumerate(site.verifiers)}
    return verifiers | {f"edge {n + 1}": service for n, service in enumerate(site.edges)}


KV: Final = ("specedge_verifier_kv_blocks", "specedge_edge_draft_kv_slots")
SESSIONS: Final = (
    "specedge_verifier_sessions_running",
    "specedge_verifier_sessions_waiting",
    "specedge_edge_verifier_sessions",
)


async def _held(service: Service) -> Held | None:
    """What a process holds now; None while it does not answer."""
    try:
        process = service.process
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            text = (await client.get(service.metrics_url)).raise_for_status().text
        usage = Usage.of(process)
    except (httpx.HTTPError, psutil.Error):
        return None
    num_kv = num_sessions = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in KV and sample.labels["state"] == "held":
                num_kv += int(sample.value)
            elif sample.name in SESSIONS:
                num_sessions += int(sample.value)
    return Held(process.pid, usage, num_kv, num_sessions)
