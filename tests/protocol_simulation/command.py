"""Many seeds on all cores, or one that tells what happens; ends with an error where a rule was broken."""

import argparse
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from resilience.terminal import advancing, positive
from rich.console import Console

from protocol_simulation.scenario import FAULTS
from protocol_simulation.simulation import simulate
from specedge_cli.cores import available_cores

_BATCH: Final = 25
_MAX_SHOWN: Final = 20


@dataclass(slots=True)
class Totals:
    """What a range of seeds came to."""

    num_seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    longest_recovery_s: float = 0.0
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Totals") -> None:
        """Those of another range."""
        self.num_seeds += other.num_seeds
        self.counts += other.counts
        self.virtual_s += other.virtual_s
        self.longest_recovery_s = max(self.longest_recovery_s, other.longest_recovery_s)
        self.broken |= other.broken


def run(seeds: Sequence[int]) -> Totals:
    """Those seeds, one after the other."""
    totals = Totals()
    for seed in seeds:
        outcome = simulate(seed)
        totals.num_seeds += 1
        totals.counts += outcome.counts
        totals.virtual_s += outcome.virtual_s
        totals.longest_recovery_s = max(totals.longest_recovery_s, outcome.recovery_s)
        if outcome.broken:
            totals.broken[seed] = outcome.broken[0]
    return totals


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="protocol_simulation", description=__doc__)
    parser.add_argument("--seeds", type=positive, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="this one alone, with all that happens")
    parser.add_argument("--fault", choices=FAULTS, help="with --seed: nothing else goes wrong")
    parser.add_argument("--processes", type=positive, help="at once (default: one for each core)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        outcome = simulate(options.seed, prints=True, kinds={options.fault: 1} if options.fault else FAULTS)
        print("\n".join(outcome.broken) or f"no rule was broken within {outcome.virtual_s:.1f} virtual seconds")
        return 1 if outcome.broken else 0
    totals = _run_all(range(options.first, options.first + options.seeds), options.processes or available_cores())
    print(_table(totals))
    for seed, text in sorted(totals.broken.items())[:_MAX_SHOWN]:
        print(f'seed {seed}: {text}\n  again: make simulate-protocol ARGS="--seed {seed}"')
    return 1 if totals.broken else 0


def _run_all(seeds: range, num_processes: int) -> Totals:
    totals = Totals()
    batches = [seeds[start : start + _BATCH] for start in range(0, len(seeds), _BATCH)]
    with (
        multiprocessing.get_context("spawn").Pool(num_processes) as pool,
        advancing(Console(stderr=True), "seeds", len(seeds)) as advance,
    ):
        for found in pool.imap_unordered(run, batches):
            totals.add(found)
            advance(found.num_seeds, f"{len(totals.broken)} failed" if found.broken else "")
    return totals


def _table(totals: Totals) -> str:
    lines = ["| what happened | times |", "|---|--:|"]
    lines += [f"| {kind} | {number:,} |" for kind, number in sorted(totals.counts.items(), key=lambda pair: -pair[1])]
    lines.append(
        f"\n{totals.num_seeds:,} seeds, {totals.virtual_s / 3600:.1f} virtual hours; the longest wait for the "
        f"last answer after all was well again: {totals.longest_recovery_s:.1f} s; "
        f"seeds that broke a rule: {len(totals.broken)}"
    )
    return "\n".join(lines)
