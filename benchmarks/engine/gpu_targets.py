"""Holds a GPU to the targets of the data centre's and the edge's step, with random weights at real shapes.

    python -m benchmarks.engine gpu-targets --out gpu-run

Verification: 8 sessions with a tree of 32 nodes each against plain decoding of the same sessions, and both against
their bound, max(weights / bandwidth, 2 P N / rate) + KV / bandwidth. Drafting: one user's step against its bound, and
eight users' rows per second against one's. Attention: the Triton kernel against the reference. Profiles: which kernels
take the time, and where the device waits for the host. Bandwidth and rate are 0.8 and 0.6 of the data sheet where the
device is known, else what a large read and a large product reach. Parts that would begin after `--max-seconds` are left
out, and the report names them. On the CPU, with `--shapes tiny --draft-shape tiny`, the same code runs.
"""

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.attention import CASES, Heads, measure
from benchmarks.engine.hardware import Hardware, Sizes, measure_hardware
from benchmarks.engine.models import TINY, find, random_model
from benchmarks.engine.points import Point
from benchmarks.engine.step_profile import Profile, profile_of
from benchmarks.engine.timing import Times, take_turns
from specedge.errors import SettingsError, SpecEdgeError
from specedge.model.attention.interface import AttentionBackend
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.attention.self_test import TOLERANCES
from specedge.model.lean.runner import LeanRunner
from specedge.model.loader import resolve_device
from specedge_bench.curves import BANDWIDTH_REACHED, FLOPS_REACHED
from specedge_bench.devices import DEVICES
from specedge_bench.machine import this_machine
from specedge_bench.model_shape import ModelShape
from specedge_bench.shape_timing import EagerSteps, Step, slots_for

NUM_SESSIONS, NUM_NODES = 8, 32
MAX_VERIFY_RATIO, MAX_STEP_RATIO, MAX_DRAFT_RATIO, MIN_USERS_RATIO = 1.3, 1.25, 1.5, 4.0
RAGGED = ("8 trees of 32, prefix 2048", "32 chains of 5, prefix 1024", "ragged", "chunk of 512 at 8192")
TINY_CASE = "8 decoding, prefix 128"
MAX_PREFIX, MAX_DRAFT_ROWS = 32768, 256


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio and the limit it is held to."""

    name: str
    value: float
    limit: float
    is_least: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.is_least else self.value <= self.limit


@dataclass(slots=True)
class Report:
    """All that was found."""

    device: str
    machine: dict[str, str]
    rates: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    attention: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the parts share."""

    device: torch.device
    dtype: torch.dtype
    prefix: int
    draft_rows: tuple[int, ...]
    num_steps: int


def rates_of(device: torch.device, measured: Hardware) -> tuple[float, float, str]:
    """(bytes/s, FLOP/s, where they come from) that the bound is computed with."""
    name = torch.cuda.get_device_name(device).upper() if device.type == "cuda" else ""
    # "A100-80" is the sheet of an "NVIDIA A100-SXM4-80GB".
    sheet = next((s for s in DEVICES.values() if all(part in name for part in s.name.upper().split("-"))), None)
    if sheet is None:
        return measured.read_bytes_per_s, measured.flops, "measured in this run"
    return (
        BANDWIDTH_REACHED * sheet.memory_bytes_per_s,
        FLOPS_REACHED * sheet.flops,
        f"{BANDWIDTH_REACHED} and {FLOPS_REACHED} of the data sheet of {sheet.name}",
    )


