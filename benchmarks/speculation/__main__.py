"""`make bench-speculation`: measures, prints the tables and writes them to a folder."""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.speculation import report
from benchmarks.speculation.cells import SECTIONS
from benchmarks.speculation.run import FULL, QUICK, Interrupted, Measured, measure_acceptance, measure_section
from edge_agent.settings import EdgeSettings
from specedge.errors import SpecEdgeError
from specedge_cli.supervisor import Interrupts

_RESULTS = Path(__file__).resolve().parents[1] / "results"
_ACCEPTANCE = "acceptance"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - {_ACCEPTANCE, *(section.name for section in SECTIONS)}:
        parser.error(f"no section is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.CRITICAL)
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine, started_s = report.Machine.this(), time.perf_counter()
    effort = QUICK if options.quick else FULL
    try:
        measured = asyncio.run(_measure(options, console))
    except Interrupted:
        return 130
    except SpecEdgeError as error:
        console.print(f"[red]failed[/]: {error}")
        return 1
    seconds = time.perf_counter() - started_s
    text = report.markdown(machine, effort, options.max_budget, measured, seconds)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        sys.stdout.write(text)
    folder = options.out or (None if options.quick or options.sections else _RESULTS)
    if folder is not None:
        report.write(folder, machine, effort, options.max_budget, measured, seconds)
    return 0


async def _measure(options: argparse.Namespace, console: Console) -> Measured:
    effort, interrupts, measured = QUICK if options.quick else FULL, Interrupts(), Measured()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        if not options.sections or _ACCEPTANCE in options.sections:
            measured.acceptance += await measure_acceptance(effort, interrupts, progress)
        for section in SECTIONS:
            if not options.sections or section.name in options.sections:
                measured.results += await measure_section(section, effort, options.max_budget, interrupts, progress)
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation",
        description="Measures acceptance, latency, shared draft forwards and bytes on the wire.",
    )
    names = [_ACCEPTANCE, *(section.name for section in SECTIONS)]
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"only these: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one short request a cell; writes nothing without --out")
    parser.add_argument(
        "--max-budget",
        type=int,
        default=EdgeSettings.model_fields["max_budget"].default,
        help="nodes of a tree outside the acceptance section (default: the edge's, %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder for speculation.json and .md (default: benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
