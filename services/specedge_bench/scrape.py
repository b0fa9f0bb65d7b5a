"""What a service's /metrics say, and what they grew by."""

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, float]
"""By sample name, with labels as `name{label=value}` (by name, without those that all `vllm:` samples have)."""

_VLLM_LABELS = ("engine", "model_name")


async def scrape(client: httpx.AsyncClient, url: str) -> Samples:
    """All samples of this moment, but for histograms' buckets.

    Raises:
        httpx.HTTPError: the service does not answer.
    """
    answer = await client.get(url)
    answer.raise_for_status()
    return parse(answer.text)


def parse(text: str) -> Samples:
    """The samples in a Prometheus exposition."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                labels = ",".join(
                    f"{key}={value}" for key, value in sorted(sample.labels.items()) if key not in _VLLM_LABELS
                )
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def growth(before: Samples, after: Samples) -> Samples:
    """By how much each sample has grown; one that was not there before counts from 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
