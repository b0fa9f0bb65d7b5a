"""`specedge bench report DIR`: turns a run folder into tables and plots, as often as one likes."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specedge_bench import html_report
from specedge_bench.flags import positive_number
from specedge_bench.measured_bound import step_times
from specedge_bench.plots import MissingMatplotlib, Plot, draw_all
from specedge_bench.run_folder import REPORT_HTML, REPORT_MARKDOWN, Run, RunFolder
from specedge_bench.summary import CellSummary, Identity, Slo, identity, summarise
from specedge_bench.tables import Table, detail_tables, headline_table

MAX_LISTED_MISMATCHES = 10

_NETWORK_METHODS = {
    "proxy": "TCP proxy: delay, jitter and rate, no loss",
    "namespaces": "network namespaces joined by TUN: delay, jitter, rate and loss",
    "modelled": "modelled in virtual time",
}
_PLOT_NOTES = {
    "Inter-token latency (per token)": "A burst of k tokens after a pause of g counts as k pauses of g / k.",
    "Time to first token": "From when the load wanted the request sent.",
    "Throughput over load": "Bars: 95 % confidence interval over repetitions.",
    "Inter-token latency over round trip": "Round trip as set, without the services' own time.",
    "Acceptance by depth": "Share of verified trees whose accepted path reached that depth.",
    "Timeline of one session": (
        "First bursts of the request of middling length. Steps are matched to bursts by time: the last step that ended "
        "half a round trip before the burst arrived. Grey: steps of other sessions, and those whose tokens arrived "
        "together with a later step's."
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a run amounts to."""

    summaries: tuple[CellSummary, ...]
    identity: Identity
    tables: tuple[Table, ...]
    """The overview first."""
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[tuple[bool, str], ...]
    title: str

    @property
    def exit_code(self) -> int:
        """1 if two systems gave different answers to the same prompt and seed, else 0."""
        return 1 if self.identity.mismatches else 0

    def markdown(self) -> str:
        parts = [f"# {self.title}", *(f"{'' if good else '**Note:** '}{text}" for good, text in self.verdicts)]
        for table in self.tables:
            parts += [f"## {table.title}", table.note, table.markdown()]
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts)
        return "\n\n".join([*parts, "## What was run", facts]) + "\n"


def build(run: Run, slo: Slo) -> Report:
    """Condenses a run; draws nothing and writes nothing."""
    summaries = summarise(run, slo)
    same = identity(run.requests)
    slo_text = f"TTFT up to {slo.ttft_s:g} s and mean inter-token latency up to {1e3 * slo.itl_s:g} ms"
    return Report(
        summaries=tuple(summaries),
        identity=same,
        tables=(headline_table(summaries, run.info.bound), *detail_tables(summaries, slo_text)),
        facts=tuple(_facts(run, slo_text)),
        verdicts=tuple(_verdicts(run, summaries, same)),
        title=f"SpecEdge bench, {run.info.source}",
    )


def write(folder: str | Path, slo: Slo) -> tuple[Report, MissingMatplotlib | None]:
    """Writes `report.md` and, with matplotlib at hand, `report.html` into a run folder.

    Returns:
        The report, and why `report.html` was not written, if so.

    Raises:
        RunFolderError, SchemaTooNew, BadRecord: the folder cannot be read.
    """
    folder = Path(folder)
    run = RunFolder.load(folder)
    report = build(run, slo)
    (folder / REPORT_MARKDOWN).write_text(report.markdown())
    try:
        plots: list[Plot] = draw_all(run, report.summaries)
    except MissingMatplotlib as error:
        return report, error
    html = html_report.page(report.title, report.facts, report.verdicts, report.tables, plots, _PLOT_NOTES)
    (folder / REPORT_HTML).write_text(html)
    return report, None


