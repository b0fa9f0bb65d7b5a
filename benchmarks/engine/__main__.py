"""`python -m benchmarks.engine`: step times of the engines; `attention` and `gpu-targets` are commands of their own."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.engine import attention, gpu_targets, report
from benchmarks.engine.hardware import Sizes, measure_hardware
from benchmarks.engine.models import ENGINES, SHAPES, Loaded, check_engines, embedded, find, random_model
from benchmarks.engine.points import KINDS, BadGrid, Point, grid
from benchmarks.engine.timing import clock_for, take_turns
from specedge.errors import SettingsError, SpecEdgeError
from specedge.model.loader import DTYPES, resolve_device
from specedge_bench.shape_timing import EagerSteps, Step, slots_for
from specedge_cli.cores import available_cores

_RESULTS = Path(__file__).resolve().parents[1] / "results"
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PREFIXES = (128, 512, 2048, 4096)
_ROLES = ("target", "draft")
_MAX_STEPS = 10_000

Show = Callable[[report.EngineRun], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"attention": attention.main, "gpu-targets": gpu_targets.main}
    if given and given[0] in commands:
        return commands[given[0]](given[1:])
    options = _parser().parse_args(given)
    logging.basicConfig(level=logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 200)
    runs: list[report.EngineRun] = []
    try:
        old = report.read(options.out, SettingsError)
        is_whole = measure(options, runs)
    except SettingsError as error:
        console.print(f"[red]refused[/]: {error}")
        return 2
    except SpecEdgeError as error:
        console.print(f"[red]failed[/]: {error}")
        return 1
    report.write(options.out, report.merge(old, runs))
    text = report.markdown([run for run in runs if run.points])
    console.print(Markdown(text)) if console.is_terminal else sys.stdout.write(text)
    return 0 if is_whole else 130


def measure(options: argparse.Namespace, runs: list[report.EngineRun]) -> bool:
    """Add a run for every model; False, with the points that were measured, where Ctrl-C ended it.

    Raises:
        SettingsError: what is asked for cannot be measured.
    """
    device = resolve_device(options.device)
    options.engines = options.engines or tuple(name for name in ENGINES if name != "native" or device.type == "cpu")
    _check(options, device)
    torch.set_num_threads(options.threads)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    loads: list[Callable[[], Loaded]]
    if options.shape is None:
        loads = [partial(embedded, role, device, dtype) for role in options.models]
    else:
        loads = [partial(random_model, find(options.shape), device, DTYPES[dtype])]
    try:
        for load in loads:
            loaded = load()
            points = grid(options.kinds, options.rows, options.prefix, loaded.max_positions)
            _measure_model(loaded, points, options, device, DTYPES[dtype], runs)
    except KeyboardInterrupt:
        return False
    return True


def _measure_model(
    loaded: Loaded,
    points: Sequence[Point],
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    runs: list[report.EngineRun],
) -> None:
    """Time all engines at all points; the run is in `runs` from its first point on."""
    sizes = Sizes(loaded.shape, weight_bytes=loaded.weight_dtype.itemsize, kv_bytes=dtype.itemsize)
    clock = clock_for(device, options.threads)
    found = measure_hardware(sizes.all_weight_bytes, dtype, device, clock)
    stored = str(loaded.weight_dtype).removeprefix("torch.")
    run = report.new_run(loaded.name, str(device), options.threads, stored, options.engines, found)
    runs.append(run)
    places = [(point.num_sessions, point.num_nodes, point.prefix) for point in points]
    num_slots = slots_for(places, loaded.shape, device, dtype)
    runners = {name: loaded.make(name, num_slots) for name in options.engines}
    batches = {name: EagerSteps(runner) for name, runner in runners.items()}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(loaded.name, total=len(points))
        for point in points:
            progress.update(task, description=f"{loaded.name}: {point.kind} of {point.num_rows} at {point.prefix}")
            steps: dict[str, Step] = {}
            for name, runner in runners.items():
                place = point.num_sessions, point.num_nodes, point.prefix
                batch = batches[name].batch(*place, is_chain=point.kind == "chunk")
                steps[name] = lambda runner=runner, batch=batch: runner.forward(batch)  # type: ignore[misc]
            times = take_turns(steps, device, options.steps, options.max_seconds, clock)
            bound_s = sizes.bound_s(point, found.read_bytes_per_s, found.flops)
            for name, taken in times.items():
                run.points.append(report.measured(point, name, taken, bound_s))
            progress.advance(task)


def _check(options: argparse.Namespace, device: torch.device) -> None:
    cores = available_cores()
    if not 1 <= options.threads <= cores:
        raise BadGrid(f"threads {options.threads}: from 1 to {cores}, the cores that may be used here")
    if not 1 <= options.steps <= _MAX_STEPS:
        raise BadGrid(f"steps {options.steps}: from 1 to {_MAX_STEPS}")
    if options.max_seconds <= 0:
        raise BadGrid(f"max-seconds {options.max_seconds:g}: more than 0")
    check_engines(options.engines, device)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: positive integers, separated by commas, are needed")
    return sizes


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A list of known words, in the order of `known`."""

    def read(text: str) -> tuple[str, ...]:
        words = set(text.split(","))
        if unknown := sorted(words - set(known)):
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: known are {', '.join(known)}")
        return tuple(word for word in known if word in words)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__, allow_abbrev=False)
    parser.add_argument("--engines", type=_some_of(ENGINES), metavar="LIST", help="(default: all the device takes)")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--models", type=_some_of(_ROLES), default=_ROLES, metavar="LIST", help="of the embedded pair")
    models.add_argument("--shape", metavar="NAME", help=f"random weights instead: {', '.join(SHAPES)}")
    parser.add_argument("--kinds", type=_some_of(tuple(KINDS)), default=tuple(KINDS), metavar="LIST")
    parser.add_argument("--rows", type=_sizes, default=_ROWS, help="rows of a forward (default 1 to 256)")
    parser.add_argument("--prefix", type=_sizes, default=_PREFIXES, help="tokens before them (default 128 to 4096)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="CPU threads (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each engine (default %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=2.0, help="fewer where a point takes longer (default 2)")
    parser.add_argument("--out", type=Path, default=_RESULTS, metavar="FOLDER", help="(default benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
