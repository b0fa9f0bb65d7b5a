"""The physical bound of every closed-loop cell of a run, from the run's own steps and acceptance."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specedge_bench.bound import BoundError, no_draft, physical_bound, tokens_from_depths
from specedge_bench.curves import Grid
from specedge_bench.records import CellRecord, StepRecord
from specedge_bench.run_folder import Run

_MIN_STEPS = 3
_FAST_SHARE = 0.1
_INPUT = "step_ms"

StepSeconds = dict[tuple[int, int], float]
"""By rows and KV tokens of a step."""


@dataclass(frozen=True, slots=True)
class MeasuredCurve:
    """T(rows, KV) of the steps of a run; implements `SecondsOf`.

    Args:
        grid: rows of the step on one axis, the KV tokens of all its sessions together on the other.
    """

    grid: Grid

    def seconds(self, num_rows: int, kv_tokens: int, num_sessions: int) -> float:
        """How long one step takes, in seconds; the number of sessions has no part in it."""
        return self.grid.at(num_rows, kv_tokens)


def fastest_steps(steps: Iterable[StepRecord]) -> StepSeconds:
    """Seconds by rows and KV tokens: of every pair of powers of two, what a tenth of the steps up to it undercut.

    A step's seconds are its forward and its sampling: on a GPU the first only launches what the second waits for. A
    pair of fewer than three steps tells nothing. Never falls with rows or KV tokens: more is not computed faster.
    """
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for step in steps:
        num_rows = step.num_prefill + step.num_nodes + len(step.queue_ms)
        if num_rows and step.forward_ms > 0:
            point = _power_of_two(num_rows), _power_of_two(step.num_kv_tokens)
            seconds[point].append((step.forward_ms + step.sample_ms) / 1e3)
    found: StepSeconds = {}
    for point, times in seconds.items():
        if len(times) >= _MIN_STEPS:
            found[point] = sorted(times)[int(_FAST_SHARE * len(times))]
    return {
        (rows, kv): min(time for (more, longer), time in found.items() if more >= rows and longer >= kv)
        for rows, kv in sorted(found)
    }


def measured_bound(run: Run, modes: dict[str, tuple[str, str]]) -> dict[str, float] | None:
    """Best tokens/s by cell, and under `step_ms/ROWS/KV` the step times that they follow from; None without steps.

    Args:
        run: with its steps.
        modes: kind and drafting mode of each system by its name; where drafts go ahead of verdicts, or are made beside
            the target, no round trip is waited for.
    """
    times = fastest_steps(run.steps)
    if len(times) < 2:
        return None
    curve = MeasuredCurve(_grid(times))
    repetitions: dict[str, list[CellRecord]] = defaultdict(list)
    for cell in run.cells:
        if cell.load.startswith("closed-"):
            repetitions[cell.cell].append(cell)
    contexts = _contexts(run.steps)
    bound = {f"{_INPUT}/{rows}/{kv}": 1e3 * seconds for (rows, kv), seconds in times.items()}
    for name, cells in repetitions.items():
        kind, mode = modes[cells[0].system]
        # Counters that were read while a step was being booked may not fit together; such a cell has no bound.
        with contextlib.suppress(BoundError):
            waits = kind == "specedge" and mode != "streamed"
            bound[name] = _best(curve, cells, contexts.get(name, 0), waits=waits)
    return bound


def step_times(bound: dict[str, float]) -> str:
    """The step times among a bound's numbers, in words; "" without any."""
    by_rows: dict[int, list[str]] = defaultdict(list)
    for name, step_ms in bound.items():
        if name.startswith(f"{_INPUT}/"):
            _, rows, kv = name.split("/")
            by_rows[int(rows)].append(f"{step_ms:.3g} to {int(kv):,}")
    return "; ".join(f"{rows} row{'s' if rows > 1 else ''}: {', '.join(times)}" for rows, times in by_rows.items())


def _contexts(steps: Iterable[StepRecord]) -> dict[str, int]:
    """KV tokens that a session's verification read on average, by cell."""
    tokens, sessions = Counter[str](), Counter[str]()
    for step in steps:
        if step.queue_ms:
            tokens[step.cell] += step.num_kv_tokens
            sessions[step.cell] += step.num_sessions
    return {cell: round(tokens[cell] / sessions[cell]) for cell in sessions}


def _grid(times: StepSeconds) -> Grid:
    rows, kvs = (tuple(sorted(set(axis))) for axis in zip(*times, strict=True))
    return Grid(rows, kvs, tuple(tuple(times.get((num_rows, kv)) for kv in kvs) for num_rows in rows))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _best(curve: MeasuredCurve, cells: Sequence[CellRecord], kv_tokens: int, *, waits: bool) -> float:
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
        kv_tokens,
        tokens_from_depths(accepted, num_trees) if num_trees else no_draft,
        rtt_s=cells[0].rtt_ms_configured / 1e3 if waits and num_trees else 0.0,
        hit_rate=hits / num_guesses if num_guesses else 0.0,
    )
    return best.tokens_per_s
