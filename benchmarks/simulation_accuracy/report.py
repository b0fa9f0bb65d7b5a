"""Comparisons as a file of rows, to which further runs add theirs, and as tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from benchmarks.simulation_accuracy.figures import HELD, Comparison, Figures
from benchmarks.simulation_accuracy.predicted import HostCosts
from specedge_bench.machine import this_machine

FILE = "simulation_accuracy"
_ORDER = {"autoregressive": 0, "server-only": 1, "specedge": 2}


def merge(old: Iterable[Comparison], new: Iterable[Comparison]) -> list[Comparison]:
    """New ones take the place of old ones of the same cell; in order of pace, users, distance, system."""
    cells = {(row.pace, row.num_users, row.rtt_ms, row.system): row for row in (*old, *new)}
    return sorted(
        cells.values(), key=lambda row: (row.pace, row.num_users, row.rtt_ms, _ORDER.get(row.system, 3), row.system)
    )


def read(folder: Path) -> list[Comparison]:
    """What is in the folder's file; nothing where there is none."""
    path = folder / f"{FILE}.json"
    if not path.exists():
        return []
    return [
        Comparison(
            **row
            | {
                "hosts": HostCosts(**row["hosts"]),
                "late": tuple(row["late"]),
                "measured": Figures(**row["measured"]),
                "predicted": Figures(**row["predicted"]),
            }
        )
        for row in json.loads(path.read_text())["rows"]
    ]


def write(folder: Path, rows: Sequence[Comparison]) -> None:
    """Writes the rows and their tables."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": this_machine(), "rows": [asdict(row) for row in rows]}
    (folder / f"{FILE}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{FILE}.md").write_text(markdown(rows))


def markdown(rows: Sequence[Comparison]) -> str:
    """A table for each pace, and what it comes to."""
    parts = ["# The simulation against the real services\n"]
    for pace, group in groupby(rows, key=lambda row: row.pace):
        parts.append(_section(pace, list(group)))
    return "\n".join(parts)


def _section(pace: str, rows: Sequence[Comparison]) -> str:
    head = "users | RTT, ms | system | tokens/s | ITL p50, ms | ITL p95, ms | burst p50, ms | burst p95, ms | largest"
    lines = [
        f"## Forwards: {pace}\n",
        "Each cell is predicted / measured. ITL is per token. *largest* is the largest difference of the prediction in "
        "throughput, ITL p50 and ITL p95.\n",
        f"| {head} |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    worst = max(rows, key=lambda row: abs(row.worst))
    within = sum(abs(row.worst) <= 0.15 for row in rows)
    mean = {name: sum(abs(row.difference(name)) for row in rows) / len(rows) for name in HELD}
    lines.append(
        f"\n{within} of {len(rows)} cells are within 15 % in all three; the largest difference is {worst.worst:+.0%} "
        f"({worst.system}, {worst.num_users} users, RTT {worst.rtt_ms:g} ms). Mean differences: "
        f"{mean['tokens_per_s']:.1%} in throughput, {mean['itl_p50_ms']:.1%} in ITL p50, {mean['itl_p95_ms']:.1%} in "
        "ITL p95.\n"
    )
    lines += ["| users | system | host ms per verifier step | per draft step | late target, draft forwards |"]
    lines += ["|---:|---|---:|---:|---:|"]
    ordered = sorted(rows, key=lambda row: (row.num_users, _ORDER.get(row.system, 3)))
    for (num_users, system), group in groupby(ordered, key=lambda row: (row.num_users, row.system)):
        same = list(group)
        late = " / ".join(f"{max(shares):.1%}" for shares in zip(*(row.late for row in same), strict=True))
        hosts = same[0].hosts
        lines.append(f"| {num_users} | {system} | {1e3 * hosts.verifier_s:.1f} | {1e3 * hosts.draft_s:.1f} | {late} |")
    return "\n".join(lines) + "\n"


def _cells(row: Comparison) -> list[str]:
    names = ("tokens_per_s", "itl_p50_ms", "itl_p95_ms", "burst_p50_ms", "burst_p95_ms")
    figures = (f"{getattr(row.predicted, name):.1f} / {getattr(row.measured, name):.1f}" for name in names)
    return [str(row.num_users), f"{row.rtt_ms:g}", row.system, *figures, f"{row.worst:+.0%}"]
