"""What was measured as one file of numbers, to which further runs add theirs, and as tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.engine.hardware import Hardware
from benchmarks.engine.points import KINDS, Kind, Point
from benchmarks.engine.timing import Times
from specedge_bench.json_file import read_object
from specedge_bench.machine import this_machine
from specedge_bench.tables import ABSENT, number, percent

FILE = "engine"
BASE = "transformers"
BOUND = "bound"
FEW_ROWS = 32
GOAL = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One point by one engine, times in milliseconds."""

    kind: Kind
    num_sessions: int
    num_rows: int
    prefix: int
    engine: str
    median_ms: float
    p95_ms: float
    num_steps: int
    bound_ms: float

    @property
    def of_bound(self) -> float:
        """The share of the step that the hardware needs."""
        return self.bound_ms / self.median_ms


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One model on one device."""

    model: str
    device: str
    threads: int
    weights: str
    engines: tuple[str, ...]
    hardware: Hardware
    machine: dict[str, str]
    points: list[Measured] = field(default_factory=list)

    @property
    def is_thread_time(self) -> bool:
        return self.device == "cpu" and self.threads == 1

    @property
    def title(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.device == "cpu" else ""
        return f"{self.model} on {self.device}{threads}"

    def ratios(self, engine: str, num_rows: int) -> list[float]:
        """How many times as fast as transformers an engine is at every point of trees with so many rows.

        Args:
            engine: or `BOUND`, for how many times as fast it could be.
        """
        trees = [point for point in self.points if point.kind != "chunk" and point.num_rows == num_rows]
        base = {_place(point): point for point in trees if point.engine == BASE}
        if engine == BOUND:
            return [1 / point.of_bound for point in base.values()]
        return [
            base[_place(point)].median_ms / point.median_ms
            for point in trees
            if point.engine == engine and _place(point) in base
        ]


def _place(point: Measured) -> tuple[str, int, int]:
    return point.kind, point.num_rows, point.prefix


def merge(old: Sequence[EngineRun], new: Sequence[EngineRun]) -> list[EngineRun]:
    """New runs take the place of old ones of the same model, device and threads; a run without points does not."""
    runs = {run.title: run for run in old} | {run.title: run for run in new if run.points}
    return list(runs.values())


def read(folder: Path, error: type[Any]) -> list[EngineRun]:
    """The runs in the folder's file; none where there is no file. Raises `error` where it holds something else."""
    path = folder / f"{FILE}.json"
    if not path.exists():
        return []
    try:
        return [_run(fields) for fields in read_object(path, error)["runs"]]
    except (KeyError, TypeError) as reason:
        raise error(f"{path}: field {reason} is missing or malformed; choose another folder") from reason


def _run(fields: dict[str, Any]) -> EngineRun:
    hardware, points = Hardware(**fields["hardware"]), [Measured(**point) for point in fields["points"]]
    return EngineRun(**fields | {"hardware": hardware, "points": points, "engines": tuple(fields["engines"])})


def write(folder: Path, runs: Sequence[EngineRun]) -> None:
    """Write the numbers and their tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{FILE}.json").write_text(json.dumps({"runs": [_rounded(asdict(run)) for run in runs]}, indent=1) + "\n")
    (folder / f"{FILE}.md").write_text(markdown(runs))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def markdown(runs: Sequence[EngineRun]) -> str:
    """What it comes to, then a section for each run."""
    parts = ["# Step times of the engines\n", *_overview(runs), *(_section(run) for run in runs)]
    return "\n".join(parts)


def _overview(runs: Sequence[EngineRun]) -> list[str]:
    rows = sorted({point.num_rows for run in runs for point in run.points if point.num_rows <= FEW_ROWS})
    lines = [
        "Times as fast as transformers in the same run, by rows of trees, geometric means over prefixes and sessions; "
        f"the goal is {GOAL:g}. *Bound* is what the hardware would allow.\n",
        f"| model | engine | {' | '.join(map(str, rows))} |",
        f"|---|---|{'---:|' * len(rows)}",
    ]
    for run in runs:
        for engine in (*run.engines, BOUND):
            ratios = [run.ratios(engine, num_rows) for num_rows in rows]
            if engine != BASE and any(ratios):
                cells = (number(geometric_mean(found)) if found else ABSENT for found in ratios)
                lines.append(f"| {run.title} | {engine} | {' | '.join(cells)} |")
    return [*lines, ""]


def _section(run: EngineRun) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in run.machine.items())
    hardware = run.hardware
    lines = [
        f"## {run.title}\n",
        f"{machine}. Measured in the same run: {hardware.read_bytes_per_s / 1e9:.0f} GB/s reading "
        f"{hardware.num_bytes / 2**20:.0f} MiB again and again (the size of the weights), "
        f"{hardware.flops / 1e9:.0f} GFLOP/s in {hardware.dtype} products; weights are stored in {run.weights}.\n",
        "Times in ms"
        + (" of the thread, so that other processes do not count" if run.is_thread_time else "")
        + ", median (95 %); *x* is times as fast as transformers, *bound* the share of the step that the "
        "hardware needs; above 100 % products are faster than the library's large one.\n",
    ]
    for kind, group in groupby(run.points, key=lambda point: point.kind):
        lines += [f"### {KINDS[kind][0].upper()}{KINDS[kind][1:]}\n", *_table(run, list(group)), ""]
    return "\n".join(lines)


def _table(run: EngineRun, points: Sequence[Measured]) -> list[str]:
    columns = [f"{engine} | {'' if engine == BASE else 'x | '}bound" for engine in run.engines]
    width = sum(2 if engine == BASE else 3 for engine in run.engines)
    lines = [f"| rows | prefix | {' | '.join(columns)} |", f"|{'---:|' * (2 + width)}"]
    for (num_rows, prefix), group in groupby(points, key=lambda point: (point.num_rows, point.prefix)):
        by_engine = {point.engine: point for point in group}
        cells = [str(num_rows), str(prefix)]
        for engine in run.engines:
            cells += _cells(by_engine.get(engine), by_engine.get(BASE), is_base=engine == BASE)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cells(point: Measured | None, base: Measured | None, *, is_base: bool) -> list[str]:
    if point is None:
        return [ABSENT] * (2 if is_base else 3)
    ratio = base.median_ms / point.median_ms if base is not None else math.nan
    times = f"{number(point.median_ms)} ({number(point.p95_ms)})"
    return [times, *([] if is_base else [number(ratio)]), percent(point.of_bound)]


def measured(point: Point, engine: str, taken: Times, bound_s: float) -> Measured:
    """A row of the file."""
    return Measured(
        kind=point.kind,
        num_sessions=point.num_sessions,
        num_rows=point.num_rows,
        prefix=point.prefix,
        engine=engine,
        median_ms=1e3 * taken.median_s,
        p95_ms=1e3 * taken.p95_s,
        num_steps=taken.num_steps,
        bound_ms=1e3 * bound_s,
    )


def new_run(model: str, device: str, threads: int, weights: str, engines: Sequence[str], found: Hardware) -> EngineRun:
    """A run on this machine, yet without points."""
    return EngineRun(model, device, threads, weights, tuple(engines), found, this_machine())