def _facts(run: Run, slo_text: str) -> list[tuple[str, str]]:
    info = run.info
    prices = {name: price for name, price in info.prices.items() if name in (info.verifier_gpu, info.edge_gpu)}
    facts = [
        ("source", info.source),
        ("begun", info.created),
        ("machine", ", ".join(f"{name} {value}" for name, value in info.machine.items())),
        ("target model", info.target_model),
        ("draft model", info.draft_model),
        ("network", _NETWORK_METHODS.get(info.network_method, info.network_method)),
        ("priced as", f"verifier {info.verifier_gpu}, each edge {info.edge_gpu}"),
        ("prices in $/s", ", ".join(f"{name} {price:.10g}" for name, price in prices.items())),
        ("SLO", slo_text),
        ("prompts skipped as too long", str(info.num_skipped_prompts)),
    ]
    if times := step_times(info.bound or {}):
        facts.append(("fastest step ms by rows, up to so many KV tokens", times))
    for name, value in info.options.items():
        if value is not None:
            facts.append((name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)))
    return facts


def _verdicts(run: Run, summaries: Sequence[CellSummary], same: Identity) -> list[tuple[bool, str]]:
    verdicts: list[tuple[bool, str]] = []
    if run.info.source != "measured":
        verdicts.append((True, "These numbers are simulated, not measured."))
    if same.mismatches:
        verdicts.append((False, f"{len(same.mismatches)} of {same.num_compared} prompts got different answers:"))
        for mismatch in same.mismatches[:MAX_LISTED_MISMATCHES]:
            sides = " / ".join(", ".join(cells) for cells in mismatch.cells_by_digest.values())
            verdicts.append((False, f"prompt {mismatch.prompt}, seed {mismatch.seed}: {sides}"))
    elif same.num_compared:
        verdicts.append((True, f"All systems gave the same answers to the {same.num_compared} prompts they share."))
    num_failed = sum(summary.num_failed for summary in summaries)
    if num_failed:
        verdicts.append((False, f"{num_failed} of {len(run.requests)} requests failed; latencies leave them out."))
    num_interrupted = sum(summary.num_interrupted for summary in summaries)
    if num_interrupted:
        verdicts.append(
            (
                False,
                f"{num_interrupted} repetitions were interrupted; they count for latency alone, not for throughput.",
            )
        )
    if run.num_torn_rows:
        verdicts.append((False, f"{run.num_torn_rows} rows were cut off while being written and are left out."))
    unpriced = [gpu for gpu in (run.info.verifier_gpu, run.info.edge_gpu) if gpu not in run.info.prices]
    if unpriced:
        verdicts.append((False, f"No price for {', '.join(map(repr, unpriced))}: costs that need it are left out."))
    return verdicts


def chosen_slo(run: Run, ttft_ms: float | None, itl_ms: float | None) -> Slo:
    """The limits asked for; where none are, those the run was made with."""

    def limit_s(asked_ms: float | None, option: str, default_s: float) -> float:
        noted = run.info.options.get(option)
        if asked_ms is None and isinstance(noted, int | float):
            asked_ms = noted
        return default_s if asked_ms is None else asked_ms / 1e3

    default = Slo()
    return Slo(limit_s(ttft_ms, "slo_ttft_ms", default.ttft_s), limit_s(itl_ms, "slo_itl_ms", default.itl_s))


def print_report(folder: Path, report: Report, problem: MissingMatplotlib | None) -> None:
    """The overview and where the rest is."""
    for _, text in report.verdicts:
        print(text)
    print(f"\n{report.tables[0].markdown()}\n\n{report.tables[0].note}")
    print(f"\nwritten: {folder / REPORT_MARKDOWN}" + ("" if problem else f", {folder / REPORT_HTML}"))
    if problem:
        print(f"{REPORT_HTML} not written: {problem}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Re-makes the report of a run folder.

    Returns:
        0, or 1 if the systems' answers differ.
    """
    parser = argparse.ArgumentParser(prog="specedge bench report", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    for flag, what in (("--slo-ttft-ms", "TTFT"), ("--slo-itl-ms", "mean inter-token latency of an answer")):
        parser.add_argument(
            flag, type=positive_number, metavar="MS", help=f"highest {what} that is good (default: the run's)"
        )
    flags = parser.parse_args(arguments)
    slo = chosen_slo(RunFolder.load(flags.folder), flags.slo_ttft_ms, flags.slo_itl_ms)
    report, problem = write(flags.folder, slo)
    print_report(flags.folder, report, problem)
    return report.exit_code
