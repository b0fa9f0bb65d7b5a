"""The tables of a run, as Markdown, and all its numbers as JSON."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.speculation.acceptance import MAX_DEPTH, NUM_NODES, WIDTH, Acceptance
from benchmarks.speculation.cells import AUTOREGRESSIVE, MANY_USERS, RTTS_MS, SECTIONS
from benchmarks.speculation.measure import Result
from benchmarks.speculation.run import Effort, Measured

_TITLES = {
    "paced": "Embedded pair, each verify step stretched to 30 ms and each draft step to 5 ms, T = 0.7",
    "modelled": "Modelled pair (top-1 agreement 0.86), the same pace, T = 0",
    "cpu": "Embedded pair as this CPU computes, T = 0.7",
}
_BYTES_RTT_MS = 15


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    cpu: str
    num_cores: int
    load_before: float
    python: str
    torch: str

    @classmethod
    def this(cls) -> "Machine":
        """To be called before anything is measured."""
        return cls(_cpu_name(), os.cpu_count() or 1, os.getloadavg()[0], platform.python_version(), torch.__version__)


def write(folder: Path, machine: Machine, effort: Effort, max_budget: int, measured: Measured, seconds: float) -> None:
    """Writes speculation.json and speculation.md."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": asdict(machine),
        "effort": asdict(effort),
        "max_budget": max_budget,
        "seconds": round(seconds),
        "acceptance": [_rounded(asdict(line)) for line in measured.acceptance],
        "results": [_rounded(asdict(result)) for result in measured.results],
    }
    (folder / "speculation.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "speculation.md").write_text(markdown(machine, effort, max_budget, measured, seconds))


def markdown(machine: Machine, effort: Effort, max_budget: int, measured: Measured, seconds: float) -> str:
    """All tables."""
    parts = [
        "# What speculation brings",
        "Written by `make bench-speculation`; every number is in `speculation.json`.",
        f"{machine.cpu}, {machine.num_cores} cores, Python {machine.python}, torch {machine.torch}; load average "
        f"{machine.load_before:.1f} before the start; {seconds:.0f} s. Verifier, edge and the user's client share this "
        f"machine, each model with one thread. Trees of up to {max_budget} nodes; answers of {effort.max_tokens} "
        f"tokens (longer for one user on the bare CPU); requests in a cell: {effort.num_repetitions} for one user, one "
        f"each for {MANY_USERS}.",
    ]
    if measured.acceptance:
        parts += _acceptance(measured.acceptance)
    for section in SECTIONS:
        results = [result for result in measured.results if result.section == section.name]
        if results:
            parts += [f"## {_TITLES[section.name]}", *_latency(results), *_drafting(results), *_bytes(results)]
    return "\n\n".join(parts) + "\n"


def _acceptance(lines: Sequence[Acceptance]) -> list[str]:
    names = {None: "-", True: "coupled", False: "plain"}
    header = ["T", "ranking", "tokens per verification", "nodes", *(f"≥ {d + 1}" for d in range(MAX_DEPTH)), "n"]
    rows = [
        [
            f"{line.temperature:g}",
            names[line.coupled],
            f"{line.tokens_per_verification:.2f}",
            f"{line.nodes_per_verification:.1f}",
            *(f"{share:.2f}" for share in line.accepted_at_depth),
            str(line.num_verifications),
        ]
        for line in lines
    ]
    text = (
        f"Embedded pair, one full tree of {NUM_NODES} nodes, width {WIDTH}, for each verification; tokens include the "
        "bonus token. `≥ d`: share of the verifications that accepted at least d nodes."
    )
    return ["## Acceptance", text, _table(header, rows, num_left=2)]


def _latency(results: Sequence[Result]) -> list[str]:
    parts = []
    for num_users in (1, MANY_USERS):
        chosen = [result for result in results if result.num_users == num_users]
        if not chosen:
            continue
        header = ["mode", "verifier"]
        for name in ("ms/token", "tokens/verdict", "with a tree", "tokens/s")[: 3 if num_users == 1 else 4]:
            header += [f"{name}, RTT {rtt_ms}" for rtt_ms in RTTS_MS]
        cells = {(result.mode, result.batch_type, result.rtt_ms): result for result in chosen}
        rows = []
        for mode, batch_type in dict.fromkeys((result.mode, result.batch_type) for result in chosen):
            line = [cells.get((mode, batch_type, rtt_ms)) for rtt_ms in RTTS_MS]
            row = [mode, batch_type]
            row += _values(line, lambda result: f"{result.inter_token_ms:.1f}")
            row += _values(line, lambda result: f"{result.tokens_per_verification:.2f}")
            row += _values(line, lambda result: f"{100 * result.tree_share:.0f} %")
            if num_users > 1:
                row += _values(line, lambda result: f"{result.tokens_per_s:.0f}")
            rows.append(row)
        users = "One user" if num_users == 1 else f"{num_users} users"
        text = f"{users}: time between tokens (median over requests), and what verdicts brought; RTT in ms."
        parts += [text, _table(header, rows, num_left=2)]
    return parts


def _drafting(results: Sequence[Result]) -> list[str]:
    header = ["mode", "users", "forwards per token", "rows per forward", "sessions per forward", "ms per forward"]
    rows = [
        [
            result.mode,
            str(result.num_users),
            f"{result.forwards_per_token:.2f}",
            f"{result.rows_per_forward:.1f}",
            f"{result.sessions_per_forward:.2f}",
            f"{result.draft_step_ms:.1f}",
            f"{result.draft_nodes_per_s:.0f}",
        ]
        for result in _at_typical_distance(results, ("streamed", "off"))
    ]
    text = f"Shared drafting, RTT {_BYTES_RTT_MS} ms: draft forwards per generated token of all users together."
    return [text, _table([*header, "draft tokens/s"], rows, num_left=1)] if rows else []


def _bytes(results: Sequence[Result]) -> list[str]:
    header = ["mode", "nodes sent", "messages up", "messages down", "TCP up", "TCP down"]
    rows = [
        [
            result.mode,
            f"{result.nodes_sent:.1f}",
            f"{result.payload_up:.0f}",
            f"{result.payload_down:.0f}",
            f"{result.wire_up:.0f}",
            f"{result.wire_down:.0f}",
        ]
        for result in _at_typical_distance(results, ("streamed", "off", AUTOREGRESSIVE))
        if result.num_users == 1
    ]
    text = f"Bytes per verdict, one user, RTT {_BYTES_RTT_MS} ms (opening messages included)."
    return [text, _table(header, rows, num_left=1)] if rows else []


def _at_typical_distance(results: Sequence[Result], modes: Sequence[str]) -> list[Result]:
    chosen = [
        result
        for result in results
        if result.mode in modes and result.batch_type == "ready" and result.rtt_ms == _BYTES_RTT_MS
    ]
    return sorted(chosen, key=lambda result: (result.num_users, modes.index(result.mode)))


def _values(line: Iterable[Result | None], show: Callable[[Result], str]) -> list[str]:
    return ["" if result is None else show(result) for result in line]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], num_left: int) -> str:
    rule = ["---"] * num_left + ["---:"] * (len(header) - num_left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _rounded(values: dict[str, object]) -> dict[str, object]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
