"""What the checks found, for people and for machines."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from specedge import __version__
from specedge_cli.doctor.check import STATES, Result, State, is_failure

_MARKS: Final[dict[State, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
    "skipped": ("skip", "dim"),
}
_SLOW_S = 1.0
_MARK_WIDTH = 5


class Report:
    """Prints findings as they come, under the names of their groups."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._group = ""

    def add(self, result: Result) -> None:
        """Print one finding, and below it what to change."""
        if result.group != self._group:
            self._group = result.group
            self._console.print(f"\n[bold]{escape(result.group)}[/bold]")
        finding = result.finding
        mark, style = _MARKS[finding.state]
        taken = f"  ({result.seconds:.1f} s)" if result.seconds >= _SLOW_S else ""
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=_MARK_WIDTH, justify="right")
        line.add_column(overflow="fold")
        line.add_row(Text(mark, style), Text.assemble((finding.name, "bold"), ": ", finding.found, (taken, "dim")))
        if finding.change:
            line.add_row("", Text(f"-> {finding.change}", "cyan"))
        self._console.print(line)

    def finish(self, results: Sequence[Result]) -> None:
        """Print how many there are of each state."""
        counts = Counter(result.finding.state for result in results)
        words = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        style = "bold red" if is_failure(results) else "bold green"
        verdict = "something will not work" if is_failure(results) else "nothing stands in the way"
        self._console.print()
        self._console.print(Text.assemble((verdict, style), f" ({words})"))


def as_json(results: Sequence[Result]) -> str:
    """All findings as one JSON object."""
    checks: list[dict[str, Any]] = [
        {
            "group": result.group,
            "name": result.finding.name,
            "state": result.finding.state,
            "found": result.finding.found,
            "change": result.finding.change,
            "values": dict(result.finding.values),
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    counts = Counter(result.finding.state for result in results)
    content = {
        "version": __version__,
        "is_well": not is_failure(results),
        "counts": {state: counts[state] for state in STATES},
        "checks": checks,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)
