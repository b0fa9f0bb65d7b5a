"""Simulations of every combination of some values, as a table and as rows for a program."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from specedge_bench.simulation.result import SimResult
from specedge_bench.simulation.scenario import Progress, Scenario
from specedge_bench.simulation.simulation import simulate


@dataclass(frozen=True, slots=True)
class Point:
    """One combination and what it brought.

    Attributes:
        setting: what sets it apart, by flag name.
    """

    setting: Mapping[str, object]
    result: SimResult


def combinations(axes: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Every combination of one value per axis; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def run_points(
    points: Sequence[tuple[Mapping[str, object], Scenario]],
    on_point: Callable[[Point], None],
    on_progress: Progress | None = None,
) -> list[Point]:
    """Simulates one after the other; `on_point` is told each result at once, so that an interruption loses none."""
    done = []
    for setting, scenario in points:
        point = Point(setting, simulate(scenario, on_progress))
        on_point(point)
        done.append(point)
    return done


def to_row(point: Point) -> dict[str, Any]:
    """One JSON row."""
    return {**point.setting, **asdict(point.result)}


def append_row(path: Path, point: Point) -> None:
    """Adds one JSON line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(to_row(point)) + "\n")


_COLUMNS: tuple[tuple[str, Callable[[SimResult], str]], ...] = (
    ("tokens/s", lambda result: f"{result.tokens_per_s:.0f}"),
    ("ITL p50 / p95 / p99, ms", lambda result: " / ".join(f"{value:.1f}" for value in result.itl_ms)),
    ("TPOT, ms", lambda result: f"{result.tpot_ms:.1f}"),
    ("TTFT p50 / p95, ms", lambda result: " / ".join(f"{value:.0f}" for value in result.ttft_ms[:2])),
    ("tokens/verification", lambda result: f"{result.tokens_per_verification:.2f}"),
    ("nodes/verification", lambda result: f"{result.nodes_per_verification:.1f}"),
    ("sessions/step", lambda result: f"{result.sessions_per_step:.1f}"),
    ("verifier busy", lambda result: f"{100 * result.verifier_busy:.0f} %"),
    ("draft busy", lambda result: f"{100 * result.draft_busy:.0f} %"),
)


def markdown_table(points: Sequence[Point]) -> str:
    """The points as a Markdown table; settings all of them share are left out, unless there is only one."""
    names = [
        name
        for name in points[0].setting
        if len(points) == 1 or len({str(point.setting[name]) for point in points}) > 1
    ]
    head = [*names, *(title for title, _ in _COLUMNS)]
    lines = [_line(head), _line(["---"] * len(names) + ["---:"] * len(_COLUMNS))]
    for point in points:
        cells = [str(point.setting[name]) for name in names]
        lines.append(_line([*cells, *(show(point.result) for _, show in _COLUMNS)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