class ShapeSteps:
    """Steps of one shape's lean model, timed turn by turn and held to their bounds; frees the model at the end."""

    def __init__(self, shape: ModelShape, points: dict[str, Point], plan: Plan) -> None:
        self._points, self._plan = points, plan
        loaded = random_model(shape, plan.device, plan.dtype)
        places = [(point.num_sessions, point.num_nodes, point.prefix) for point in points.values()]
        runner = loaded.make("lean", slots_for(places, shape, plan.device, plan.dtype))
        assert isinstance(runner, LeanRunner), runner
        self._graphs = f"graphs up to {max(runner.row_buckets)} rows" if runner.row_buckets else "no graphs"
        batches = EagerSteps(runner)
        self._steps: dict[str, Step] = {}
        for name, place in zip(points, places, strict=True):
            batch = batches.batch(*place)
            self._steps[name] = lambda batch=batch: runner.forward(batch)  # type: ignore[misc]
        self._sizes = Sizes(shape, plan.dtype.itemsize, plan.dtype.itemsize)
        self._measured = measure_hardware(self._sizes.all_weight_bytes, plan.dtype, plan.device)

    def measure(self, report: Report) -> tuple[dict[str, Times], dict[str, float]]:
        """(times, bounds in seconds) by step; both go into the report too."""
        device, measured = self._plan.device, self._measured
        bytes_per_s, flops, source = rates_of(device, measured)
        report.rates[self._sizes.shape.name] = {
            "bound uses": source,
            "graphs": self._graphs,
            "bytes_per_s": bytes_per_s,
            "flops": flops,
            "measured_bytes_per_s": measured.read_bytes_per_s,
            "measured_flops": measured.flops,
        }
        times = take_turns(self._steps, device, self._plan.num_steps, max_seconds=60.0)
        bounds = {
            name: self._sizes.products_s(point, bytes_per_s, flops) + self._sizes.kv_read(point) / bytes_per_s
            for name, point in self._points.items()
        }
        for name, point in self._points.items():
            report.steps.append(
                {
                    "model": self._sizes.shape.name,
                    "step": name,
                    "num_rows": point.num_rows,
                    "prefix": point.prefix,
                    "median_ms": 1e3 * times[name].median_s,
                    "p95_ms": 1e3 * times[name].p95_s,
                    "bound_ms": 1e3 * bounds[name],
                    "measured_bound_ms": 1e3 * self._sizes.bound_s(point, measured.read_bytes_per_s, measured.flops),
                }
            )
        return times, bounds

    def profile(self, name: str) -> Profile:
        """Where the device's time of one of the steps goes."""
        return profile_of(f"{self._sizes.shape.name}: {name}", self._steps[name], self._plan.device)


def verify(shape: ModelShape, plan: Plan, report: Report) -> None:
    """Verification against plain decoding, and both against the bound."""
    points = {
        "plain": Point("sessions", NUM_SESSIONS, 1, plan.prefix),
        "verify": Point("sessions", NUM_SESSIONS, NUM_NODES, plan.prefix),
    }
    steps = ShapeSteps(shape, points, plan)
    times, bounds = steps.measure(report)
    plain, tree = times["plain"].median_s, times["verify"].median_s
    note = f"{1e3 * tree:.2f} / {1e3 * plain:.2f} ms; their bounds' ratio is {bounds['verify'] / bounds['plain']:.2f}"
    name = f"{shape.name}: {NUM_SESSIONS} x {NUM_NODES} nodes / {NUM_SESSIONS} plain rows"
    report.targets.append(Target(name, tree / plain, MAX_VERIFY_RATIO, note=note))
    for step in points:
        report.targets.append(against_bound(f"{shape.name}: {step} step", times[step], bounds[step], MAX_STEP_RATIO))
    report.profiles += [steps.profile(step) for step in points]


