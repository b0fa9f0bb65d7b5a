"""What the commands of long runs take from the command line, show while they run, and leave behind."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

MAX_SHOWN = 20


def open_console() -> Console:
    """On standard output; in a file there is room for the tables."""
    return Console(width=None if sys.stdout.isatty() else 150)


def logs_folder(name: str, given: Path | None = None) -> Path:
    """The folder that takes a run's logs, made if need be: the one given, or one of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"specedge-{name}-")) if given is None else given
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def advancing(console: Console, unit: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar, and what advances it by a number and says what was done if anything; off a terminal, lines."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn())
    done_column = TextColumn("{task.description}")
    with Progress(*columns, done_column, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        num_done = 0

        def advance(num: int, done: str) -> None:
            nonlocal num_done
            num_done += num
            progress.update(task, advance=num, description=done or None)
            if done and not console.is_terminal:
                console.print(f"{num_done}/{total} {unit}: {done}", markup=False, highlight=False)

        yield advance


def print_problems(console: Console, problems: Sequence[str]) -> None:
    """The first ones, and how many more there are."""
    for problem in problems[:MAX_SHOWN]:
        console.print(problem, style="red", markup=False)
    if len(problems) > MAX_SHOWN:
        console.print(f"... and {len(problems) - MAX_SHOWN} more")


def print_end(console: Console, started_s: float, seed: int, folder: Path, left: str = "logs") -> None:
    """What a run took, and how to look at it again."""
    console.print(f"{time.monotonic() - started_s:.0f} s, seed {seed}, {left} in {folder}")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Flags for where a run leaves what it came to."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="takes the results")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="empty; takes the processes' logs")


def positive(text: str) -> int:
    """A number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
