"""What computes each model is found in `/metrics`, in the edge's `/version` and in the log."""

import logging
from dataclasses import asdict

import httpx
import pytest
from http_support import FakeService, tokenizer
from prometheus_client import CollectorRegistry

from edge_agent.app import compose
from edge_agent.http.app import create_app
from edge_agent.http.settings import HttpSettings
from edge_agent.loading import load as load_edge
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from specedge.model.execution import Execution, graphs_of
from specedge_verifier.loading import load as load_verifier
from specedge_verifier.settings import VerifierSettings

LEAN = {"engine": "lean", "attention": "sdpa", "dtype": "bfloat16", "device": "cpu"}
SHOWN = Execution(**LEAN)
FLAGS = {"engine": "lean", "dtype": "bfloat16", "device": "cpu"}


def executions(registry: CollectorRegistry, name: str) -> list[dict[str, str]]:
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    assert all(sample.value == 1 for sample in samples)
    return [sample.labels for sample in samples]


def test_the_verifier_shows_both_of_its_models(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loaded = load_verifier(VerifierSettings(**FLAGS, system="server-only", num_kv_blocks=128))
    assert executions(loaded.metrics.registry, "specedge_verifier_execution_info") == [
        {"model": "target", **asdict(SHOWN)},
        {"model": "draft", **asdict(SHOWN)},
    ]
    assert f"target model: {SHOWN}" in caplog.text and f"draft model: {SHOWN}" in caplog.text


async def test_the_edge_shows_its_draft_model() -> None:
    metrics, settings = EdgeMetrics(), EdgeSettings(**FLAGS, num_draft_slots=256)
    models = load_edge(settings, metrics)
    assert models.execution == SHOWN
    assert executions(metrics.registry, "specedge_edge_draft_execution_info") == [asdict(SHOWN)]

    app = compose(settings, models, FakeService(), metrics)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        version = (await client.get("/version")).json()
    assert version["draft_model"] == "demo"
    assert version["draft_execution"] == {**LEAN, "graphs": "none", "quantization": "none"}


async def test_without_a_draft_model_nothing_is_shown() -> None:
    metrics = EdgeMetrics()
    app = create_app(FakeService(), tokenizer(), HttpSettings(public_metrics=True), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        version = (await client.get("/version")).json()
    assert (version["draft_model"], version["draft_execution"]) == (None, None)
    assert executions(metrics.registry, "specedge_edge_draft_execution_info") == []


def test_graphs_are_shown_by_their_rows() -> None:
    assert (graphs_of(()), graphs_of((1, 2, 8))) == ("none", "to 8 rows")
