"""`make exactness`: runs the grid, prints what came of it, and exits with 1 if speculation changed an answer."""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.exactness.cases import make_cases
from benchmarks.exactness.cells import Cell, grid
from benchmarks.exactness.differences import TOLERANCES, Judge
from benchmarks.exactness.kept_compiler import KeptCompiler
from benchmarks.exactness.prompts import all_prompts
from benchmarks.exactness.report import print_cell, print_report, print_verdict
from benchmarks.exactness.run import CellResult, Options, plain_answers, run_cell
from specedge.grammar.loading import make_compiler
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.engines import Engine
from specedge.model.loader import load_generation_defaults
from specedge.tokenizer import load_tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        cells = grid(options.cells)
    except ValueError as error:
        parser.error(str(error))
    if not cells:
        parser.error(f"no cell has all the words of {options.cells!r}")
    torch.set_num_threads(options.num_threads)
    logging.basicConfig(level=logging.CRITICAL)
    console = Console(width=None if sys.stdout.isatty() else 150)
    started_s = time.perf_counter()
    results = asyncio.run(_run(cells, options, console))
    print_report(console, results)
    console.print(
        f"{time.perf_counter() - started_s:.0f} s, engine {options.engine}, {options.dtype}, seed {options.seed}"
    )
    print_verdict(console, results)
    return int(any(result.problems for result in results))


async def _run(cells: list[Cell], arguments: argparse.Namespace, console: Console) -> list[CellResult]:
    path = resolve_model(EMBEDDED_NAME, "target")
    tokenizer = load_tokenizer(path)
    eos_ids = load_generation_defaults(path, tokenizer).eos_ids
    compiler = KeptCompiler(make_compiler(tokenizer, len(tokenizer), eos_ids))
    options = Options(
        arguments.device, arguments.engine, arguments.dtype, arguments.num_threads, arguments.seed, compiler
    )
    judge = Judge(path, options.device, options.engine, options.dtype, eos_ids)
    kinds = dict.fromkeys((cell.temperature, cell.requests) for cell in cells)
    results = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        num_prompts = min(arguments.prompts, len(all_prompts()))
        task = progress.add_task("", total=num_prompts * (len(cells) + len(kinds)))

        def advance() -> None:
            progress.advance(task)

        for temperature, requests in kinds:
            cases = make_cases(tokenizer, eos_ids[0], temperature, num_prompts, arguments.max_tokens, requests)
            progress.update(task, description=f"T{temperature:g} {requests} plain decoding")
            expected = await plain_answers(cases, options, advance)
            for cell in cells:
                if (cell.temperature, cell.requests) == (temperature, requests):
                    progress.update(task, description=cell.name)
                    result = await run_cell(cell, cases, expected, judge, options, advance)
                    results.append(result)
                    if result.problems or not console.is_terminal:
                        print_cell(console, result)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exactness",
        description="Holds seeded answers with speculation to those of plain decoding, token for token.",
    )
    parser.add_argument("--prompts", type=_positive, default=len(all_prompts()), help="prompts per cell (default: all)")
    parser.add_argument(
        "--cells",
        default="",
        metavar="WORDS",
        help="only cells with all these words, alternatives joined by commas: T0 T0.7 T1, mixed penalties grammar, "
        'none demo lookup both server random wrong, x1 x8, roomy tight, steady cut; for example "T1 demo,random cut"',
    )
    parser.add_argument("--max-tokens", type=_positive, default=40, help="tokens of the longer answers (default: 40)")
    parser.add_argument("--engine", choices=get_args(Engine), default="auto", help="what computes the target")
    parser.add_argument("--dtype", choices=sorted(TOLERANCES), default="float32", help="the target's number format")
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--num-threads", type=_positive, default=1, help="CPU threads of a forward (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of random trees and of where connections are cut")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
