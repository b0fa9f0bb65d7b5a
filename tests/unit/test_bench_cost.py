"""Cost and cost efficiency against values computed by hand."""

import math

import pytest
from bench_rows import cell_row

from specedge_bench.cost import Usage, cost, drafts_on_edge
from specedge_bench.summary import usage


def test_billed_pays_every_reserved_gpu_for_the_wall_time() -> None:
    used = Usage(num_tokens=1_000, wall_s=10.0, verifier_busy_s=4.0, edge_busy_s=6.0, num_edge_gpus=2)
    price = cost(used, verifier_price=0.001, edge_price=0.0001)
    assert price.billed_dollars == pytest.approx(10 * (0.001 + 2 * 0.0001))
    assert price.active_dollars == pytest.approx(4 * 0.001 + 6 * 0.0001)
    assert price.billed_per_million == pytest.approx(12.0)
    assert price.active_per_million == pytest.approx(4.6)
    assert price.billed_tokens_per_dollar == pytest.approx(1_000 / 0.012)
    assert price.active_tokens_per_dollar == pytest.approx(1_000 / 0.0046)


def test_no_token_has_no_price() -> None:
    price = cost(Usage(0, 10.0, 4.0, 0.0, 0), 0.001, 0.0001)
    assert math.isnan(price.billed_per_million)
    assert price.billed_tokens_per_dollar == 0.0


def test_an_unpriced_edge_matters_only_where_one_is_reserved() -> None:
    assert cost(Usage(1, 10.0, 4.0, 0.0, 0), 0.001, math.nan).billed_dollars == pytest.approx(0.01)
    assert math.isnan(cost(Usage(1, 10.0, 4.0, 1.0, 1), 0.001, math.nan).billed_dollars)


@pytest.mark.parametrize(
    ("system", "wanted"),
    [("autoregressive", False), ("server-only", False), ("server-only:wide", False), ("specedge:off:static", True)],
)
def test_only_edge_systems_reserve_edge_gpus(system: str, wanted: bool) -> None:
    assert drafts_on_edge(system) is wanted


def test_the_draft_is_paid_where_it_runs() -> None:
    busy = {"wall_s": 10.0, "verifier_busy_s": 4.0, "draft_busy_s": 3.0, "num_edges": 2}
    on_edge = usage([cell_row("specedge/wan/closed-1", **busy)], 5)
    assert on_edge == Usage(5, wall_s=10.0, verifier_busy_s=4.0, edge_busy_s=3.0, num_edge_gpus=2)
    on_verifier = usage([cell_row("server-only/wan/closed-1", draft_on_verifier=True, **busy)], 5)
    assert on_verifier == Usage(5, wall_s=10.0, verifier_busy_s=7.0, edge_busy_s=0.0, num_edge_gpus=0)
    busy["draft_busy_s"] = 0.0
    alone = usage([cell_row("autoregressive/wan/closed-1", **busy)] * 2, 5)
    assert alone == Usage(5, wall_s=20.0, verifier_busy_s=8.0, edge_busy_s=0.0, num_edge_gpus=0)
