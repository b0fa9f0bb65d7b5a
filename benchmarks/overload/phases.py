"""The two loads: as many users as keep the service full, and ten times as many requests as it then answers."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.overload.user import Outcome, Users

_FILL_EVERY_S = 0.01
_MOST_TO_FILL = 500

_FADE = 0.15
"""Of a phase's duration at its beginning, while queues fill: not counted."""


@dataclass(slots=True)
class Phase:
    """A load once.

    Attributes:
        began_s, ended_s: what was sent between is counted, and what arrived between, by `time.perf_counter`.
        outcomes: of the requests sent then.
        everyone: of all requests of the load: what was sent before may be streamed in this time.
        cpu_s: CPU seconds of each thread, over `measured_s` from the load's beginning to its last answer.
    """

    began_s: float
    ended_s: float
    outcomes: list[Outcome]
    everyone: list[Outcome]
    cpu_s: dict[str, float] = field(default_factory=dict)
    measured_s: float = 1.0

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s

    @property
    def answered(self) -> list[Outcome]:
        """Whole answers."""
        return [outcome for outcome in self.outcomes if outcome.status == 200 and not outcome.error]

    @property
    def arrivals(self) -> Iterator[tuple[float, int]]:
        """Of each burst after its answer's first: seconds since the one before, and how many tokens."""
        for outcome in self.everyone:
            for (before_s, _), (at_s, count) in pairwise(outcome.bursts):
                if self.began_s <= at_s <= self.ended_s:
                    yield at_s - before_s, count

    @property
    def num_tokens(self) -> int:
        """That arrived."""
        return sum(
            count for outcome in self.everyone for at_s, count in outcome.bursts if self.began_s <= at_s <= self.ended_s
        )

    @property
    def streamed_s(self) -> float:
        """For which answers were being streamed, in all."""
        spans = (
            min(outcome.bursts[-1][0], self.ended_s) - max(outcome.bursts[0][0], self.began_s)
            for outcome in self.everyone
            if outcome.bursts
        )
        return sum(span for span in spans if span > 0)


@dataclass(slots=True)
class Load:
    """What a load brought, all of its phases together."""

    name: str
    phases: list[Phase] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for phase in self.phases for outcome in phase.outcomes]

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for phase in self.phases for outcome in phase.answered]

    @property
    def refused(self) -> list[Outcome]:
        """In good order."""
        return [outcome for outcome in self.outcomes if outcome.status in (429, 503)]

    @property
    def failed(self) -> list[Outcome]:
        """Neither."""
        return [
            outcome
            for outcome in self.outcomes
            if outcome.error
            or outcome.status not in (200, 429, 503)
            or (outcome.status != 200 and not _can_retry(outcome))
        ]

    @property
    def token_gaps_s(self) -> list[float]:
        """Of each token that arrived, after its answer's first burst: a burst of k after a gap g is k times g/k."""
        gaps: list[float] = []
        for phase in self.phases:
            for gap_s, count in phase.arrivals:
                gaps += [gap_s / count] * count
        return gaps

    @property
    def tokens_per_s(self) -> float:
        """That arrived."""
        return sum(phase.num_tokens for phase in self.phases) / self._duration_s

    @property
    def num_streaming(self) -> float:
        """Answers that were being streamed, on average: more than there are places is a backlog of the edge."""
        return sum(phase.streamed_s for phase in self.phases) / self._duration_s

    @property
    def _duration_s(self) -> float:
        return sum(phase.duration_s for phase in self.phases)

    def cpu(self, thread: str) -> float:
        """Cores that a thread kept busy, on average."""
        used_s = sum(phase.cpu_s.get(thread, 0.0) for phase in self.phases)
        return used_s / sum(phase.measured_s for phase in self.phases)


def _can_retry(outcome: Outcome) -> bool:
    return outcome.retry_after_s is not None and outcome.retry_after_s > 0


async def closed_loop(users: Users, num_users: int, duration_s: float) -> Phase:
    """So many users for so long, each of whom asks again when the last answer is there."""
    outcomes: list[Outcome] = []
    start_s = time.perf_counter()
    end_s = start_s + duration_s

    async def ask_on() -> None:
        while time.perf_counter() < end_s:
            outcomes.append(await users.ask())

    await asyncio.gather(*(ask_on() for _ in range(num_users)))
    return _phase(start_s, end_s, outcomes)


async def open_loop(users: Users, rate_per_s: float, duration_s: float, seed: int = 0) -> Phase:
    """Requests at random moments (Poisson), whatever becomes of them.

    Args:
        users: who ask.
        rate_per_s: mean.
        duration_s: how long.
        seed: of the moments.
    """
    dice = random.Random(seed)
    tasks: list[asyncio.Task[Outcome]] = []
    start_s = next_s = time.perf_counter()
    end_s = start_s + duration_s
    while (next_s := next_s + dice.expovariate(rate_per_s)) < end_s:
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        tasks.append(asyncio.create_task(users.ask()))
    return _phase(start_s, end_s, await asyncio.gather(*tasks))


async def come_back(users: Users, num_times: int) -> list[Outcome]:
    """What one user gets who was refused and comes back when told to, and nobody else asks any more; so many times."""
    outcomes = []
    for _ in range(num_times):
        tasks: list[asyncio.Task[Outcome]] = []
        refused: Outcome | None = None
        while refused is None and len(tasks) < _MOST_TO_FILL:
            tasks.append(asyncio.create_task(users.ask()))
            await asyncio.sleep(_FILL_EVERY_S)
            refused = next((task.result() for task in tasks if task.done() and _can_retry(task.result())), None)
        if refused is not None and refused.retry_after_s is not None:
            await asyncio.sleep(refused.sent_s + refused.retry_after_s - time.perf_counter())
            outcomes.append(await users.ask())
        await asyncio.gather(*tasks)
    return outcomes


def _phase(start_s: float, end_s: float, outcomes: list[Outcome]) -> Phase:
    counted_s = start_s + _FADE * (end_s - start_s)
    return Phase(counted_s, end_s, [outcome for outcome in outcomes if outcome.sent_s >= counted_s], outcomes)
