"""`make soak`: mixed load for a long time; exits with 1 if a process grows, or a user sees what none may see."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from resilience.terminal import add_outputs, advancing, logs_folder, open_console, positive, print_end
from soak.report import print_report, write_json
from soak.run import Options, run
from soak.watch import Sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = _parser().parse_args(arguments)
    options = Options(given.seed, given.minutes, num_users=given.users)
    console = open_console()
    folder = logs_folder("soak", given.logs)
    started_s = time.monotonic()
    with advancing(console, "s", round(60 * options.minutes)) as advance:
        shown_s = 0.0

        def show(sample: Sample) -> None:
            nonlocal shown_s
            sizes = ", ".join(f"{name} {held.usage.rss_mib:.0f} MiB" for name, held in sample.held.items())
            now_s = time.monotonic() - started_s
            advance(round(now_s) - round(shown_s), sizes)
            shown_s = now_s

        result = asyncio.run(run(options, folder, show))
    print_report(console, result)
    print_end(console, started_s, options.seed, folder)
    if given.json is not None:
        write_json(given.json, options, result)
    return int(bool(result.problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description="Asks two edges of two verifiers everything that users ask, restarts some of them at times, and "
        "watches what the others hold.",
    )
    default = Options()
    parser.add_argument("--minutes", type=_minutes, default=default.minutes, help="of load (default: 30)")
    parser.add_argument("--users", type=positive, default=default.num_users, help="at each edge (default: 2)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of what users ask")
    add_outputs(parser)
    return parser


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value <= 7 * 24 * 60:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and at most a week")
    return value


if __name__ == "__main__":
    sys.exit(main())
