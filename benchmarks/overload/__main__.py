"""Overload of a real verifier and edge with the embedded models, over HTTP.

    python -m benchmarks.overload
    python -m benchmarks.overload --pace 15ms+0.1ms,3ms+0.02ms

First a closed loop finds what they can do: users enough to keep all places taken and some waiting. Then ten times as
many requests a second come at random moments, whatever becomes of them. Both loads take turns. The exit code is 1
unless

- every request is answered in full, or refused with 429 or 503 and Retry-After,
- the p95 of the time between tokens of those admitted is at most 1.2 times that at capacity,
- as many tokens come as at capacity, or nearly,
- one who is refused and comes back when told to, while nobody else asks any more, is mostly admitted.

Both loads, the services and the users share the machine, and CPU seconds are shown for each thread. With few cores
these are the limit at capacity already, and every refusal takes time from the answers. `--pace` stretches forwards to
the curves of devices, as `specedge bench --pace` does: models compute as on GPUs of their own, and the machine has room
for what an overloaded edge and verifier do on their hosts.

More answers that are streamed at a time than there are places are a backlog of the edge: the verifier is done with
them.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.overload.phases import Load, Phase, closed_loop, come_back, open_loop
from benchmarks.overload.user import Outcome, Question, Users
from benchmarks.start_up import HOST, edge_is_ready, started, until, verifier_serves
from specedge.errors import SpecEdgeError
from specedge_bench.pace.pace import parse_pace
from specedge_bench.statistics import percentiles
from specedge_cli.ports import free_port

MAX_ITL_RATIO = 1.2
MIN_TOKENS_RATIO = 0.8
MIN_ADMITTED = 0.75
MIN_SHOWN_CPU = 0.01
MORE_USERS = 1.5
"""Users in the closed loop for each place."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        pace = None if options.pace is None else parse_pace(options.pace)
    except SpecEdgeError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 130)
    with ExitStack() as stack:
        log = None if options.log is None else stack.enter_context(options.log.open("wb"))
        output = {} if log is None else {"output": log.fileno()}
        verifier_port, port = free_port(HOST), free_port(HOST)
        flags = ["--metrics-port", "off", "--num-threads", "1"]
        own = ["--port", str(verifier_port), "--max-batch-size", str(options.places), *options.verifier_flag]
        verifier = stack.enter_context(started(["verifier", *flags, *own], pace=pace, **output))
        own = ["--port", str(port), "--verifier-address", f"{HOST}:{verifier_port}", *options.edge_flag]
        edge = stack.enter_context(started(["edge", *flags, *own], pace=pace, **output))
        until(verifier_serves(verifier_port), verifier)
        until(edge_is_ready(port), edge)
        processes = {"verifier": psutil.Process(verifier.pid), "edge": psutil.Process(edge.pid)}
        users = Users(f"http://{HOST}:{port}", Question(max_tokens=options.max_tokens))
        capacity, overload, back = asyncio.run(_measure(users, options, processes, console))
    violations = judge(capacity, overload, back)
    console.print(_table((capacity, overload), back))
    for violation in violations:
        console.print(f"[red]{violation}")
    return int(bool(violations))


async def _measure(
    users: Users, options: argparse.Namespace, processes: dict[str, psutil.Process], console: Console
) -> tuple[Load, Load, list[Outcome]]:
    processes["users"] = psutil.Process()
    capacity, overload = Load("at capacity"), Load("overload")
    await closed_loop(users, options.places, options.warm_up)

    async def measure(load: Load, made: Awaitable[Phase]) -> Phase:
        before, before_s = _cpu_s(processes), time.perf_counter()
        load.phases.append(phase := await made)
        phase.measured_s = time.perf_counter() - before_s
        phase.cpu_s = {name: used_s - before.get(name, 0.0) for name, used_s in _cpu_s(processes).items()}
        return phase

    for number in range(options.rounds):
        console.print(f"round {number + 1} of {options.rounds}: {options.seconds:g} s at capacity", end="")
        phase = await measure(capacity, closed_loop(users, round(MORE_USERS * options.places), options.seconds))
        rate = options.times * len(phase.answered) / phase.duration_s
        console.print(f", {options.seconds:g} s with {rate:.1f} requests/s")
        await measure(overload, open_loop(users, rate, options.seconds, seed=number))
    return capacity, overload, await come_back(users, options.come_back)


