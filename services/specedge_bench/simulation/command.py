"""`specedge bench simulate`: throughput, latency and cost on machines that are not at hand, from the product's code."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from specedge.errors import SettingsError, SpecEdgeError
from specedge_bench.curves import list_curves, load_curve
from specedge_bench.devices import DEVICES
from specedge_bench.model_shape import BUILT_IN
from specedge_bench.network.profiles import PROFILES
from specedge_bench.simulation.acceptance_trace import list_traces, load_trace
from specedge_bench.simulation.flags import simulate_parser
from specedge_bench.simulation.grid import Point, SimulatedPoint, markdown_table, run_points, to_row
from specedge_bench.simulation.points import PointMaker
from specedge_bench.simulation.run_rows import ReportWriter
from specedge_cli.cores import available_cores


def main(arguments: list[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 done, 130 interrupted; what was simulated by then is in the table and the files.

    Raises:
        SettingsError: a name is unknown or a value makes no sense; names what is known.
        SpecEdgeError: a simulation failed.
    """
    options = simulate_parser().parse_args(arguments)
    if options.list:
        print(_known())
        return 0
    if options.record is not None:
        from specedge_bench.simulation.record import record_traces

        for path in record_traces(options.record):
            print(path)
        return 0
    try:
        points = PointMaker(options).points()
        report = None if options.report is None else ReportWriter(options, points)
    except SpecEdgeError as error:
        raise SettingsError(str(error)) from error
    if options.out is not None:
        _write(options.out, [])
    num_processes = options.processes or available_cores()
    found, is_complete = _simulate(points, num_processes, options.out, report)
    if found:
        _print(found)
    if options.out is not None:
        _write(options.out, found)
    if report is not None:
        report.finish()
    return 0 if is_complete else 130


def _simulate(
    points: Sequence[Point], num_processes: int, out: Path | None, report: ReportWriter | None
) -> tuple[list[SimulatedPoint], bool]:
    """What was simulated, and whether it is all."""
    found: list[SimulatedPoint] = []
    scenarios = [scenario for point in points for scenario in point.scenarios]
    num_tokens = sum(
        scenario.num_sessions
        * scenario.max_tokens
        * (scenario.requests_per_user if scenario.arrival_rate is None else 1)
        for scenario in scenarios
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"0 of {len(points)} rows", total=num_tokens)

        def keep(point: SimulatedPoint) -> None:
            if report is not None:
                report.add(point)
            found.append(replace(point, outcomes=()))  # of large runs they take most of the memory
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(to_row(found[-1], found)) + "\n")
            progress.update(task, description=f"{len(found)} of {len(points)} rows")

        try:
            run_points(points, num_processes, keep, lambda num_done: progress.update(task, completed=num_done))
        except KeyboardInterrupt:
            return found, False
    return found, True


def _write(path: Path, found: Sequence[SimulatedPoint]) -> None:
    """All rows anew: only now is every row's baseline known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(to_row(point, found)) + "\n" for point in found), encoding="utf-8")


def _print(found: Sequence[SimulatedPoint]) -> None:
    print(markdown_table(found))
    for trace in sorted({str(point.point.setting["trace"]) for point in found}):
        print(f"\nAcceptance {trace}: {load_trace(trace).assumption}.")
    unpriced = dict.fromkeys(name for each in found for name in each.point.devices.unpriced(each.point.scenarios[0]))
    named = [name for name in unpriced if name]
    if named:
        flags = " ".join(f"--price '{name}=DOLLARS_PER_S'" for name in named)
        print(f"\nNo built-in price for {' and '.join(named)}: costs that need one are left out; add {flags}.")
    if "" in unpriced:
        print("\nA straight line has no device, hence no cost: name one with --verifier-gpu and --edge-gpu.")


def _known() -> str:
    """What can be named, as Markdown."""
    lines = ["Curves (--verifier-curve, --draft-curve):"]
    for name in list_curves():
        curve = load_curve(name)
        lines.append(f"  {name}: {curve.model} on {curve.device}, {curve.dtype}, {curve.method}")
    lines += ["  DEVICE/MODEL: a roofline of any device and model below", "  30ms: every step takes that long"]
    lines += ["  a file that `specedge bench shapes` wrote", "Devices and built-in prices:"]
    for device in DEVICES.values():
        price = "no price, see --price" if device.price_per_s is None else f"{device.price_per_s:g} $/s"
        lines.append(f"  {device.name}: {price}")
    lines += [f"Models: {', '.join(BUILT_IN)}", f"Networks: {', '.join(PROFILES)}, and rttMS"]
    lines.append(f"Traces: {', '.join(list_traces()) or 'none recorded'}, and synthetic[:SHARES][@PERSISTENCE]")
    return "\n".join(lines)
