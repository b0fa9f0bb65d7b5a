"""Simulations of every combination of some values, as a table and as rows for a program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from math import isfinite, isnan, nan
from statistics import mean, stdev
from typing import Any

from specedge_bench.cost import AUTOREGRESSIVE, SERVER_ONLY, Cost
from specedge_bench.simulation.priced import Devices, simulated_cost
from specedge_bench.simulation.processes import run_shards
from specedge_bench.simulation.result import SimResult
from specedge_bench.simulation.scenario import Scenario
from specedge_bench.simulation.shard import ShardOutcome
from specedge_bench.simulation.simulation import result_of

SYSTEM_AXES = ("system", "mode", "batch-type")
"""What may differ between a point and the baselines it is compared with; None where a system has no such choice."""

Setting = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One combination to be simulated.

    Attributes:
        setting: what sets it apart, by flag name.
        scenarios: its repetitions; they differ by their seeds.
        devices: what they compute on.
    """

    setting: Setting
    scenarios: tuple[Scenario, ...]
    devices: Devices

    @property
    def place(self) -> tuple[str, ...]:
        """The setting without the system: points of one place are compared."""
        return tuple(str(value) for name, value in self.setting.items() if name not in SYSTEM_AXES)


@dataclass(frozen=True, slots=True)
class SimulatedPoint:
    """A combination and what it brought.

    Attributes:
        result: means over the repetitions.
        spread: standard deviations over them; NaN for one repetition.
        cost: of all repetitions together.
        outcomes: by repetition and verifier.
    """

    point: Point
    result: SimResult
    spread: SimResult
    cost: Cost
    outcomes: tuple[tuple[ShardOutcome, ...], ...]


