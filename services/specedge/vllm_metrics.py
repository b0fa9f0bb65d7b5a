"""A process's metrics once more under vLLM's names, which existing dashboards and benchmark tools read.

The families are copied from our own when scraped: they cost nothing per token and cannot disagree with the originals.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Source(Protocol):
    """A metric of prometheus_client, or what is read when scraped."""

    def collect(self) -> Iterable[Metric]:
        """Its families."""


@dataclass(frozen=True, slots=True)
class Reading(Collector):
    """A family without labels whose value is read when scraped, so that it need not be kept twice.

    Args:
        family: counter or gauge.
        name, documentation: as shown.
        read: the value of this moment; called on the thread that scrapes.
    """

    family: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    documentation: str
    read: Callable[[], float]

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        yield self.family(self.name, self.documentation, value=self.read())


@dataclass(frozen=True, slots=True)
class Alias:
    """One of our families under vLLM's name.

    Args:
        source: our metric.
        name: vLLM's name, without prefix and suffix.
        only: the labels whose samples are meant; they are left out of the copy.
        zero_based: a label of ours that counts from 1, and vLLM's name for it, which counts from 0.
    """

    source: Source
    name: str
    only: Mapping[str, str] = field(default_factory=dict)
    zero_based: tuple[str, str] | None = None


class VllmAliases(Collector):
    """Collects the aliases, labelled with the model's name as vLLM does; nothing while that is not known."""

    def __init__(self, aliases: Sequence[Alias], model_name: Callable[[], str]) -> None:
        self._aliases = aliases
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """Every alias with the values of this moment."""
        added = {"model_name": self._model_name(), "engine": "0"}
        if not added["model_name"]:
            return
        for alias in self._aliases:
            for family in alias.source.collect():
                copy = Metric(f"vllm:{alias.name}", family.documentation, family.type)
                for sample in family.samples:
                    if alias.only.items() <= sample.labels.items():
                        own = {name: value for name, value in sample.labels.items() if name not in alias.only}
                        labels = added | _rename(own, alias.zero_based)
                        name = copy.name + sample.name.removeprefix(family.name)
                        copy.add_sample(name, labels, sample.value, sample.timestamp, sample.exemplar)
                yield copy

    def describe(self) -> list[Metric]:
        """No families: a scrape must not be needed to register this collector."""
        return []


def _rename(labels: Mapping[str, str], zero_based: tuple[str, str] | None) -> dict[str, str]:
    if zero_based is None:
        return dict(labels)
    ours, theirs = zero_based
    return {theirs if name == ours else name: str(int(v) - 1) if name == ours else v for name, v in labels.items()}
