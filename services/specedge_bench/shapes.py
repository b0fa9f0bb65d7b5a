"""`specedge bench shapes`: measures step-time curves with random weights for any dense `config.json`."""

import argparse
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from specedge.errors import SpecEdgeError
from specedge.model.loader import DTYPES, resolve_device
from specedge_bench.curves import Grid, StepCurve, write_curve
from specedge_bench.json_file import read_object
from specedge_bench.machine import system_version
from specedge_bench.model_shape import BUILT_IN, ModelShape, ShapeError, find_shape
from specedge_bench.shape_timing import Stopwatch, eager_steps, graph_steps, kernel_shares

DEFAULT_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEFAULT_PREFIXES = (128, 512, 2048, 8192)
METHODS = {True: "measured graph (lean forward)", False: "measured eager (ModelRunner)"}


class NothingFitted(SpecEdgeError):
    """No point of the grid fitted into the device's memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of one model."""

    shape: ModelShape
    config: dict[str, Any]
    dtype: str
    device: torch.device
    rows: tuple[int, ...]
    prefixes: tuple[int, ...]
    num_nodes: int
    has_kernels: bool

    @property
    def tree_rows(self) -> tuple[int, ...]:
        """Rows of the tree grid: one tree and whole numbers of trees."""
        fitting = {num_rows for num_rows in self.rows if num_rows % self.num_nodes == 0}
        return tuple(sorted({self.num_nodes, *fitting})) if self.num_nodes > 1 else ()

    def points(self) -> list[tuple[int, int, int]]:
        """(sessions, nodes of each, prefix) of every point, large ones first, so that what does not fit shows early."""
        decode = [(num_rows, 1, prefix) for num_rows in self.rows for prefix in self.prefixes]
        trees = [
            (num_rows // self.num_nodes, self.num_nodes, prefix)
            for num_rows in self.tree_rows
            for prefix in self.prefixes
        ]
        return sorted(decode + trees, key=lambda point: point[0] * point[2], reverse=True)


Timed = dict[tuple[int, int, int], float | None]


def measure(
    plan: Plan, is_graph: bool, watch: Stopwatch, show_progress: bool = True
) -> tuple[StepCurve, dict[str, Any]]:
    """Time every point of the plan.

    Returns:
        the curve, and notes for the profile file: machine, versions and the kernels' shares.
    """
    make: Callable[..., Any] = graph_steps if is_graph else eager_steps
    timed: Timed = {}
    shares: dict[str, dict[str, float]] = {}
    with make(plan.shape, plan.config, plan.device, DTYPES[plan.dtype], plan.points()) as steps:
        for point in _progress(plan.points(), f"{plan.shape.name} {'graph' if is_graph else 'eager'}", show_progress):
            try:
                with steps.prepare(*point) as step:
                    timed[point] = watch.median_s(step, plan.device)
                    if plan.has_kernels and point[2] == plan.prefixes[len(plan.prefixes) // 2]:
                        name = f"{point[0]}x{point[1]} rows, prefix {point[2]}"
                        shares[name] = kernel_shares(step, plan.device)
            except torch.OutOfMemoryError:
                timed[point] = None
                _release(plan.device)
    _release(plan.device)
    device_name = _device_name(plan.device)
    curve = StepCurve(
        name=f"{plan.shape.name.lower()}-{plan.dtype}-{'graph' if is_graph else 'eager'}",
        device=device_name,
        model=plan.shape.name,
        dtype=plan.dtype,
        method=METHODS[is_graph],
        decode=_grid(timed, plan.rows, plan.prefixes, 1),
        tree=_grid(timed, plan.tree_rows, plan.prefixes, plan.num_nodes) if plan.tree_rows else None,
        num_nodes=plan.num_nodes if plan.tree_rows else 1,
    )
    notes: dict[str, Any] = {
        "machine": {"torch": torch.__version__, "system": system_version(), "threads": torch.get_num_threads()}
    }
    return curve, notes | ({"kernels": shares} if shares else {})


def _grid(timed: Timed, rows: Iterable[int], prefixes: tuple[int, ...], num_nodes: int) -> Grid:
    lines = [(num, tuple(timed[num // num_nodes, num_nodes, prefix] for prefix in prefixes)) for num in rows]
    fitting = [(num, line) for num, line in lines if any(value is not None for value in line)]
    if not fitting:
        raise NothingFitted("no point fitted into the device's memory; ask for fewer rows or a shorter prefix")
    return Grid(tuple(num for num, _ in fitting), prefixes, tuple(line for _, line in fitting))


def _progress(points: list[tuple[int, int, int]], name: str, is_shown: bool) -> Iterable[tuple[int, int, int]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
        task = progress.add_task(name, total=len(points))
        for num_sessions, num_nodes, prefix in points:
            progress.update(task, description=f"{name}: {num_sessions} x {num_nodes} rows, prefix {prefix}")
            yield num_sessions, num_nodes, prefix
            progress.advance(task)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def read_model(name_or_path: str) -> tuple[ModelShape, dict[str, Any]]:
    """Shape and configuration of a built-in name, a `config.json` or a folder with one.

    Raises:
        ShapeError: there is no such model, or the file is not a dense decoder's configuration.
    """
    if (shape := find_shape(name_or_path)) is not None:
        return shape, shape.to_config()
    path = Path(name_or_path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ShapeError(f"config {name_or_path}: no such file; built in are {', '.join(BUILT_IN)}")
    config = read_object(path, ShapeError)
    return ModelShape.from_config(path.resolve().parent.name, config), config


def describe(curve: StepCurve) -> str:
    """The grids as text, and what a tree verification costs against a plain decode step of the same sessions."""
    lines = [f"{curve.model} {curve.dtype} on {curve.device}, {curve.method}; ms per step"]
    grids = [("decode", curve.decode)] + ([(f"trees of {curve.num_nodes}", curve.tree)] if curve.tree else [])
    for title, grid in grids:
        lines.append(f"{title:>14}" + "".join(f"{f'kv {prefix}':>11}" for prefix in grid.prefixes))
        for num_rows, values in zip(grid.rows, grid.seconds, strict=True):
            cells = ("no memory" if value is None else f"{value * 1e3:.3f}" for value in values)
            lines.append(f"{f'{num_rows} rows':>14}" + "".join(f"{cell:>11}" for cell in cells))
    if curve.tree is not None:
        for num_rows in curve.tree.rows:
            num_sessions = num_rows // curve.num_nodes
            ratios = (
                curve.tree.at(num_rows, prefix) / curve.decode.at(num_sessions, prefix) for prefix in curve.prefixes
            )
            text = ", ".join(f"{ratio:.2f} at kv {p}" for ratio, p in zip(ratios, curve.prefixes, strict=True))
            lines.append(f"{num_sessions} x {curve.num_nodes} nodes / {num_sessions} plain rows: {text}")
    return "\n".join(lines)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: positive integers, separated by commas, are needed")
    return sizes


def _positive(text: str) -> int:
    return _sizes(text)[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specedge bench shapes", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help=f"config.json, its folder, or one of {', '.join(BUILT_IN)}")
    parser.add_argument("--rows", type=_sizes, default=DEFAULT_ROWS, help="rows of the step, over all sessions")
    parser.add_argument("--prefix", type=_sizes, default=DEFAULT_PREFIXES, help="KV tokens of each session")
    parser.add_argument("--nodes", type=_positive, default=32, help="rows of a tree in the tree grid; 1: no tree grid")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--graph",
        choices=("on", "off", "both"),
        help="CUDA graph, eager, or both (default: both on CUDA, off elsewhere)",
    )
    parser.add_argument("--steps", type=_positive, default=20, help="timed steps of each point, after warm-up")
    parser.add_argument("--max-seconds", type=float, default=2.0, help="fewer steps where they would take longer")
    parser.add_argument(
        "--kernels", action="store_true", help="also profile the shares of GEMM, attention and the rest"
    )
    parser.add_argument("--out", required=True, type=Path, help="profile to write; the eager one of `both` gets -eager")
    return parser


def main(arguments: list[str]) -> int:
    """Measure, print and write one or two profiles.

    Raises:
        ShapeError: the model is unknown, or has no shape here.
        NothingFitted: the device's memory is too small.
    """
    options = _parser().parse_args(arguments)
    device = resolve_device(options.device)
    graph = options.graph or ("both" if device.type == "cuda" else "off")
    if graph != "off" and device.type != "cuda":
        raise ShapeError(f"--graph {graph}: a CUDA graph needs a CUDA device, and this is {device}")
    shape, config = read_model(options.config)
    plan = Plan(
        shape=shape,
        config=config,
        dtype=options.dtype or ("bfloat16" if device.type == "cuda" else "float32"),
        device=device,
        rows=options.rows,
        prefixes=options.prefix,
        num_nodes=options.nodes,
        has_kernels=options.kernels,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(options.steps, options.max_seconds)
    for is_graph in {"on": (True,), "off": (False,), "both": (True, False)}[graph]:
        curve, notes = measure(plan, is_graph, watch)
        out = options.out.with_stem(f"{options.out.stem}-eager") if graph == "both" and not is_graph else options.out
        write_curve(out, replace(curve, name=out.stem), notes)
        print(describe(curve))
        for point, shares in notes.get("kernels", {}).items():
            print(f"  {point}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))
        print(f"written to {out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
