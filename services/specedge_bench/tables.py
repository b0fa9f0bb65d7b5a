"""The run's numbers as Markdown tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specedge_bench.cost import AUTOREGRESSIVE, SERVER_ONLY
from specedge_bench.statistics import Interval, Percentiles
from specedge_bench.summary import CellSummary

ABSENT = "–"  # noqa: RUF001 - the dash that stands for "no value" in print


@dataclass(frozen=True, slots=True)
class Table:
    """A titled grid of text; the first three columns name the cell."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [
            f"| {' | '.join(self.header)} |",
            f"|{'|'.join([' --- '] * 3 + [' ---: '] * (len(self.header) - 3))}|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        return "\n".join(lines)


Column = tuple[str, Callable[[CellSummary], str]]


def number(value: float, digits: int = 3) -> str:
    """The value with that many significant digits, or a dash."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    # Rounded in scientific notation first: 9.999 has to become 10.0, not 10.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else ABSENT


def interval(value: Interval) -> str:
    if not math.isfinite(value.low):
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


def milliseconds(sample: Percentiles) -> str:
    """`p50 / p95 / p99` of a sample in seconds."""
    if not sample.num_samples:
        return ABSENT
    return " / ".join(number(1e3 * value) for value in (sample.p50, sample.p95, sample.p99))


def efficiency_ratios(summaries: Sequence[CellSummary]) -> dict[str, dict[str, float]]:
    """Billed tokens per dollar over that of each baseline at the same network and load: cell to baseline to ratio."""
    by_place = {(summary.system, summary.network, summary.load): summary for summary in summaries}
    ratios: dict[str, dict[str, float]] = {}
    for summary in summaries:
        ratios[summary.cell] = {}
        for baseline in (SERVER_ONLY, AUTOREGRESSIVE):
            other = by_place.get((baseline, summary.network, summary.load))
            if other is not None:
                theirs = other.cost.billed_tokens_per_dollar
                ratios[summary.cell][baseline] = summary.cost.billed_tokens_per_dollar / theirs if theirs else math.nan
    return ratios


def headline_table(summaries: Sequence[CellSummary], bound: Mapping[str, float] | None) -> Table:
    """The table for a reader of one table: speed, delay, cost.

    Args:
        summaries: one per cell.
        bound: best possible tokens/s by cell id, among other figures; None where no bound was computed.
    """
    ratios = efficiency_ratios(summaries)
    best = bound or {}
    columns: list[Column] = [
        ("tokens/s", lambda cell: interval(cell.throughput)),
        ("TTFT p50 ms", lambda cell: number(1e3 * cell.latencies.ttft.p50)),
        ("ITL p50 ms", lambda cell: number(1e3 * cell.latencies.itl_token.p50)),
        ("ITL p95 ms", lambda cell: number(1e3 * cell.latencies.itl_token.p95)),
        ("tokens/verif.", lambda cell: number(cell.speculation.tokens_per_verification)),
        ("$/M billed", lambda cell: number(cell.cost.billed_per_million)),
        ("tokens/$ ÷ server-only", lambda cell: number(ratios[cell.cell].get(SERVER_ONLY, math.nan))),
        ("tokens/$ ÷ autoregressive", lambda cell: number(ratios[cell.cell].get(AUTOREGRESSIVE, math.nan))),
    ]
    if any(cell.cell in best for cell in summaries):
        columns.append(("of bound", lambda cell: percent(cell.throughput.mean / best.get(cell.cell, math.nan))))
    note = "ITL is per token. In brackets: 95 % confidence interval over repetitions."
    return _table("Overview", note, columns, summaries)


def detail_tables(summaries: Sequence[CellSummary], slo_text: str) -> list[Table]:
    """Everything else that was measured, one table per subject."""
    return [
        _table("Latency", "p50 / p95 / p99 in ms, over answered requests.", _LATENCY, summaries),
        _table("Load and goodput", f"SLO: {slo_text}.", _LOAD, summaries),
        _table("Speculation", "Counters of the services, over complete repetitions.", _SPECULATION, summaries),
        _table("Verifier and network", "p50 / p95 / p99 where three values are given.", _VERIFIER, summaries),
        _table("Cost", "Billed: every reserved GPU for the wall time. Active: busy seconds only.", _COST, summaries),
    ]


def _table(title: str, note: str, columns: Sequence[Column], summaries: Sequence[CellSummary]) -> Table:
    # Networks from near to far; a cell that was interrupted has no round trip and comes last.
    ordered = sorted(
        summaries,
        key=lambda cell: (
            not math.isfinite(cell.rtt_ms_configured),
            cell.rtt_ms_configured,
            cell.network,
            natural_key(cell.load),
        ),
    )
    rows = [(cell.network, cell.load, cell.system, *(show(cell) for _, show in columns)) for cell in ordered]
    return Table(title, note, ("network", "load", "system", *(name for name, _ in columns)), tuple(rows))


def natural_key(text: str) -> tuple[str, float]:
    """Orders `closed-8` before `closed-16`."""
    stem, _, last = text.rpartition("-")
    try:
        return stem, float(last)
    except ValueError:
        return text, 0.0


def _wasted(cell: CellSummary) -> str:
    wasted = sorted(cell.speculation.wasted.items())
    return ", ".join(f"{reason} {count:,}" for reason, count in wasted if count) or ABSENT


def _step_parts(cell: CellSummary) -> str:
    steps = cell.steps
    parts = (steps.mean_schedule, steps.mean_forward, steps.mean_sample, steps.mean_settle)
    return " + ".join(number(part) for part in parts) if math.isfinite(parts[0]) else ABSENT


def _plain_three(sample: Percentiles) -> str:
    values = (sample.p50, sample.p95, sample.p99)
    return " / ".join(number(value) for value in values) if sample.num_samples else ABSENT


_LATENCY: list[Column] = [
    ("TTFT", lambda cell: milliseconds(cell.latencies.ttft)),
    ("ITL per token", lambda cell: milliseconds(cell.latencies.itl_token)),
    ("ITL per burst", lambda cell: milliseconds(cell.latencies.itl_burst)),
    ("TPOT", lambda cell: milliseconds(cell.latencies.tpot)),
    ("end to end", lambda cell: milliseconds(cell.latencies.e2e)),
]
_LOAD: list[Column] = [
    ("users", lambda cell: str(cell.num_users)),
    ("edges", lambda cell: str(cell.num_edges)),
    ("repetitions", lambda cell: str(cell.num_repetitions)),
    ("interrupted", lambda cell: str(cell.num_interrupted)),
    ("answered", lambda cell: str(cell.num_ok)),
    ("failed", lambda cell: str(cell.num_failed)),
    ("tokens", lambda cell: f"{cell.num_tokens:,}"),
    ("tokens/s", lambda cell: interval(cell.throughput)),
    ("goodput tokens/s", lambda cell: number(cell.goodput)),
    ("requests in SLO", lambda cell: percent(cell.slo_share)),
    ("prefix hits", lambda cell: percent(cell.prefix_hit_rate)),
]
_SPECULATION: list[Column] = [
    ("tokens/verif.", lambda cell: number(cell.speculation.tokens_per_verification)),
    ("accepted/tree", lambda cell: number(cell.speculation.accepted_per_tree)),
    ("accepted at depth 1, 2, …", lambda cell: ", ".join(map(percent, cell.speculation.acceptance_by_depth)) or ABSENT),
    ("drafted", lambda cell: f"{cell.speculation.num_drafted:,}"),
    ("verified", lambda cell: f"{cell.speculation.num_nodes_verified:,}"),
    ("wasted by reason", _wasted),
    ("proactive hits", lambda cell: percent(cell.speculation.guess_hit_rate)),
    ("draft steps/token", lambda cell: number(cell.speculation.draft_steps_per_token)),
    ("rows/draft step", lambda cell: number(cell.speculation.rows_per_draft_step)),
    ("sessions/draft step", lambda cell: number(cell.speculation.sessions_per_draft_step)),
]
_VERIFIER: list[Column] = [
    ("RTT set ms", lambda cell: number(cell.rtt_ms_configured)),
    ("RTT measured ms", lambda cell: number(cell.rtt_ms_measured)),
    ("B up/verif.", lambda cell: number(cell.speculation.bytes_up_per_verification)),
    ("B down/verif.", lambda cell: number(cell.speculation.bytes_down_per_verification)),
    ("wire B up/verif.", lambda cell: number(cell.speculation.wire_bytes_up_per_verification)),
    ("wire B down/verif.", lambda cell: number(cell.speculation.wire_bytes_down_per_verification)),
    ("verifier ms/token", lambda cell: number(1e3 * cell.verifier_busy_s_per_token)),
    ("draft ms/token", lambda cell: number(1e3 * cell.draft_busy_s_per_token)),
    ("step ms", lambda cell: _plain_three(cell.steps.total)),
    ("schedule + forward + sample + settle ms", _step_parts),
    ("queue ms", lambda cell: _plain_three(cell.steps.queue)),
    ("preemptions", lambda cell: str(cell.num_preemptions)),
]
_COST: list[Column] = [
    ("$/M billed", lambda cell: number(cell.cost.billed_per_million)),
    ("$/M active", lambda cell: number(cell.cost.active_per_million)),
    ("tokens/$ billed", lambda cell: number(cell.cost.billed_tokens_per_dollar)),
    ("tokens/$ active", lambda cell: number(cell.cost.active_tokens_per_dollar)),
]
