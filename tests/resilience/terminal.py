"""What long runs show while they run, and what they take from the command line."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def advancing(console: Console, unit: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar, and what advances it by a number and says what was done; off a terminal, lines."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=total)
        num_done = 0

        def advance(num: int, done: str) -> None:
            nonlocal num_done
            num_done += num
            progress.update(task, advance=num, description=done)
            if not console.is_terminal:
                console.print(f"{num_done}/{total} {unit}: {done}", markup=False, highlight=False)

        yield advance


def positive(text: str) -> int:
    """A number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
