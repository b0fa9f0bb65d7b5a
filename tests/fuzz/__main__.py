"""`make fuzz`: hostile messages and bodies against live processes; exits with 1 if anything broke.

The messages and bodies come from a seeded generator of our own (`grpc_messages`, `http_bodies`, `values`): legal ones
with hostile fields, damaged ones, and bytes that are none. A number repeats a run, and an input takes microseconds to
make, of which Hypothesis takes milliseconds. Hypothesis makes fewer and shrinks what breaks something:
`tests/integration/test_fuzz.py` has it make streams, and `make test-api` bodies, from the API's own documentation.

A run leaves `latest.jsonl`, what was sent last, `broken.jsonl`, what broke something, and `problems.txt`, all problems
in words. `--replay` sends the inputs of such a file again, or those of a folder. What once broke something has its
line, with a name and the right outcome, in `tests/fuzz/corpus`, which `make test` sends.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from fuzz.inputs import line_of, read_cases
from fuzz.run import Options, Result, run
from resilience.terminal import advancing, logs_folder, open_console, print_end, print_problems
from rich.console import Console
from rich.table import Table

NUM_CHARACTERS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Sends hostile messages and bodies.")
    default = Options()
    parser.add_argument("--messages", type=int, default=default.num_messages, help="to the verifier (default: 100000)")
    parser.add_argument("--bodies", type=int, default=default.num_bodies, help="to the edge (default: 100000)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of all that is sent")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="sends its inputs, or those in a folder's files")
    given = parser.parse_args(arguments)
    options = Options(given.messages, given.bodies, given.seed)
    folder = logs_folder("fuzz")
    console = open_console()
    started_s = time.monotonic()
    if given.replay is not None:
        result = run(options, folder, cases=read_cases(given.replay))
    else:
        with advancing(console, "sent", options.num_messages + options.num_bodies) as advance:
            result = run(options, folder, lambda num: advance(num, ""))
    report(console, result)
    tallies = (result.verifier, result.edge)
    _write(folder / "latest.jsonl", (line_of(sent) for tally in tallies for sent in tally.latest))
    _write(folder / "broken.jsonl", (line_of(sent, name=why) for tally in tallies for why, sent in tally.broken))
    _write(folder / "problems.txt", result.problems)
    left = "logs, all problems, their inputs, and what was sent last"
    print_end(console, started_s, options.seed, folder, left)
    return int(bool(result.problems))


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def report(console: Console, result: Result) -> None:
    """A table of what came back, the memory, and what broke."""
    table = Table("sent to", "number", "came back")
    for name, tally in (("verifier", result.verifier), ("edge", result.edge)):
        outcomes = ", ".join(f"{outcome} {number}" for outcome, number in tally.outcomes.most_common())
        table.add_row(name, str(tally.num_sent), outcomes)
    console.print(table)
    for address, sizes in result.memory.items():
        console.print(
            f"{address}: {sizes.before:.0f}, {sizes.halfway:.0f}, {sizes.after:.0f} MiB (before, halfway, after)"
        )
    console.print(f"{result.num_answers} answers of a neighbour, each compared with the undisturbed one")
    print_problems(console, [problem[:NUM_CHARACTERS] for problem in result.problems])
    console.print("nothing broke" if not result.problems else f"{len(result.problems)} problems")


if __name__ == "__main__":
    sys.exit(main())
