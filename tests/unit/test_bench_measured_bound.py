"""The physical bound of a run, from steps whose times are worked out by hand."""

import pytest

from specedge_bench.measured_bound import fastest_steps, measured_bound, step_times
from specedge_bench.records import StepRecord
from specedge_bench.run_folder import Run
from tests import bench_rows

CELL = "specedge/far/closed-1"


def steps_of(
    num_rows: int, forwards_ms: list[float], num_kv_tokens: int = 100, sample_ms: float = 0
) -> list[StepRecord]:
    """Steps of one session; the first row is its root."""
    return [
        bench_rows.step(
            CELL,
            num_nodes=num_rows - 1,
            queue_ms=(0.0,),
            forward_ms=forward_ms,
            sample_ms=sample_ms,
            num_kv_tokens=num_kv_tokens,
        )
        for forward_ms in forwards_ms
    ]


def bound_of(steps: list[StepRecord], mode: str = "streamed", **changes: object) -> dict[str, float]:
    cell = bench_rows.cell_row(CELL, num_trees=10, accepted_by_depth=(10,), rtt_ms_configured=60.0, **changes)
    bound = measured_bound(Run(bench_rows.run_info(), (), tuple(steps), (cell,)), {"specedge": ("specedge", mode)})
    assert bound is not None
    return bound


def test_the_fastest_steps_never_fall_with_rows() -> None:
    steps = steps_of(1, [12.0, 10.0, 11.0]) + steps_of(3, [9.0, 8.0, 30.0]) + steps_of(7, [20.0, 20.0, 20.0])
    steps += steps_of(60, [1.0])  # too few to tell anything

    assert fastest_steps(steps) == {(1, 128): 0.008, (4, 128): 0.008, (8, 128): 0.02}


def test_nor_do_they_fall_with_keys_and_values() -> None:
    steps = steps_of(1, [5.0] * 3, 100) + steps_of(1, [4.0] * 3, 1000) + steps_of(2, [7.0] * 3, 1000)

    assert fastest_steps(steps) == {(1, 128): 0.004, (1, 1024): 0.004, (2, 1024): 0.007}


def test_a_step_s_time_is_what_it_waited_for_its_tokens_too() -> None:
    assert fastest_steps(steps_of(1, [0.5] * 3, sample_ms=9.5)) == {(1, 128): 0.01}


@pytest.mark.parametrize(("mode", "best"), [("streamed", 250.0), ("off", 2 / 0.068)])
def test_the_bound_of_a_cell_follows_from_its_steps_and_acceptance(mode: str, best: float) -> None:
    bound = bound_of(steps_of(1, [8.0] * 3) + steps_of(2, [8.0] * 3) + steps_of(4, [16.0] * 3), mode)

    assert bound["step_ms/4/128"] == 16.0
    assert bound[CELL] == pytest.approx(best)


def test_the_bound_reads_the_keys_and_values_that_the_cell_s_sessions_had() -> None:
    short = steps_of(1, [8.0] * 3, 64) + steps_of(2, [8.0] * 3, 64)
    long = steps_of(1, [10.0] * 9, 192) + steps_of(2, [10.0] * 9, 192)

    # Ten tokens at 64 and thirty at 192 are 160 on average, half way from 8 ms at 64 to 10 ms at 256.
    assert bound_of(short + long)[CELL] == pytest.approx(2 / 0.009)


def test_two_sessions_read_twice_the_keys_and_values() -> None:
    steps = [
        bench_rows.step(CELL, num_sessions=2, num_nodes=0, queue_ms=(0.0, 0.0), forward_ms=ms, num_kv_tokens=kv)
        for kv, ms in ((128, 6.0), (256, 8.0))
        for _ in range(3)
    ]

    # 64 and 128 tokens a session are 96 on average, and 192 for two: half way between 6 and 8 ms.
    bound = bound_of(steps, num_users=2)
    assert bound[CELL] == pytest.approx(2 * 2 / 0.007)


def test_the_step_times_are_told_by_rows() -> None:
    bound = {"step_ms/1/128": 8.0, "step_ms/1/1024": 9.25, "step_ms/4/1024": 16.0, CELL: 250.0}

    assert step_times(bound) == "1 row: 8 to 128, 9.25 to 1,024; 4 rows: 16 to 1,024"
    assert step_times({}) == ""
