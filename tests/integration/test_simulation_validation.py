"""The simulator against the real services at its smallest: neither may drift away from the other unseen.

Forwards are stretched to a pace, so that a slow machine is as fast as any; where a machine is too busy to keep the
pace, what it measures says nothing and the timing is left alone. `python -m benchmarks.simulation_accuracy` has it all.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.simulation_accuracy import report
from benchmarks.simulation_accuracy.__main__ import NO_LOOKUP, compare
from benchmarks.simulation_accuracy.figures import Comparison, Figures
from benchmarks.simulation_accuracy.measured import measure
from benchmarks.simulation_accuracy.predicted import HostCosts
from specedge_bench.options import parse_options
from specedge_cli.supervisor import Interrupts

PACE = "60ms+0.25ms,10ms+0.05ms"
FLAGS = ["--systems", "autoregressive,specedge", "--networks", "rtt15", "--loads", "closed-2", "--num-requests", "4"]
FLAGS += [*NO_LOOKUP, "--max-new-tokens", "32", "--pace", PACE, "--num-threads", "1", "--out", "unused"]
BOUND = 0.3
MOST_LATE = 0.05


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Puts back the signal handlers that the benchmark takes over."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield Interrupts()
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.slow
async def test_what_is_predicted_is_measured(interrupts: Interrupts, tmp_path: Path) -> None:
    options = parse_options(FLAGS)
    cells = [cell async for cell in measure(options, interrupts)]
    rows = report.merge([], compare(cells, options, None))

    assert [(row.system, row.num_users, row.rtt_ms) for row in rows] == [
        ("autoregressive", 2, 15.0),
        ("specedge", 2, 15.0),
    ]
    report.write(tmp_path, rows)
    assert report.read(tmp_path) == rows
    plain, drafted = rows
    assert plain.measured.tokens_per_verification == plain.predicted.tokens_per_verification == 1
    assert drafted.measured.tokens_per_verification > 1.5
    if max(share for row in rows for share in row.late) > MOST_LATE:
        pytest.skip("this machine was too busy to keep the pace")
    for row in rows:
        assert abs(row.difference("tokens_per_s")) < BOUND, row
        assert abs(row.difference("tokens_per_verification")) < BOUND, row


def test_a_later_run_takes_the_place_of_the_same_cells(tmp_path: Path) -> None:
    rows = [comparison("specedge", 1, 0.0), comparison("autoregressive", 1, 0.0), comparison("specedge", 1, 60.0)]
    report.write(tmp_path, report.merge([], rows))
    newer = comparison("specedge", 1, 60.0, tokens_per_s=50.0)
    merged = report.merge(report.read(tmp_path), [newer])

    assert [(row.system, row.rtt_ms) for row in merged] == [
        ("autoregressive", 0.0),
        ("specedge", 0.0),
        ("specedge", 60.0),
    ]
    assert merged[2] == newer
    assert newer.worst == pytest.approx(-0.5)
    text = report.markdown(merged)
    assert "| 1 | 60 | specedge | 50.0 / 100.0 | 10.0 / 10.0 | 20.0 / 20.0 | 30.0 / 30.0 | 40.0 / 40.0 | -50% |" in text
    assert "2 of 3 cells are within 15 %" in text
    assert "| 1 | specedge | 1.0 | 2.0 | 0.0% / 1.0% |" in text


def comparison(system: str, num_users: int, rtt_ms: float, tokens_per_s: float = 100.0) -> Comparison:
    measured, predicted = (Figures(speed, 10.0, 20.0, 30.0, 40.0, 2.0, 4.0, 1.0) for speed in (100.0, tokens_per_s))
    return Comparison("30ms", system, num_users, rtt_ms, HostCosts(0.001, 0.002), (0.0, 0.01), measured, predicted)
