"""Two runs compared: ratios, their significance, and runs that have nothing in common."""

from pathlib import Path

import pytest
from bench_rows import cell_row, request, run_info, write_synthetic_run

from specedge_bench.compare import NothingToCompare, compare, main
from specedge_bench.run_folder import Run

CELL = "specedge/wan/closed-1"


def _run(tokens: list[int], cell: str = CELL) -> Run:
    """One repetition of two seconds for each number of tokens."""
    return Run(
        run_info(),
        tuple(request(cell, repetition=index, num_tokens=count) for index, count in enumerate(tokens)),
        (),
        tuple(cell_row(cell, repetition=index) for index in range(len(tokens))),
    )


def test_ratio_is_the_second_run_over_the_first() -> None:
    changes = {change.metric: change for change in compare(_run([10] * 6), _run([20] * 6))}
    throughput = changes["throughput"]
    assert throughput.ratio.mean == pytest.approx(2.0)
    assert throughput.ratio.low == pytest.approx(2.0)
    assert throughput.num_pairs == 6
    assert throughput.p_value == 2 / 64
    assert throughput.is_significant
    # The same bursts in both: no change, and nothing significant about it.
    assert changes["itl"].ratio.mean == pytest.approx(1.0)
    assert changes["itl"].p_value == 1.0
    assert not changes["itl"].is_significant


def test_repetitions_are_paired_by_number() -> None:
    changes = compare(_run([10, 20, 40]), _run([20, 40]))
    assert changes[0].num_pairs == 2
    assert changes[0].ratio.mean == pytest.approx(2.0)


def test_runs_without_a_common_cell_are_refused_and_named() -> None:
    with pytest.raises(NothingToCompare, match=r"first has specedge/wan/closed-1, the second specedge/far/closed-1"):
        compare(_run([10]), _run([10], "specedge/far/closed-1"))


def test_an_interrupted_run_has_nothing_to_compare() -> None:
    empty = Run(run_info(), (request(),), (), ())
    with pytest.raises(NothingToCompare, match="the second none"):
        compare(_run([10]), empty)


def test_command_prints_a_table_and_warns_about_too_few_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic_run(tmp_path / "a", num_repetitions=1)
    write_synthetic_run(tmp_path / "b", num_repetitions=1, speed=2.0)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    # Twelve cells and all of them together, three metrics each, under a head of two lines.
    assert printed.count("\n|") + 1 == 2 + 13 * 3
    last = [line for line in printed.splitlines() if line.startswith("| all cells | throughput")]
    assert len(last) == 1
    assert "significant" in last[0]
