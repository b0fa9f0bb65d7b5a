"""The physical bound of every closed-loop cell of a run, from the run's own steps and acceptance."""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from specedge_bench.bound import BoundError, no_draft, physical_bound, tokens_from_depths
from specedge_bench.curves import Grid, StepCurve
from specedge_bench.records import CellRecord, StepRecord
from specedge_bench.run_folder import Run

_MIN_STEPS = 3
_FAST_SHARE = 0.1
_PREFIXES = (0,)


def fastest_steps(steps: Iterable[StepRecord]) -> dict[int, float]:
    """Seconds of a forward by rows: of every power of two, what a tenth of the forwards up to it undercut.

    A row count of fewer than three steps tells nothing. Never falls with rows: more rows are not computed faster.
    """
    seconds: dict[int, list[float]] = defaultdict(list)
    for step in steps:
        num_rows = step.num_prefill + step.num_nodes + len(step.queue_ms)
        if num_rows and step.forward_ms > 0:
            seconds[1 << (num_rows - 1).bit_length()].append(step.forward_ms / 1e3)
    curve: dict[int, float] = {}
    least = math.inf
    for num_rows in sorted(seconds, reverse=True):
        times = sorted(seconds[num_rows])
        if len(times) >= _MIN_STEPS:
            least = min(least, times[int(_FAST_SHARE * len(times))])
            curve[num_rows] = least
    return dict(sorted(curve.items()))


def measured_bound(run: Run, modes: dict[str, tuple[str, str]]) -> dict[str, float] | None:
    """Best tokens/s by cell, and under `forward_ms_ROWS` the step times that they follow from; None without steps.

    Args:
        run: with its steps.
        modes: kind and drafting mode of each system by its name; where drafts go ahead of verdicts, or are made beside
            the target, no round trip is waited for.
    """
    times = fastest_steps(run.steps)
    if len(times) < 2:
        return None
    rows = tuple(times)
    grid = Grid(rows, _PREFIXES, tuple((times[num_rows],) for num_rows in rows))
    curve = StepCurve("this run", "this machine", run.info.target_model, "as loaded", "measured eager", grid)
    repetitions: dict[str, list[CellRecord]] = defaultdict(list)
    for cell in run.cells:
        if cell.load.startswith("closed-"):
            repetitions[cell.cell].append(cell)
    bound = {f"forward_ms_{num_rows}": 1e3 * seconds for num_rows, seconds in times.items()}
    for name, cells in repetitions.items():
        kind, mode = modes[cells[0].system]
        # Counters that were read while a step was being booked may not fit together; such a cell has no bound.
        with contextlib.suppress(BoundError):
            bound[name] = _best(curve, cells, waits=kind == "specedge" and mode != "streamed")
    return bound


def _best(curve: StepCurve, cells: Sequence[CellRecord], *, waits: bool) -> float:
    num_trees = sum(cell.num_trees for cell in cells)
    depths = Counter[int]()
    for cell in cells:
        depths.update(dict(enumerate(cell.accepted_by_depth)))
    accepted = [depths[depth] for depth in range(len(depths))]
    hits = sum(cell.guesses_hit for cell in cells)
    num_guesses = hits + sum(cell.guesses_missed for cell in cells)
    best = physical_bound(
        curve,
        cells[0].num_users,
        0,
        tokens_from_depths(accepted, num_trees) if num_trees else no_draft,
        rtt_s=cells[0].rtt_ms_configured / 1e3 if waits and num_trees else 0.0,
        hit_rate=hits / num_guesses if num_guesses else 0.0,
    )
    return best.tokens_per_s
