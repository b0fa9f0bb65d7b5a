"""Where drafts come from, by the edge's settings."""

import pytest
from pydantic import ValidationError

from edge_agent.draft_source import NullDraftSource
from edge_agent.loading import drafting_settings, load
from edge_agent.lookup_source import LookupSource
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, ProactiveSettings
from specedge_verifier.settings import VerifierSettings


@pytest.mark.parametrize(
    ("lookup", "mode", "looks_up"),
    [("auto", "streamed", True), ("on", "streamed", True), ("off", "streamed", False), ("auto", "included", False)],
)
def test_lookup_joins_the_streamed_mode_and_leaves_the_published_ones_alone(
    lookup: str, mode: str, looks_up: bool
) -> None:
    settings = EdgeSettings(lookup=lookup, proactive=ProactiveSettings(type=mode))  # type: ignore[arg-type]
    assert settings.looks_up == drafting_settings(settings).looks_up == looks_up


def test_lookup_cannot_be_on_in_a_published_mode() -> None:
    with pytest.raises(ValidationError, match=r"lookup is on, but proactive\.type excluded drafts as published"):
        EdgeSettings(lookup="on", proactive=ProactiveSettings(type="excluded"))
    assert EdgeSettings(draft_model=None, lookup="on", proactive=ProactiveSettings(type="excluded")).looks_up


def test_an_edge_without_a_draft_model_looks_up() -> None:
    metrics = EdgeMetrics()
    source = load(EdgeSettings(draft_model=None, max_budget=9), metrics).draft_source
    assert isinstance(source, LookupSource) and source.drafter_id == "lookup"
    source.stats.drafted["lookup"] += 3
    assert metrics.registry.get_sample_value("specedge_edge_lookup_draft_nodes_total", {"source": "lookup"}) == 3
    off = load(EdgeSettings(draft_model=None, lookup="off"), EdgeMetrics()).draft_source
    assert isinstance(off, NullDraftSource) and off.drafter_id == ""


@pytest.mark.parametrize(
    ("lookup", "system", "looks_up"),
    [
        ("auto", "server-only", True),
        ("on", "server-only", True),
        ("off", "server-only", False),
        ("auto", "specedge", False),
        ("auto", "autoregressive", False),
    ],
)
def test_a_verifier_looks_up_where_it_drafts(lookup: str, system: str, looks_up: bool) -> None:
    assert VerifierSettings(lookup=lookup, system=system).looks_up == looks_up  # type: ignore[arg-type]


def test_a_verifier_that_drafts_nothing_cannot_look_up() -> None:
    with pytest.raises(ValidationError, match="lookup is on, but a verifier of system specedge drafts nothing itself"):
        VerifierSettings(lookup="on")
