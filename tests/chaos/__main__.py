"""`make chaos`: kills and disturbs verifiers under load; exits with 1 if a user notices more than a pause."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from chaos.faults import why_disks_stay
from chaos.report import print_report, write_json
from chaos.run import Options, planned, run
from chaos.schedule import Round
from resilience.terminal import add_outputs, advancing, logs_folder, open_console, positive, print_end


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = _parser().parse_args(arguments)
    options = Options(
        seed=given.seed,
        num_kills=given.kills,
        num_verifiers=given.verifiers,
        num_edges=given.edges,
        num_users=given.users,
        num_asks=given.asks,
        warm_up_s=given.warm_up,
    )
    console = open_console()
    if (reason := why_disks_stay()) is not None:
        console.print(f"no disk is filled: {reason}")
    folder = logs_folder("chaos", given.logs)
    started_s = time.monotonic()
    num_kills = sum(round_.num_kills for round_ in planned(options))
    with advancing(console, "kills", num_kills) as advance:

        def show(round_: Round) -> None:
            kinds = ", ".join(f"{fault.kind} of {fault.victim + 1}" for fault in round_.faults)
            advance(round_.num_kills, kinds)

        result = asyncio.run(run(options, folder, show))
    print_report(console, result)
    print_end(console, started_s, options.seed, folder)
    if given.json is not None:
        write_json(given.json, options, result)
    return int(bool(result.problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Kills, stops and cuts off verifiers while edges stream seeded answers of theirs to users.",
    )
    default = Options()
    parser.add_argument("--seed", type=int, default=default.seed, help="of the faults and of what users ask")
    parser.add_argument("--kills", type=positive, default=default.num_kills, help="at least so many (default: 100)")
    parser.add_argument("--verifiers", type=positive, default=default.num_verifiers, help="two or more (default: 3)")
    parser.add_argument("--edges", type=positive, default=default.num_edges, help="(default: 2)")
    parser.add_argument("--users", type=positive, default=default.num_users, help="at each edge (default: 2)")
    parser.add_argument("--asks", type=positive, default=default.num_asks, help="different requests (default: 12)")
    parser.add_argument(
        "--warm-up", type=float, default=default.warm_up_s, metavar="S", help="seconds of load before the first fault"
    )
    add_outputs(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
