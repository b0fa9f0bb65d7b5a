"""One reading of a process's metrics, and what happened between two of them."""

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from math import inf

from prometheus_client.parser import text_string_to_metric_families

from specedge.errors import SpecEdgeError

MAX_PAGE_BYTES = 8 * 2**20

Labels = frozenset[tuple[str, str]]


class ScrapeFailed(SpecEdgeError):
    """A process did not show its metrics; says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All samples of one page.

    Attributes:
        at_s: steady time of the reading.
        samples: by name, value by labels.
    """

    at_s: float
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def sum(self, name: str, **labels: str) -> float | None:
        """All samples of that name with these labels together; None where there is none."""
        wanted = labels.items()
        found = [value for owned, value in self.samples.get(name, {}).items() if wanted <= dict(owned).items()]
        return sum(found) if found else None

    def label(self, name: str, label: str) -> str | None:
        """A label of the first sample of that name, for metrics that are all labels."""
        for owned in self.samples.get(name, {}):
            return dict(owned).get(label)
        return None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The samples of that name, added up by one label."""
        sums: dict[str, float] = defaultdict(float)
        for owned, value in self.samples.get(name, {}).items():
            if label in (named := dict(owned)):
                sums[named[label]] += value
        return dict(sums)


def parse(text: str, at_s: float) -> Reading:
    """A page of metrics in Prometheus' text format.

    Raises:
        ScrapeFailed: it is not one.
    """
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name][frozenset(sample.labels.items())] = sample.value
    except ValueError as error:
        raise ScrapeFailed(f"what it shows are no metrics ({error})") from error
    return Reading(at_s, samples)


def scrape(url: str, timeout_s: float) -> Reading:
    """Asks a process for its metrics now.

    Raises:
        ScrapeFailed: it does not answer, or not with metrics.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            page = answer.read(MAX_PAGE_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise ScrapeFailed(f"HTTP {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ScrapeFailed(f"no answer ({getattr(error, 'reason', error)})") from error
    if len(page) > MAX_PAGE_BYTES:
        raise ScrapeFailed(f"its metrics are longer than {MAX_PAGE_BYTES} bytes")
    return parse(page.decode(errors="replace"), time.monotonic())


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two readings of one process; a counter that began anew counts from zero.

    Attributes:
        before, after: the readings.
        prefix: what every name below begins with.
    """

    before: Reading
    after: Reading
    prefix: str = ""

    @property
    def seconds(self) -> float:
        return max(self.after.at_s - self.before.at_s, 1e-9)

    def now(self, name: str, **labels: str) -> float | None:
        """What a gauge shows; None where there is none."""
        return self.after.sum(self.prefix + name, **labels)

    def gained(self, name: str, **labels: str) -> float | None:
        """How far a counter went; None where there is no such counter."""
        after = self.now(name, **labels)
        if after is None:
            return None
        before = self.before.sum(self.prefix + name, **labels) or 0.0
        return after - before if after >= before else after

    def rate(self, name: str, **labels: str) -> float | None:
        """A counter's increase per second."""
        gained = self.gained(name, **labels)
        return None if gained is None else gained / self.seconds

    def rates_by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Increase per second by a label's values, where the others are these; those that stood still are left out."""
        values = self.after.by_label(self.prefix + name, label)
        rates = {value: self.rate(name, **{label: value}, **labels) or 0.0 for value in values}
        return {value: rate for value, rate in rates.items() if rate > 0}

    def ratio(self, over: str, under: str, **labels: str) -> float | None:
        """One counter's increase for each of another's with these labels; None while the other stands still."""
        top, bottom = self.gained(over), self.gained(under, **labels)
        return None if top is None or not bottom else top / bottom

    def mean(self, histogram: str, **labels: str) -> float | None:
        """Mean of what a histogram was given; None if it was given nothing."""
        count = self.gained(f"{histogram}_count", **labels)
        return (self.gained(f"{histogram}_sum", **labels) or 0.0) / count if count else None

    def quantile(self, histogram: str, q: float, **labels: str) -> float | None:
        """An estimate as Prometheus makes it: linear inside the bucket it falls in; None if it was given nothing."""
        name = f"{histogram}_bucket"
        bounds = sorted(self.after.by_label(self.prefix + name, "le"), key=float)
        counts = [self.gained(name, le=bound, **labels) or 0.0 for bound in bounds]
        if not counts or not counts[-1]:
            return None
        wanted, below_count, below = q * counts[-1], 0.0, 0.0
        for bound, count in zip(map(float, bounds), counts, strict=True):
            if count >= wanted:
                if bound == inf:
                    return below
                return below + (bound - below) * (wanted - below_count) / max(count - below_count, 1e-9)
            below_count, below = count, bound
        return below
