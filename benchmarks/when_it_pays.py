"""Where SpecEdge pays and where it does not: the simulations and plots of docs/when-it-pays.md.

    python -m benchmarks.when_it_pays                   # simulate everything, then draw: half an hour on two cores
    python -m benchmarks.when_it_pays --only distance   # one grid
    python -m benchmarks.when_it_pays --draw            # draw what was simulated before

Every grid is one or more `specedge bench simulate` commands; their rows are kept in benchmarks/results/when-it-pays.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specedge_bench.devices import price_of, price_table
from specedge_bench.simulation.command import main as simulate

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "when-it-pays"
IMAGES = ROOT.parent / "docs" / "images"
BASE = "--max-tokens 256 --repetitions 3 --edge-host-ms 1.5"
TRACE = "synthetic:0.75/0.1/0.05/0.03"
SERVER_ONLY, PLAIN, SPECEDGE = "server-only", "autoregressive", "specedge"
COLORS = {SPECEDGE: "#2f7fd1", SERVER_ONLY: "#d1660f", PLAIN: "#7a828c"}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """Simulations whose rows belong together.

    Attributes:
        commands: flags of each, beside BASE.
        x: a row's place on the axis.
        title: of the axis.
    """

    commands: tuple[str, ...]
    x: Callable[[Row], float]
    title: str


def agreement(row: Row) -> float:
    """The share of positions at which the draft's first choice is the target's, of a synthetic trace."""
    return float(row["trace"].partition(":")[2].partition("/")[0])


SHARES = (
    "0.5/0.15/0.08/0.05",
    "0.6/0.14/0.07/0.04",
    "0.75/0.1/0.05/0.03",
    "0.86/0.06/0.03/0.02",
    "0.93/0.03/0.015/0.01",
)
CONTEXTS = (256, 1024, 2048, 4096)
PAIRS = (
    ("A100-40/Qwen3-14B", "RTX 4090/Qwen3-1.7B"),
    ("A100-80/Qwen3-14B", "RTX 4090/Qwen3-1.7B"),
    ("A100-80/Qwen3-32B", "RTX 4090/Qwen3-1.7B"),
    ("H100/Qwen3-14B", "RTX 4090/Qwen3-1.7B"),
    ("H200/Qwen3-32B", "RTX 4090/Qwen3-1.7B"),
    ("A100-40/Qwen3-14B", "RTX 4090/Qwen3-0.6B"),
    ("A100-40/Qwen3-14B", "Jetson AGX Orin/Qwen3-0.6B"),
    ("A100-40/Qwen3-14B", "CPU/Qwen3-0.6B"),
)
GRIDS = {
    "distance": Grid(
        (f"--prompt-tokens 512 --trace {TRACE} --sessions 16 --rtt-ms 0.3,5,15,30,60,100",),
        lambda row: float(row["rtt-ms"]),
        "round trip, ms",
    ),
    "users": Grid(
        (f"--prompt-tokens 512 --trace {TRACE} --sessions 1,2,4,8,16,32,64",),
        lambda row: float(row["sessions"]),
        "users (8 on an edge)",
    ),
    "agreement": Grid(
        ("--prompt-tokens 512 --sessions 16 --trace " + ",".join(f"synthetic:{shares}" for shares in SHARES),),
        agreement,
        "agreement of draft and target",
    ),
    "context": Grid(
        tuple(f"--prompt-tokens {tokens} --trace {TRACE} --sessions 16" for tokens in CONTEXTS),
        lambda row: float(row["prompt-tokens"]),
        "prompt, tokens",
    ),
    "edges": Grid(
        (f"--prompt-tokens 512 --trace {TRACE} --sessions 32 --edges 1,2,4,8,16,32",),
        lambda row: 32 / int(row["num_edges"]),
        "users of one edge",
    ),
    "modes": Grid(
        (
            f"--prompt-tokens 512 --trace {TRACE} --sessions 1,8 --rtt-ms 15,60 --system specedge "
            "--mode streamed,off,included,excluded --batch-type ready,dynamic",
        ),
        lambda row: float(row["rtt-ms"]),
        "round trip, ms",
    ),
    "devices": Grid(
        tuple(
            f"--prompt-tokens 512 --trace {TRACE} --sessions 16 --verifier-curve '{verifier}' --draft-curve '{edge}'"
            for verifier, edge in PAIRS
        ),
        lambda row: nan,
        "",
    ),
}


def run(name: str) -> None:
    """Simulates a grid and keeps its rows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    part = RESULTS / f"{name}.part"
    for command in GRIDS[name].commands:
        flags = shlex.split(f"{BASE} {command}")
        print(f"specedge bench simulate {shlex.join(flags)}", flush=True)
        if (code := simulate([*flags, "--out", str(part)])) != 0:
            sys.exit(code)
        tokens = int(flags[flags.index("--prompt-tokens") + 1])
        rows += [
            json.dumps({"prompt-tokens": tokens, **json.loads(line)}) for line in part.read_text("utf-8").splitlines()
        ]
    part.unlink()
    (RESULTS / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def rows_of(name: str) -> list[Row]:
    """A grid's rows, as simulated before."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text("utf-8").splitlines()]


def series(name: str, system: str, value: Callable[[Row], float]) -> tuple[list[float], list[float]]:
    """Places and values of one system."""
    points = sorted((GRIDS[name].x(row), value(row)) for row in rows_of(name) if row["system"] == system)
    return [x for x, _ in points], [y for _, y in points]


def ratio_to(name: str, baseline: str) -> tuple[list[float], list[float]]:
    """specedge's tokens per second over a baseline's, place by place."""
    xs, ours = series(name, SPECEDGE, lambda row: row["tokens_per_s"])
    _, theirs = series(name, baseline, lambda row: row["tokens_per_s"])
    return xs, [our / their for our, their in zip(ours, theirs, strict=True)]


def break_even_price(specedge: Row, other: Row) -> float:
    """Dollars per second of an edge's GPU at which both systems' billed tokens cost the same."""
    verifier = price_of(price_table([]), specedge["verifier_device"])
    gain = specedge["tokens_per_s"] / other["tokens_per_s"]
    return float((gain - 1) * verifier / specedge["num_edges"])


def draw() -> None:
    """Draws all figures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, ("distance", "users", "agreement", "context"), strict=True):
        for baseline in (SERVER_ONLY, PLAIN):
            axes.plot(*ratio_to(name, baseline), "o-", color=COLORS[baseline], label=f"against {baseline}")
        _frame(axes, GRIDS[name].title, "tokens/s, ratio", name in ("users", "context"))
        axes.axhline(1, color="black", linewidth=0.8)
    _save(figure, "when-it-pays-throughput")

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("distance", "users"), strict=True):
        for system in (PLAIN, SERVER_ONLY, SPECEDGE):
            axes.plot(*series(name, system, lambda row: row["tpot_ms"]), "o-", color=COLORS[system], label=system)
        _frame(axes, GRIDS[name].title, "ms per token", name == "users")
        axes.set_ylim(bottom=0)
    _save(figure, "when-it-pays-latency")

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for baseline in (SERVER_ONLY, PLAIN):
        column = "efficiency_to_" + baseline.replace("-", "_")
        points = series("edges", SPECEDGE, lambda row, column=column: row[column])  # type: ignore[misc]
        left.plot(*points, "o-", color=COLORS[baseline], label=f"against {baseline}")
    left.axhline(1, color="black", linewidth=0.8)
    _frame(left, GRIDS["edges"].title, "tokens per dollar, ratio", is_log=True)
    for baseline in (SERVER_ONLY, PLAIN):
        pairs = [
            (GRIDS["agreement"].x(ours), 3600 * break_even_price(ours, theirs))
            for ours in rows_of("agreement")
            for theirs in rows_of("agreement")
            if (ours["system"], theirs["system"]) == (SPECEDGE, baseline) and ours["trace"] == theirs["trace"]
        ]
        right.plot(*zip(*sorted(pairs), strict=True), "o-", color=COLORS[baseline], label=f"against {baseline}")
    right.axhline(3600 * price_of(price_table([]), "RTX 4090"), color="black", linewidth=0.8, label="RTX 4090")
    _frame(right, GRIDS["agreement"].title, "break-even $/h of an edge GPU", is_log=False)
    _save(figure, "when-it-pays-cost")


def _frame(axes: Axes, x: str, y: str, is_log: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


def _save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.when_it_pays", allow_abbrev=False)
    parser.add_argument("--only", choices=GRIDS, help="one grid; nothing is drawn")
    parser.add_argument("--draw", action="store_true", help="only draw what was simulated before")
    options = parser.parse_args(arguments)
    for name in [] if options.draw else [options.only] if options.only else GRIDS:
        run(name)
    if not options.only:
        draw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
