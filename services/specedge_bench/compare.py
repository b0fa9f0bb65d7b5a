"""`specedge bench compare A B`: what changed from one run to another, cell by cell, and whether it can be chance."""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specedge.errors import SpecEdgeError
from specedge_bench.run_folder import Run, RunFolder
from specedge_bench.statistics import Interval, geometric_ratio, ratio_p_value
from specedge_bench.summary import per_repetition
from specedge_bench.tables import ABSENT, natural_key, number

METRICS = ("throughput", "itl", "ttft")
SIGNIFICANT = 0.05
# Four pairs reach 0.125 at best and six 0.031: below this number no verdict of significance is possible.
MIN_PAIRS = 6


class NothingToCompare(SpecEdgeError):
    """Two runs share no cell, or no repetition of one; names what each of them has."""


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of one cell: second run over first."""

    cell: str
    metric: str
    num_pairs: int
    ratio: Interval
    """Geometric mean over pairs of repetitions; 1 is no change."""
    p_value: float

    @property
    def is_significant(self) -> bool:
        return self.p_value < SIGNIFICANT


def compare(first: Run, second: Run) -> list[Change]:
    """Every metric of every cell that both runs have; repetitions are paired by their number.

    The last entries, for cell `all cells`, pair over all shared cells and repetitions.

    Raises:
        NothingToCompare: no cell has a complete repetition of the same number in both.
    """
    before, after = per_repetition(first), per_repetition(second)
    shared = [key for key in before if key in after]
    if not shared:
        raise NothingToCompare(
            f"the two runs share no complete repetition of a cell; the first has {_cells(before)}, "
            f"the second {_cells(after)}"
        )
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in sorted(shared, key=lambda key: (key[0].rpartition("/")[0], natural_key(key[0]), key[1])):
        groups[key[0]].append(key)
    if len(groups) > 1:
        groups["all cells"] = shared
    return [
        _change(cell, metric, [before[key][metric] for key in keys], [after[key][metric] for key in keys])
        for cell, keys in groups.items()
        for metric in METRICS
    ]


def _change(cell: str, metric: str, before: Sequence[float], after: Sequence[float]) -> Change:
    num_pairs = sum(0 < a < math.inf and 0 < b < math.inf for a, b in zip(before, after, strict=True))
    return Change(cell, metric, num_pairs, geometric_ratio(before, after), ratio_p_value(before, after))


def _cells(figures: dict[tuple[str, int], dict[str, float]]) -> str:
    return ", ".join(sorted({cell for cell, _ in figures})) or "none"


def markdown(changes: Sequence[Change]) -> str:
    """A table of the changes."""
    lines = [
        "| cell | metric | pairs | ratio B / A | 95 % interval | p | |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for change in changes:
        ends = f"{number(change.ratio.low)} to {number(change.ratio.high)}"
        spread = ends if math.isfinite(change.ratio.low) else ABSENT
        mark = "significant" if change.is_significant else ""
        lines.append(
            f"| {change.cell} | {change.metric} | {change.num_pairs} | {number(change.ratio.mean)} | {spread} "
            f"| {number(change.p_value, 2)} | {mark} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Prints the comparison; 0 whatever came out."""
    parser = argparse.ArgumentParser(prog="specedge bench compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("first", type=Path, metavar="A", help="the run folder to compare with")
    parser.add_argument("second", type=Path, metavar="B", help="the run folder to judge")
    flags = parser.parse_args(arguments)
    changes = compare(RunFolder.load(flags.first), RunFolder.load(flags.second))
    print(markdown(changes))
    if max(change.num_pairs for change in changes) < MIN_PAIRS:
        print(f"\nNo p below {SIGNIFICANT} can come out of fewer than {MIN_PAIRS} pairs: run more repetitions.")
    return 0
