"""What a run shows: what each process held, how it grew, and what must not be."""

import json
from dataclasses import asdict
from pathlib import Path

from resilience.terminal import print_problems
from rich.console import Console
from rich.table import Table
from soak.run import Options, Result


def print_report(console: Console, result: Result) -> None:
    """The table, then what was asked, the problems and the verdict."""
    table = Table(title="What processes held; growth is that of the line through the samples of the second half")
    table.add_column("process")
    table.add_column("quantity")
    for name in ("first", "last", "highest", "per hour", "growth", "may grow by"):
        table.add_column(name, justify="right")
    for line in result.watch.lines():
        slope = f"{line.slope_per_h:+.1f}" if line.is_judged else "restarted"
        growth = f"{line.growth:+.2f}" if line.is_judged else ""
        values = (f"{value:.0f}" for value in (line.first, line.last, line.highest))
        limit = "0 at rest" if line.quantity.max_growth is None else f"{line.quantity.max_growth:g}"
        style = None if line.is_flat else "red"
        table.add_row(line.process, line.quantity.name, *values, slope, growth, limit, style=style)
    console.print(table)
    tally = result.tally
    console.print(f"turns: {', '.join(f'{num} {kind}' for kind, num in sorted(tally.num_turns.items()))}")
    console.print(f"restarts: {', '.join(result.restarts)}; {tally.num_excused} turns failed at an edge that ended")
    print_problems(console, result.problems)
    console.print(f"{len(result.watch.samples)} samples, {len(result.problems)} violations")


def write_json(path: Path, options: Options, result: Result) -> None:
    """All that a run was and came to."""
    document = {
        "options": asdict(options),
        "problems": result.problems,
        "turns": result.tally.num_turns,
        "num_excused": result.tally.num_excused,
        "restarts": result.restarts,
        "samples": [asdict(sample) for sample in result.watch.samples],
    }
    path.write_text(json.dumps(document) + "\n")
