"""`make fuzz`: hostile messages and bodies against live processes; exits with 1 if anything broke."""

import argparse
import sys
import time
from collections.abc import Sequence

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
    given = parser.parse_args(arguments)
    options = Options(given.messages, given.bodies, given.seed)
    folder = logs_folder("fuzz")
    console = open_console()
    started_s = time.monotonic()
    with advancing(console, "sent", options.num_messages + options.num_bodies) as advance:
        result = run(options, folder, lambda num: advance(num, ""))
    report(console, result)
    (folder / "latest.jsonl").write_text("\n".join([*result.verifier.latest, *result.edge.latest]))
    (folder / "problems.txt").write_text("\n".join(result.problems))
    left = "logs, all problems with their inputs, and what was sent last"
    print_end(console, started_s, options.seed, folder, left)
    return int(bool(result.problems))


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
