"""The table and the lists that a run ends with."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.exactness.run import CellResult

_LEFT = ("T", "requests", "drafter", "sessions", "pool", "network")
_RIGHT = (
    "prompts",
    "tokens",
    "tok/verif.",
    "nodes",
    "accepted",
    "preempted",
    "reconnects",
    "equal",
    "near-ties",
    "wrong",
    "s",
)


def print_report(console: Console, results: Sequence[CellResult]) -> None:
    """All cells, their totals, every difference, and every reason why a cell failed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _LEFT:
        table.add_column(name, no_wrap=True)
    for name in _RIGHT:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        cell = result.cell
        words = (f"{cell.temperature:g}", *cell.words[1:3], str(cell.num_sessions), cell.pool, cell.network)
        table.add_row(*words, *_numbers([result]), style="red" if result.problems else None)
    table.add_section()
    for requests in dict.fromkeys(result.cell.requests for result in results):
        some = [result for result in results if result.cell.requests == requests]
        table.add_row("all", requests, f"{len(some)} cells", "", "", "", *_numbers(some))
    table.add_row("all", "", f"{len(results)} cells", "", "", "", *_numbers(results), style="bold")
    console.print(table)
    for result in results:
        for difference in result.differences:
            console.print(Text(str(difference), style="red" if difference.verdict == "wrong" else "yellow"))
        for problem in result.problems:
            console.print(Text(f"failed: cell {result.cell.name!r}: {problem}", style="red"))


def print_cell(console: Console, result: CellResult) -> None:
    """One line, as soon as a cell is done."""
    outcome = "; ".join(result.problems) or f"{result.num_equal} answers equal, {result.num_near_ties} near-ties"
    console.print(Text(f"{result.cell.name}: {outcome}, {result.seconds:.1f} s", "red" if result.problems else ""))


def print_verdict(console: Console, results: Sequence[CellResult]) -> None:
    """One line."""
    num_failed = sum(bool(result.problems) for result in results)
    if num_failed:
        console.print(f"[bold red]FAILED[/]: {num_failed} of {len(results)} cells")
        return
    num_answers = sum(result.num_prompts for result in results)
    num_equal = sum(result.num_equal for result in results)
    num_near_ties = num_answers - num_equal
    console.print(f"[bold green]exact[/]: {num_equal} of {num_answers} answers equal, {num_near_ties} near-ties")


def _numbers(results: Iterable[CellResult]) -> list[str]:
    results = list(results)
    num_prompts = sum(result.num_prompts for result in results)
    num_tokens = sum(result.num_tokens for result in results)
    num_verifications = sum(result.num_verifications for result in results)
    return [
        f"{num_prompts:,}",
        f"{num_tokens:,}",
        f"{num_tokens / max(1, num_verifications):.2f}",
        f"{sum(result.num_nodes for result in results):,}",
        f"{sum(result.num_accepted for result in results):,}",
        f"{sum(result.num_preemptions for result in results):,}",
        f"{sum(result.num_reconnects for result in results):,}",
        f"{sum(result.num_equal for result in results):,}",
        f"{sum(result.num_near_ties for result in results):,}",
        f"{sum(result.num_wrong for result in results):,}",
        f"{sum(result.seconds for result in results):.1f}",
    ]
