"""What a run shows: a table of faults, what processes held, and what must not be."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from chaos.recovery import Effect
from chaos.run import Options, Result
from chaos.schedule import Kind
from resilience.terminal import print_problems
from rich.console import Console
from rich.table import Table

from specedge_bench.statistics import percentile


def print_report(console: Console, result: Result) -> None:
    """The tables, then the problems, then the verdict."""
    console.print(_faults(result))
    if result.usage:
        console.print(_usage(result))
    print_problems(console, result.problems)
    failed = [answer for answer in result.answers if answer.failure is not None]
    num_tokens = sum(len(answer.tokens_s) for answer in result.answers)
    console.print(
        f"{result.num_kills} kills among {len(result.events)} faults in {len(result.rounds)} rounds, "
        f"{sum(round_.is_blackout for round_ in result.rounds)} of them blackouts; {len(result.answers)} answers in "
        f"{num_tokens} pieces, {len(failed)} failed; {len(result.problems)} violations"
    )
    recoveries_s = sorted(recovery_s for effect in result.effects for recovery_s in effect.recoveries_s)
    if recoveries_s:
        console.print(
            f"recovery of {len(recoveries_s)} answers that left their verifier: p50 {percentile(recoveries_s, 50):.2f} "
            f"s, p95 {percentile(recoveries_s, 95):.2f} s, longest {recoveries_s[-1]:.2f} s"
        )


def _faults(result: Result) -> Table:
    title = "Seconds until the next token, of answers that left their verifier; longest pause of any answer"
    table = Table("fault", "faults", "left", "p50", "p95", "longest", "pause", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    groups: dict[str, list[Effect]] = {}
    for effect in result.effects:
        groups.setdefault(_group(effect), []).append(effect)
    order = [_name(kind, lasts_s) for kind in Kind for lasts_s in (0.0, 10.0)]
    for name in sorted(groups, key=lambda name: order.index(name) if name in order else len(order)):
        effects = groups[name]
        recoveries_s = sorted(recovery_s for effect in effects for recovery_s in effect.recoveries_s)
        numbers = [f"{percentile(recoveries_s, share):.2f}" if recoveries_s else "" for share in (50, 95, 100)]
        pause_s = max(effect.longest_pause_s for effect in effects)
        table.add_row(name, str(len(effects)), str(len(recoveries_s)), *numbers, f"{pause_s:.2f}")
    return table


def _group(effect: Effect) -> str:
    if effect.event.is_blackout:
        return "blackout: all SIGKILL"
    return _name(effect.event.fault.kind, effect.event.fault.lasts_s)


def _name(kind: Kind, lasts_s: float) -> str:
    if kind is Kind.STOP:
        return f"{kind} after {12 if lasts_s > 5 else 1} s"
    return str(kind)


def _usage(result: Result) -> Table:
    table = Table("process", "RSS MiB", "fds", "threads", title="Held without a session: before the faults, at the end")
    for name, (before, after) in result.usage.items():
        table.add_row(
            name,
            f"{before.rss_mib:.0f} -> {after.rss_mib:.0f}",
            f"{before.num_fds} -> {after.num_fds}",
            f"{before.num_threads} -> {after.num_threads}",
        )
    return table


def write_json(path: Path, options: Options, result: Result) -> None:
    """All that a run was and came to."""
    failures = Counter(answer.failure for answer in result.answers if answer.failure is not None)
    document = {
        "options": asdict(options),
        "num_kills": result.num_kills,
        "num_answers": len(result.answers),
        "failures": failures,
        "problems": result.problems,
        "faults": [
            {
                **asdict(effect.event.fault),
                "address": effect.event.address,
                "began_s": effect.event.began_s,
                "mended_s": effect.event.mended_s,
                "is_blackout": effect.event.is_blackout,
                "recoveries_s": effect.recoveries_s,
                "longest_pause_s": effect.longest_pause_s,
            }
            for effect in result.effects
        ],
        "usage": {name: [asdict(usage) for usage in pair] for name, pair in result.usage.items()},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
