"""What a service's /metrics say, and what they grew by."""

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, float]
"""By sample name, with labels as `name{label=value}` (labels in order of name); histograms by their sum and count."""


async def scrape(client: httpx.AsyncClient, url: str) -> Samples:
    """All samples of this moment."""
    answer = await client.get(url)
    answer.raise_for_status()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model_name")
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def growth(before: Samples, after: Samples) -> Samples:
    """By how much each sample has grown; one that was not there before counts from 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
