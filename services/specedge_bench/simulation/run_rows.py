"""Simulated points as a run folder, so that `specedge bench report` and `compare` read them like measured ones."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from specedge_bench.devices import price_of
from specedge_bench.records import CellRecord, RequestRecord, RunInfo, StepRecord, cell_id
from specedge_bench.report import print_report, write
from specedge_bench.run_folder import RunFolder
from specedge_bench.simulation.grid import Point, Setting, SimulatedPoint
from specedge_bench.simulation.scenario import Scenario, ScenarioError
from specedge_bench.simulation.shard import ShardOutcome
from specedge_bench.summary import Slo

_CELL_AXES = ("system", "mode", "batch-type", "sessions", "rate", "network")
"""What a cell's name can hold; every other setting is a fact of the whole run."""


class ReportWriter:
    """Writes points into a new run folder as they come.

    Args:
        options: the command's flags.
        points: all that will come.

    Raises:
        ScenarioError: they differ in more than cells of one run may.
        RunFolderError: the folder holds a run already, or cannot be written.
    """

    def __init__(self, options: argparse.Namespace, points: Sequence[Point]) -> None:
        first = points[0]
        for name in first.setting:
            values = {str(point.setting[name]): None for point in points}
            if name not in _CELL_AXES and len(values) > 1:
                raise ScenarioError(f"--report takes one value of --{name}, not {len(values)}: {', '.join(values)}")
        if max(options.verifiers) > 1:
            raise ScenarioError(f"--report takes one verifier, not {max(options.verifiers)}")
        if options.max_waiting is not None:
            raise ScenarioError("--report shows nobody who was refused; leave out --max-waiting")
        devices = first.devices
        names = [name for name in (devices.verifier, devices.edge) if name]
        prices = {name: price for name in names if (price := price_of(devices.prices, name)) >= 0}
        info = RunInfo(
            source="simulated",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine={"verifier": devices.verifier or "no device", "edge": devices.edge or "no device"},
            target_model=str(first.setting["verifier-curve"]),
            draft_model=str(first.setting["draft-curve"]),
            network_method="modelled",
            options={name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
            prices=prices,
            verifier_gpu=devices.verifier,
            edge_gpu=devices.edge,
        )
        self._folder = RunFolder.create(options.report, info)

    def add(self, found: SimulatedPoint) -> None:
        """Writes a point's requests, steps and cells."""
        for repetition, (scenario, shards) in enumerate(zip(found.point.scenarios, found.outcomes, strict=True)):
            (outcome,) = shards
            cell = cell_of(found.point.setting, scenario, repetition, outcome)
            for record in _requests(cell, scenario, outcome):
                self._folder.append_request(record)
            self._folder.append_steps(_steps(cell, outcome))
            self._folder.append_cell(cell)

    def finish(self) -> None:
        """Makes tables and plots."""
        self._folder.close()
        report, problem = write(self._folder.path, Slo())
        print_report(self._folder.path, report, problem)


def cell_of(setting: Setting, scenario: Scenario, repetition: int, outcome: ShardOutcome) -> CellRecord:
    """The totals of one repetition."""
    system = ":".join(str(setting[name]) for name in ("system", "mode", "batch-type") if setting[name] is not None)
    load = f"closed-{scenario.num_sessions}" if scenario.arrival_rate is None else f"poisson-{scenario.arrival_rate:g}"
    answers, totals = outcome.answers, outcome.totals
    is_local = scenario.system == "server-only"
    depths = Counter(depth for _, report in outcome.steps for depth in report.accepted_depths)
    return CellRecord(
        cell=cell_id(system, scenario.network.name, load),
        system=system,
        network=scenario.network.name,
        load=load,
        repetition=repetition,
        num_users=scenario.num_sessions,
        num_edges=scenario.num_edges,
        wall_s=max(answer.bursts[-1][0] for answer in answers) - min(answer.sent_s for answer in answers),
        verifier_busy_s=outcome.verifier_busy_s - (outcome.draft_busy_s if is_local else 0.0),
        draft_busy_s=outcome.draft_busy_s,
        num_verifications=totals.num_verifications,
        num_trees=totals.num_trees,
        num_nodes_verified=totals.num_nodes,
        num_accepted=totals.num_accepted,
        accepted_by_depth=tuple(
            sum(count for accepted, count in depths.items() if accepted > depth)
            for depth in range(max(depths, default=0))
        ),
        drafted_nodes=outcome.num_drafted,
        wasted=dict(outcome.wasted),
        guesses_hit=outcome.guesses_hit,
        guesses_missed=outcome.guesses_missed,
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
        rtt_ms_configured=scenario.network.rtt_ms,
        num_preemptions=outcome.num_preemptions,
        draft_on_verifier=is_local,
    )


def _requests(cell: CellRecord, scenario: Scenario, outcome: ShardOutcome) -> Iterator[RequestRecord]:
    for number, answer in enumerate(outcome.answers):
        yield RequestRecord(
            cell=cell.cell,
            system=cell.system,
            network=cell.network,
            load=cell.load,
            repetition=cell.repetition,
            edge=answer.edge,
            user=answer.user,
            prompt=f"{cell.cell} {number}",  # of no other cell: there is no text that could be compared
            num_prompt_tokens=answer.num_prompt_tokens,
            seed=scenario.seed,
            status="ok",
            scheduled_s=answer.sent_s,
            sent_s=answer.sent_s,
            bursts=tuple(answer.bursts),
            finished_s=answer.bursts[-1][0],
            finish_reason="length",
            num_tokens=answer.num_tokens,
        )


def _steps(cell: CellRecord, outcome: ShardOutcome) -> Iterator[StepRecord]:
    for started_s, report in outcome.steps:
        yield StepRecord(
            cell=cell.cell,
            repetition=cell.repetition,
            started_s=started_s,
            num_sessions=report.num_sessions,
            num_prefill=report.num_prefill,
            num_nodes=report.num_nodes,
            num_accepted=report.num_accepted,
            num_committed=report.num_committed,
            num_moved=report.num_moved,
            schedule_ms=1e3 * report.schedule_s,
            forward_ms=1e3 * report.forward_s,
            sample_ms=1e3 * report.sample_s,
            settle_ms=1e3 * report.settle_s,
            num_kv_tokens=report.num_kv_tokens,
            accepted_depths=tuple(report.accepted_depths),
            queue_ms=tuple(1e3 * queue_s for queue_s in report.queue_s),
        )
