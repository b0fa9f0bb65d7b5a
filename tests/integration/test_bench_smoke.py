"""The speculation benchmark at its smallest: it runs, its counts add up, its tables are written. No timing is held."""

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks.speculation import report
from benchmarks.speculation.acceptance import Lockstep
from benchmarks.speculation.cells import AUTOREGRESSIVE, Cell, Section
from benchmarks.speculation.run import Effort, Measured, measure_section
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.loader import load_model
from specedge_bench.curves import straight_curve
from specedge_bench.pace.modelled_pair import AGREEMENT, ModelledDraft, ModelledTarget
from specedge_bench.pace.pace import Pace
from specedge_cli.supervisor import Interrupts

EFFORT = Effort(num_answers=1, num_repetitions=1, max_tokens=24, warm_up_tokens=4)
BUDGET = 24
FAST = Pace("5ms", "1ms", "modelled")


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Puts back the signal handlers that the benchmark takes over."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield Interrupts()
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


async def test_full_trees_bring_more_than_one_token_each() -> None:
    line = await Lockstep().measure(0.0, None, ["Tell me a story about a shy otter."], 24, lambda: None)

    assert line.nodes_per_verification > 15
    assert line.tokens_per_verification > 1.5
    assert line.tokens_per_verification - 1 <= sum(line.accepted_at_depth) + 1e-9
    assert line.accepted_at_depth == sorted(line.accepted_at_depth, reverse=True)


async def test_a_small_run_writes_its_tables(interrupts: Interrupts, tmp_path: Path) -> None:
    modes = ("streamed", "off", AUTOREGRESSIVE)
    cells = tuple(Cell(mode, "ready", 15, num_users) for mode in modes for num_users in (1, 2))
    section = Section("modelled", FAST, 0.0, cells)
    with Progress(console=Console(file=io.StringIO())) as progress:
        results = await measure_section(section, EFFORT, BUDGET, interrupts, progress)

    assert [(result.mode, result.num_users) for result in results] == [(cell.mode, cell.num_users) for cell in cells]
    for result in results:
        assert result.num_requests == result.num_users
        assert result.inter_token_ms > 0
        assert result.tokens_per_verification >= 1
        assert (result.tree_share > 0) == (result.mode != AUTOREGRESSIVE)
        assert (result.forwards_per_token > 0) == (result.mode != AUTOREGRESSIVE)
        assert result.wire_up > result.payload_up > 0
        assert result.wire_down > result.payload_down > 0

    report.write(tmp_path, report.Machine.this(), EFFORT, BUDGET, Measured([], results), 1.0)
    document = json.loads((tmp_path / "speculation.json").read_text())
    assert len(document["results"]) == len(cells)
    assert "| streamed | ready |" in (tmp_path / "speculation.md").read_text()


def test_modelled_drafts_agree_as_often_as_they_claim() -> None:
    model = load_model(resolve_model(EMBEDDED_NAME, "draft"), "cpu", "auto")
    target, draft = (kind(model, 4096, curve=straight_curve("0.01ms")) for kind in (ModelledTarget, ModelledDraft))
    batch = draft.chain(2000)
    chosen = target.compute(batch).argmax(-1)
    claims, choices = draft.compute(batch).log_softmax(-1).topk(len(AGREEMENT))

    assert claims[0].exp().tolist() == pytest.approx(AGREEMENT, abs=1e-4)
    is_rank = choices == chosen[:, None]
    assert is_rank.float().mean(0).tolist() == pytest.approx(AGREEMENT, abs=0.025)
    assert len(chosen.unique()) > 1000