def combinations(axes: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Every combination of one value per axis; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def run_points(
    points: Sequence[Point],
    num_processes: int,
    on_point: Callable[[SimulatedPoint], None],
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> None:
    """Simulates all points; `on_point` is told each one as soon as it and all before it are finished.

    Args:
        points: every verifier of every repetition is a task of its own.
        num_processes: see `run_shards`; changes no result and no order.
        on_point: also told what is finished when this is interrupted.
        on_tokens: told how many tokens have arrived.
    """
    tasks = [
        (number, repetition, (scenario, shard))
        for number, point in enumerate(points)
        for repetition, scenario in enumerate(point.scenarios)
        for shard in range(scenario.num_shards)
    ]
    found: dict[int, list[list[ShardOutcome | None]]] = {
        number: [[None] * scenario.num_shards for scenario in point.scenarios] for number, point in enumerate(points)
    }
    try:
        for index, outcome in run_shards([task for _, _, task in tasks], num_processes, on_tokens):
            number, repetition, (_, shard) = tasks[index]
            found[number][repetition][shard] = outcome
            while found and (done := _complete(found[first := min(found)])) is not None:
                del found[first]
                on_point(_summed_up(points[first], done))
    finally:
        for number, outcomes in found.items():
            if (done := _complete(outcomes)) is not None:
                on_point(_summed_up(points[number], done))


def _complete(outcomes: list[list[ShardOutcome | None]]) -> tuple[tuple[ShardOutcome, ...], ...] | None:
    complete = tuple(tuple(outcome for outcome in shards if outcome is not None) for shards in outcomes)
    return complete if list(map(len, complete)) == list(map(len, outcomes)) else None


def _summed_up(point: Point, outcomes: tuple[tuple[ShardOutcome, ...], ...]) -> SimulatedPoint:
    results = [result_of(scenario, shards) for scenario, shards in zip(point.scenarios, outcomes, strict=True)]
    cost = simulated_cost(point.scenarios[0], results, point.devices)
    return SimulatedPoint(point, _over(results, mean), _over(results, _deviation), cost, outcomes)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else nan


def _over(results: Sequence[SimResult], statistic: Callable[[Sequence[float]], float]) -> SimResult:
    """The statistic of every number; of a single result the mean is the result itself."""
    if len(results) == 1 and statistic is mean:
        return results[0]
    values: dict[str, Any] = {}
    for field in fields(SimResult):
        columns = [getattr(result, field.name) for result in results]
        is_tuple = isinstance(columns[0], tuple)
        values[field.name] = tuple(map(statistic, zip(*columns, strict=True))) if is_tuple else statistic(columns)
    return replace(results[0], **values)


def efficiency(found: SimulatedPoint, baseline: str, all_found: Sequence[SimulatedPoint]) -> float:
    """Billed tokens per dollar over that of the baseline at the same place; NaN where either is unknown."""
    for other in all_found:
        if other.point.setting["system"] == baseline and other.point.place == found.point.place:
            theirs = other.cost.billed_tokens_per_dollar
            return found.cost.billed_tokens_per_dollar / theirs if theirs > 0 else nan
    return nan


def to_row(found: SimulatedPoint, all_found: Sequence[SimulatedPoint]) -> dict[str, Any]:
    """One JSON row; what is not known is None."""
    point, cost = found.point, found.cost
    scenario = point.scenarios[0]
    row = {**point.setting, "rtt-ms": scenario.network.rtt_ms, "repetitions": len(point.scenarios)}
    row |= {"num_edges": scenario.num_edges, "num_verifiers": scenario.num_verifiers}
    row |= {"verifier_device": point.devices.verifier, "edge_device": point.devices.edge}
    row |= asdict(found.result)
    row |= {
        "billed_per_million": cost.billed_per_million,
        "active_per_million": cost.active_per_million,
        "efficiency_to_server_only": efficiency(found, SERVER_ONLY, all_found),
        "efficiency_to_autoregressive": efficiency(found, AUTOREGRESSIVE, all_found),
        "spread": asdict(found.spread) if len(point.scenarios) > 1 else None,
    }
    return {name: _known(value) for name, value in row.items()}


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return [_known(entry) for entry in value]
    return None if isinstance(value, float) and isnan(value) else value


_COLUMNS: tuple[tuple[str, Callable[[SimResult], Sequence[float]], str], ...] = (
    ("tokens/s", lambda result: (result.tokens_per_s,), ".0f"),
    ("ITL p50 / p95 / p99, ms", lambda result: result.itl_ms, ".1f"),
    ("TPOT, ms", lambda result: (result.tpot_ms,), ".1f"),
    ("TTFT p50 / p95, ms", lambda result: result.ttft_ms[:2], ".0f"),
    ("tokens/verification", lambda result: (result.tokens_per_verification,), ".2f"),
    ("nodes/verification", lambda result: (result.nodes_per_verification,), ".1f"),
    ("sessions/step", lambda result: (result.sessions_per_step,), ".1f"),
    ("verifier busy, %", lambda result: (100 * result.verifier_busy,), ".0f"),
    ("draft busy, %", lambda result: (100 * result.draft_busy,), ".0f"),
    ("B up / down", lambda result: (result.bytes_up, result.bytes_down), ".0f"),
)
_SPREAD_COLUMN: tuple[str, Callable[[SimResult], Sequence[float]], str] = (
    "busiest / mean",
    lambda result: (result.imbalance,),
    ".2f",
)
"""Where there are several verifiers."""
_REFUSED_COLUMN: tuple[str, Callable[[SimResult], Sequence[float]], str] = (
    "refused",
    lambda result: (result.num_refused,),
    ".0f",
)
"""Where verifiers refuse."""
_COST_COLUMNS = ("$/M tokens billed", "active", "tokens/$ ÷ server-only", "÷ autoregressive")


def markdown_table(all_found: Sequence[SimulatedPoint]) -> str:
    """The points as a Markdown table; settings all of them share are left out, unless there is only one.

    With repetitions a cell is the mean and the standard deviation over them.
    """
    settings = [found.point.setting for found in all_found]
    values = {name: {str(each[name]) for each in settings if each[name] is not None} for name in settings[0]}
    names = [name for name in values if len(settings) == 1 or len(values[name]) > 1]
    has_cost = any(isfinite(found.cost.billed_per_million) for found in all_found)
    is_spread = any(found.point.scenarios[0].num_verifiers > 1 for found in all_found)
    is_bounded = any(found.point.scenarios[0].queue is not None for found in all_found)
    columns = (*_COLUMNS, *((_SPREAD_COLUMN,) if is_spread else ()), *((_REFUSED_COLUMN,) if is_bounded else ()))
    titles = [title for title, *_ in columns] + (list(_COST_COLUMNS) if has_cost else [])
    lines = [_line([*names, *titles]), _line(["---"] * len(names) + ["---:"] * len(titles))]
    for found in all_found:
        cells = ["–" if found.point.setting[name] is None else str(found.point.setting[name]) for name in names]  # noqa: RUF001
        cells += [_cell(values(found.result), values(found.spread), form) for _, values, form in columns]
        if has_cost:
            baselines = (efficiency(found, baseline, all_found) for baseline in (SERVER_ONLY, AUTOREGRESSIVE))
            costs = (found.cost.billed_per_million, found.cost.active_per_million, *baselines)
            cells += [_cell((value,), (nan,), ".2f") for value in costs]
        lines.append(_line(cells))
    return "\n".join(lines)


def _cell(values: Sequence[float], spreads: Sequence[float], form: str) -> str:
    shown = [
        "–" if isnan(value) else format(value, form) + ("" if isnan(spread) else f" ± {spread:{form}}")  # noqa: RUF001
        for value, spread in zip(values, spreads, strict=True)
    ]
    return " / ".join(shown)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
