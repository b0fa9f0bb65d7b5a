"""The edge's metrics once more under vLLM's names, which existing dashboards and benchmark tools read.

The families are copied from our own when scraped: they cost nothing per token and cannot disagree with the originals.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Alias:
    """One of our families under vLLM's name.

    Args:
        source: our metric.
        name: vLLM's name, without prefix and suffix.
        zero_based: a label of ours that counts from 1, and vLLM's name for it, which counts from 0.
    """

    source: Counter | Gauge | Histogram
    name: str
    zero_based: tuple[str, str] | None = None


class VllmAliases(Collector):
    """Collects the aliases, labelled with the model's name as vLLM does."""

    def __init__(self, aliases: Sequence[Alias], model_name: Callable[[], str]) -> None:
        self._aliases = aliases
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """Every alias with the values of this moment."""
        added = {"model_name": self._model_name(), "engine": "0"}
        for alias in self._aliases:
            for family in alias.source.collect():
                copy = Metric(f"vllm:{alias.name}", family.documentation, family.type)
                for sample in family.samples:
                    suffix = sample.name.removeprefix(family.name)
                    labels = _rename(sample.labels, alias.zero_based)
                    copy.add_sample(copy.name + suffix, added | labels, sample.value, sample.timestamp, sample.exemplar)
                yield copy

    def describe(self) -> list[Metric]:
        """No families: a scrape must not be needed to register this collector."""
        return []


def _rename(labels: Mapping[str, str], zero_based: tuple[str, str] | None) -> dict[str, str]:
    if zero_based is None:
        return dict(labels)
    ours, theirs = zero_based
    return {theirs if name == ours else name: str(int(v) - 1) if name == ours else v for name, v in labels.items()}