def draft(shape: ModelShape, plan: Plan, report: Report) -> None:
    """One user's draft step against its bound, and eight users' throughput against one's."""
    points = {
        f"{num_users} x {num_rows} rows": Point("sessions", num_users, num_rows, plan.prefix)
        for num_users in (1, NUM_SESSIONS)
        for num_rows in plan.draft_rows
    }
    steps = ShapeSteps(shape, points, plan)
    times, bounds = steps.measure(report)
    for num_rows in plan.draft_rows:
        one, many = (f"{num_users} x {num_rows} rows" for num_users in (1, NUM_SESSIONS))
        name = f"{shape.name}: draft step of {num_rows} rows"
        report.targets.append(against_bound(name, times[one], bounds[one], MAX_DRAFT_RATIO))
        ratio = NUM_SESSIONS * times[one].median_s / times[many].median_s
        name = f"{shape.name}: draft rows/s of {NUM_SESSIONS} users / of 1, {num_rows} rows each"
        note = "forwards alone, without ranking"
        report.targets.append(Target(name, ratio, MIN_USERS_RATIO, is_least=True, note=note))
        report.profiles.append(steps.profile(one))


def against_bound(name: str, times: Times, bound_s: float, limit: float) -> Target:
    """A step's median over its bound."""
    note = f"{1e3 * times.median_s:.2f} / {1e3 * bound_s:.2f} ms"
    return Target(f"{name} / bound", times.median_s / bound_s, limit, note=note)


def attention(shape: ModelShape, plan: Plan, report: Report) -> None:
    """The Triton kernel against the reference, over ragged cases; the reference against itself without CUDA."""
    heads = Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    device = plan.device
    if device.type == "cuda":
        from specedge.model.attention.triton_backend import TritonBackend

        def make(num_processors: int | None) -> AttentionBackend:
            return TritonBackend(device, torch.bfloat16, num_processors=num_processors, **asdict(heads))

    else:

        def make(num_processors: int | None) -> AttentionBackend:
            return SdpaBackend()

    for case in RAGGED if device.type == "cuda" else (TINY_CASE,):
        result = measure(case, CASES[case], heads, make, device)
        report.attention.append(asdict(result))
        note = f"{result.triton_us:.0f} us, reference {result.sdpa_us:.0f} us, {result.gigabytes_per_s:.0f} GB/s"
        name = f"attention, {case}: time / reference's"
        report.targets.append(Target(name, result.triton_us / result.sdpa_us, 1.0, note=note))
        name = f"attention, {case}: largest error"
        report.targets.append(Target(name, result.triton_error, TOLERANCES[torch.bfloat16]))


