"""`python -m benchmarks.simulation_accuracy`: runs the real services and the simulator on the same requests.

The services run the embedded pair, forwards stretched to curves so that verifier, edge and client do not wait for each
other's computations on one machine: `--pace`. `--unpaced` leaves them as this machine makes them, and the simulator is
given curves measured here. Nothing is looked up (docs/lookup.md). Further runs add their cells to the files in `--out`.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.simulation_accuracy import report
from benchmarks.simulation_accuracy.figures import Comparison, late_shares, measured_figures, predicted_figures
from benchmarks.simulation_accuracy.measured import MeasuredCell, measure
from benchmarks.simulation_accuracy.predicted import Predictor, host_costs
from specedge.errors import SpecEdgeError
from specedge_bench.curves import load_curve
from specedge_bench.deployment import Interrupted
from specedge_bench.options import Options, parse_options
from specedge_cli.supervisor import Interrupts

PACE = "60ms+0.25ms,10ms+0.05ms"
UNPACED = "0.001ms,0.001ms"  # a pace that every forward misses, so that forwards are logged all the same
NO_LOOKUP = ["--verifier-arg=--lookup", "--verifier-arg=off", "--edge-arg=--lookup", "--edge-arg=off"]
"""What the texts have had before: a trace of ranks does not know that."""
CPU_CURVES = ("cpu2-target", "cpu2-draft")
# glibc gives freed memory back to the kernel by default, and where page faults are dear the draft's ranking then takes
# more time than its forward; the services inherit this.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(128 << 20)}
_RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    flags = _parser().parse_args(arguments)
    os.environ.update(_ALLOCATOR)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.CRITICAL)
    console = Console(width=None if sys.stdout.isatty() else 200)
    pace = UNPACED if flags.unpaced else flags.pace
    given = ["--systems", flags.systems, "--pace", pace, "--max-new-tokens", str(flags.max_new_tokens)]
    given += ["--networks", ",".join(f"rtt{rtt}" for rtt in flags.rtt_ms.split(","))]
    given += ["--loads", ",".join(f"closed-{users}" for users in flags.users.split(","))]
    given += NO_LOOKUP
    given += ["--temperature", flags.temperature, "--num-threads", "1", "--out", str(flags.out)]
    if flags.num_requests is not None:
        given += ["--num-requests", flags.num_requests]
    try:
        options = parse_options(given)
        cells = asyncio.run(_measure(options, console))
        rows = compare(cells, options, CPU_CURVES if flags.unpaced else None)
    except Interrupted:
        return 130
    except SpecEdgeError as error:
        console.print(f"[red]failed[/]: {error}")
        return 1
    rows = report.merge(report.read(flags.out), rows)
    report.write(flags.out, rows)
    text = report.markdown(rows)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        sys.stdout.write(text)
    return 0


def compare(cells: Sequence[MeasuredCell], options: Options, curves: tuple[str, str] | None) -> list[Comparison]:
    """Predicts measured cells.

    Args:
        cells: measured with `options`.
        options: of the run.
        curves: of target and draft, where they are not those of the pace.
    """
    assert options.pace is not None
    target, draft = curves or (options.pace.target, options.pace.draft)
    predictor = Predictor(
        load_curve(target),
        load_curve(draft),
        temperature=options.ask.temperature,
        max_new_tokens=options.ask.max_new_tokens,
    )
    pace = "as this machine computes" if curves else f"target {target}, draft {draft} (the second per row)"
    systems = {variant.name: variant for variant in options.systems}
    rows: list[Comparison] = []
    by_host = sorted(cells, key=lambda cell: (cell.record.system, cell.record.load))
    for _, group in groupby(by_host, key=lambda cell: (cell.record.system, cell.record.load)):
        same = list(group)
        hosts = host_costs(same)
        for number, cell in enumerate(same):
            result = predictor.predict(cell, same[:number], systems[cell.record.system], hosts)
            record = cell.record
            rows.append(
                Comparison(
                    pace=pace,
                    system=record.system,
                    num_users=record.num_users,
                    rtt_ms=record.rtt_ms_configured,
                    hosts=hosts,
                    late=(0.0, 0.0) if curves else late_shares(cell),
                    measured=measured_figures(cell),
                    predicted=predicted_figures(result),
                )
            )
    return rows


async def _measure(options: Options, console: Console) -> list[MeasuredCell]:
    cells = []
    async for cell in measure(options, Interrupts()):
        console.print(f"{cell.record.cell}: {cell.record.wall_s:.1f} s", highlight=False)
        cells.append(cell)
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation_accuracy", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--systems", default="autoregressive,server-only,specedge", metavar="LIST")
    parser.add_argument("--users", default="1,4,16", metavar="LIST", help="closed loops (default %(default)s)")
    parser.add_argument("--rtt-ms", default="0,15,60", metavar="LIST", help="round trips (default %(default)s)")
    parser.add_argument("--pace", default=PACE, metavar="TARGET,DRAFT", help="curves (default %(default)s)")
    parser.add_argument("--unpaced", action="store_true", help="forwards as fast as they are")
    parser.add_argument("--num-requests", metavar="N", help="of a cell (default 2 for each user, at least 8)")
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="(default %(default)s)")
    parser.add_argument("--temperature", default="0", metavar="T", help="(default %(default)s)")
    parser.add_argument("--out", type=Path, default=_RESULTS, metavar="FOLDER", help="(default benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
