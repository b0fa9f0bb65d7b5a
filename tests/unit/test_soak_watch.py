"""What a soak calls growth."""

import pytest
from resilience.usage import Usage, slope
from soak.watch import Held, Sample, Watch


def watch(*rss_mib: float, process_ids: tuple[int, ...] = ()) -> Watch:
    """A verifier sampled every ten seconds."""
    held = [
        Held(process_ids[index] if process_ids else 1, Usage(size, 10, 5), 0, 0) for index, size in enumerate(rss_mib)
    ]
    return Watch([Sample(10.0 * index, {"verifier 1": found}) for index, found in enumerate(held)])


def test_a_slope_is_that_of_the_line_of_least_squares() -> None:
    assert slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert slope([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0]) == pytest.approx(0.2)
    assert slope([1.0], [9.0]) == 0.0


def test_what_grows_in_the_second_half_is_a_problem_and_what_grew_before_is_none() -> None:
    assert [*watch(100, 200, 300, 300, 301, 300).problems()] == []
    (problem,) = watch(100, 100, 100, 100, 150, 200).problems()
    assert problem == "verifier 1: RSS, MiB rose by 100.0 in the second half; 24 may be"


def test_a_process_that_was_restarted_is_not_judged() -> None:
    assert [*watch(100, 100, 100, 400, 100, 500, process_ids=(1, 1, 1, 1, 2, 2)).problems()] == []
    assert {line.is_judged for line in watch(100, 100, 100, 400, process_ids=(1, 1, 2, 2)).lines()} == {True}