def run_parts(parts: dict[str, Callable[[], None]], device: torch.device, max_seconds: float, report: Report) -> None:
    """Every part in turn; what does not fit into the device's memory or the time is named in `left_out`."""
    started_s = time.monotonic()
    for name, part in parts.items():
        if time.monotonic() - started_s > max_seconds:
            report.left_out.append(f"{name}: {max_seconds:.0f} s were over")
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            part()
        except (torch.OutOfMemoryError, SpecEdgeError) as error:
            report.left_out.append(f"{name}: {str(error).splitlines()[0]}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def markdown(report: Report) -> str:
    """Targets, steps, profiles."""
    lines = [f"# Targets on {report.device}\n", "; ".join(f"{key} {value}" for key, value in report.machine.items())]
    lines += ["", "| target | measured | limit | met | |", "|---|---:|---:|---|---|"]
    for target in report.targets:
        limit = f"{'at least' if target.is_least else 'at most'} {target.limit:g}"
        met = "yes" if target.is_met else "**no**"
        lines.append(f"| {target.name} | {target.value:.3g} | {limit} | {met} | {target.note} |")
    lines += ["", *(f"Left out: {reason}." for reason in report.left_out)]
    for model, rates in report.rates.items():
        lines.append(
            f"\n{model}: the bound uses {rates['bytes_per_s'] / 1e9:.0f} GB/s and {rates['flops'] / 1e12:.3g} TFLOP/s "
            f"({rates['bound uses']}); a large read reached {rates['measured_bytes_per_s'] / 1e9:.0f} GB/s and a large "
            f"product {rates['measured_flops'] / 1e12:.3g} TFLOP/s here; {rates['graphs']}."
        )
    lines += ["", "| model | step | rows | prefix | ms, median (95 %) | bound, ms | bound as measured, ms |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for step in report.steps:
        lines.append(
            f"| {step['model']} | {step['step']} | {step['num_rows']} | {step['prefix']} | {step['median_ms']:.3f} "
            f"({step['p95_ms']:.3f}) | {step['bound_ms']:.3f} | {step['measured_bound_ms']:.3f} |"
        )
    for found in report.profiles:
        lines += [f"\n## Profile of {found.step}\n", f"The device computes for {found.busy_us / 1e3:.3f} ms.\n"]
        lines += ["| kernel | launches | ms |", "|---|---:|---:|"]
        lines += [f"| {_cell(name)} | {count} | {total / 1e3:.3f} |" for name, count, total in found.kernels]
        lines += ["", "| gap, us | after | before |", "|---:|---|---|"]
        lines += [f"| {gap:.1f} | {_cell(before)} | {_cell(after)} |" for gap, before, after in found.gaps]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:80]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when something was measured, whether or not targets are met."""
    options = _parser().parse_args(arguments)
    try:
        device = resolve_device(options.device)
        shapes, draft_shape = [find(name) for name in options.shapes.split(",")], find(options.draft_shape)
        draft_rows = tuple(int(text) for text in options.draft_rows.split(",") if text.isdecimal())
        if not (1 <= options.prefix <= MAX_PREFIX and options.steps >= 1 and options.max_seconds > 0):
            raise SettingsError(
                f"prefix {options.prefix}, steps {options.steps}, max-seconds {options.max_seconds:g}: allowed are 1 "
                f"to {MAX_PREFIX}, 1 or more, and more than 0"
            )
        if not draft_rows or not all(1 <= num_rows <= MAX_DRAFT_ROWS for num_rows in draft_rows):
            raise SettingsError(f"draft rows {options.draft_rows}: allowed are numbers from 1 to {MAX_DRAFT_ROWS}")
        if device.type != "cuda" and any(shape is not TINY for shape in (*shapes, draft_shape)):
            raise SettingsError(f"real shapes need a CUDA device, and this is {device}; on the CPU take {TINY.name}")
    except SpecEdgeError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # which attention backend, which graphs
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    plan = Plan(device, dtype, options.prefix, draft_rows, options.steps)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    report = Report(name, this_machine())
    parts: dict[str, Callable[[], None]] = {
        f"attention of {shapes[0].name}": partial(attention, shapes[0], plan, report),
        f"drafting of {draft_shape.name}": partial(draft, draft_shape, plan, report),
        **{f"verification of {shape.name}": partial(verify, shape, plan, report) for shape in shapes},
    }
    try:
        run_parts(parts, device, options.max_seconds, report)
    except KeyboardInterrupt:
        report.left_out.append("whatever is missing: interrupted")
    options.out.mkdir(parents=True, exist_ok=True)
    fields = asdict(report) | {"targets": [asdict(target) | {"is_met": target.is_met} for target in report.targets]}
    (options.out / "engine-gpu.json").write_text(json.dumps(fields, indent=1) + "\n")
    (options.out / "engine-gpu.md").write_text(markdown(report))
    print(markdown(report))
    return 0 if report.targets else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine gpu-targets",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", default="qwen3-14b,qwen3-32b", metavar="LIST", help="targets (default %(default)s)")
    parser.add_argument("--draft-shape", default="qwen3-1.7b", metavar="NAME", help="(default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--prefix", type=int, default=1024, help="tokens of each session (default %(default)s)")
    parser.add_argument("--draft-rows", default="8,32", metavar="LIST", help="of a user's draft step (default 8,32)")
    parser.add_argument("--steps", type=int, default=50, help="timed steps (default %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=420.0, help="begin no part after so long (default 420)")
    parser.add_argument("--out", type=Path, default=Path("gpu-run"), metavar="FOLDER", help="(default %(default)s)")
    return parser
