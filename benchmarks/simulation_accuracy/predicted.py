"""The simulator's view of a measured cell: the same requests, with what the target said and the draft claimed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from statistics import median
from typing import cast

from benchmarks.simulation_accuracy.measured import MeasuredCell
from specedge.errors import SpecEdgeError
from specedge_bench.curves import StepCurve
from specedge_bench.network.profiles import network_profile
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.records import StepRecord
from specedge_bench.simulation.acceptance_trace import AcceptanceTrace
from specedge_bench.simulation.record import EmbeddedPair
from specedge_bench.simulation.result import SimResult
from specedge_bench.simulation.scenario import Batching, Mode, Replayed, Scenario, System
from specedge_bench.simulation.simulation import simulate
from specedge_bench.systems import SystemVariant

Position = tuple[tuple[float, ...], int]
"""What the draft claims for its best children, and the rank of the target's token among them."""


class AnswersDiffer(SpecEdgeError):
    """The recorded answer is not the one that the services gave."""


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Mean seconds beside the forwards, of a verifier step and of a draft step."""

    verifier_s: float
    draft_s: float


def host_costs(cells: Sequence[MeasuredCell]) -> HostCosts:
    """What steps took beyond their forwards, by the services' own clocks."""
    forwards = [forward for cell in cells for forward in cell.forwards]
    targets = [forward.lasted_s for forward in forwards if forward.model == "target"]
    drafts = [forward.lasted_s for forward in forwards if forward.model == "draft"]
    verifier_s = fsum(cell.record.verifier_busy_s for cell in cells) - fsum(targets)
    draft_s = fsum(cell.record.draft_busy_s for cell in cells) - fsum(drafts)
    # Between two steps the engine tells what the first one brought and takes in what has come. The median leaves out
    # the times when nobody asks anything; where a draft model runs in between, what is its own cannot be told.
    pauses = [] if cells[0].record.draft_on_verifier else [pause for cell in cells for pause in _pauses(cell)]
    between_s = median(pauses) if pauses else 0.0
    return HostCosts(verifier_s / len(targets) + between_s, draft_s / len(drafts) if drafts else 0.0)


def _pauses(cell: MeasuredCell) -> list[float]:
    """Seconds from the end of each step to the beginning of the next."""
    return [later.started_s - _end_s(step) for step, later in pairwise(cell.steps)]


def _end_s(step: StepRecord) -> float:
    return step.started_s + (step.schedule_ms + step.forward_ms + step.sample_ms + step.settle_ms) / 1e3


class Predictor:
    """Simulates cells; records the embedded pair's answer to each request once.

    Args:
        target, draft: curves of the services' forwards.
        temperature, max_new_tokens: of all requests.
    """

    def __init__(self, target: StepCurve, draft: StepCurve, *, temperature: float, max_new_tokens: int) -> None:
        self._target = target
        self._draft = draft
        self._temperature = temperature
        self._pair = EmbeddedPair(max_new_tokens)
        self._answers: dict[tuple[str, int], list[Position]] = {}

    def predict(
        self, cell: MeasuredCell, before: Sequence[MeasuredCell], system: SystemVariant, hosts: HostCosts
    ) -> SimResult:
        """One simulation of the requests of a cell, after those of earlier cells that the same services had answered.

        Raises:
            AnswersDiffer: the pair here answers otherwise than the services.
        """
        positions: list[Position] = []
        learnt_from = [request for earlier in before or [cell] for request in self._replayed(earlier, positions)]
        replayed = self._replayed(cell, positions)
        claims, ranks = zip(*positions, strict=True)
        num_users = cell.record.num_users
        return simulate(
            Scenario(
                system=cast(System, system.kind),
                verifier_curve=self._target,
                draft_curve=self._draft,
                trace=AcceptanceTrace(cell.record.cell, "recorded", claims, ranks),
                num_sessions=num_users,
                num_edges=cell.record.num_edges,
                network=network_profile(cell.record.network),
                mode=cast(Mode, system.mode),
                batch_type=cast(Batching, system.batch_type),
                replayed=tuple(tuple(replayed[user::num_users]) for user in range(num_users)),
                warm_up=tuple(tuple(learnt_from[user::num_users]) for user in range(num_users)),
                verifier_host_s=hosts.verifier_s,
                edge_host_s=hosts.draft_s,
            )
        )

    def _replayed(self, cell: MeasuredCell, positions: list[Position]) -> list[Replayed]:
        """A cell's requests; their answers are put behind the positions that are there."""
        replayed: list[Replayed] = []
        for request, prompt in zip(cell.requests, cell.prompts, strict=True):
            answer = self._answer(prompt, request.seed)
            if len(answer) != request.num_tokens:
                raise AnswersDiffer(
                    f"{request.cell}: {prompt.id} has {request.num_tokens} tokens there and {len(answer)} here"
                )
            # What the prefix cache had is as if it were no part of the prompt.
            num_prompt = request.num_prompt_tokens - request.num_cached_tokens
            replayed.append(Replayed(num_prompt, len(answer), len(positions)))
            positions += answer
        return replayed

    def _answer(self, prompt: Prompt, seed: int) -> list[Position]:
        key = prompt.id, seed
        if key not in self._answers:
            self._answers[key] = self._pair.positions(prompt, self._temperature, seed)
        return self._answers[key]