def judge(capacity: Load, overload: Load, back: Sequence[Outcome]) -> list[str]:
    """What is not as it must be."""
    found = []
    for load in (capacity, overload):
        for outcome in load.failed[:3]:
            found.append(f"{load.name}: status {outcome.status}, Retry-After {outcome.retry_after_s}, {outcome.error}")
    itl_ratio = percentiles(overload.token_gaps_s).p95 / percentiles(capacity.token_gaps_s).p95
    if not itl_ratio <= MAX_ITL_RATIO:
        found.append(f"p95 between tokens is {itl_ratio:.2f} times that at capacity, more than {MAX_ITL_RATIO}")
    tokens_ratio = overload.tokens_per_s / capacity.tokens_per_s
    if not tokens_ratio >= MIN_TOKENS_RATIO:
        found.append(f"{tokens_ratio:.2f} times the tokens at capacity come, less than {MIN_TOKENS_RATIO}")
    num_admitted = sum(outcome.status == 200 for outcome in back)
    if num_admitted < MIN_ADMITTED * len(back):
        found.append(f"{num_admitted} of {len(back)} that came back after Retry-After were admitted")
    return found


def _table(loads: tuple[Load, Load], back: Sequence[Outcome]) -> Table:
    table = Table("", *(load.name for load in loads), "ratio")
    capacity, overload = loads

    def row(name: str, of: "Sequence[float | str]", ratio: float | None = None) -> None:
        cells = [value if isinstance(value, str) else f"{value:.4g}" for value in of]
        table.add_row(name, *cells, "" if ratio is None else f"{ratio:.2f}")

    row("requests", [len(load.outcomes) for load in loads], len(overload.outcomes) / len(capacity.outcomes))
    row("answered", [len(load.answered) for load in loads])
    row("refused", [len(load.refused) for load in loads])
    row("failed", [len(load.failed) for load in loads])
    row("tokens/s", [load.tokens_per_s for load in loads], overload.tokens_per_s / capacity.tokens_per_s)
    row("streamed at a time", [load.num_streaming for load in loads])
    gaps = [percentiles(load.token_gaps_s) for load in loads]
    row("between tokens p50, ms", [1e3 * gap.p50 for gap in gaps], gaps[1].p50 / gaps[0].p50)
    row("between tokens p95, ms", [1e3 * gap.p95 for gap in gaps], gaps[1].p95 / gaps[0].p95)
    firsts = [percentiles([outcome.ttft_s for outcome in load.answered]) for load in loads]
    row("first token p50, s", [first.p50 for first in firsts])
    row("first token p95, s", [first.p95 for first in firsts])
    waits = [percentiles([outcome.retry_after_s or 0.0 for outcome in load.refused]) for load in loads]
    row("Retry-After p50, p95, s", [f"{wait.p50:.3g}, {wait.p95:.3g}" for wait in waits])
    row("came back, admitted", ["", f"{sum(outcome.status == 200 for outcome in back)} of {len(back)}"])
    for name in sorted({name for load in loads for phase in load.phases for name in phase.cpu_s}):
        used = [load.cpu(name) for load in loads]
        if max(used) >= MIN_SHOWN_CPU:
            row(f"CPU, {name}", used)
    return table


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """Of each process, and each of its threads by number: the lowest is the event loop."""
    used = {}
    for name, process in processes.items():
        first = process.pid
        for thread in process.threads():
            part = "loop" if thread.id == first else f"thread {thread.id - first}"
            used[f"{name}, {part}"] = thread.user_time + thread.system_time
    return used


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", allow_abbrev=False)
    parser.add_argument("--places", type=int, default=8, help="sessions that run at a time")
    parser.add_argument("--times", type=float, default=10.0, help="requests, by those that can be answered")
    parser.add_argument("--rounds", type=int, default=3, help="of both loads")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load in each round")
    parser.add_argument("--warm-up", type=float, default=6.0, help="seconds before")
    parser.add_argument("--max-tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--come-back", type=int, default=4, help="times that one does when told to")
    parser.add_argument("--pace", metavar="TARGET,DRAFT", help="curves of step times that forwards are stretched to")
    parser.add_argument("--verifier-flag", action="append", default=[], help="--verifier-flag=--max-waiting=16")
    parser.add_argument("--edge-flag", action="append", default=[])
    parser.add_argument("--log", type=Path, help="where the services' own output goes")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
