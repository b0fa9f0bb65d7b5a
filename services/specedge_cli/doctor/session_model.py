"""One session in virtual time: tokens per verification and time per token, from step times, round trip and agreement.

A position *agrees* when the drafted tree has the target's token below the target's text so far. The edge finds one
more position with every draft step until one does not agree; what it then drafts is of no use until a verdict has told
it the target's token. The verifier never waits: it verifies what has arrived and always adds a token of its own.

Left out: other sessions, work on the host, rows that make steps longer. So this is what can be had, not a promise.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, log
from typing import Final

NUM_TOKENS: Final = 4000
_SEED: Final = 3


@dataclass(frozen=True, slots=True)
class Times:
    """What the session is made of, in seconds.

    Attributes:
        verifier_step_s: a step of the verifier.
        draft_step_s: a step of the draft model.
        round_trip_s: from the edge to the verifier and back.
    """

    verifier_step_s: float
    draft_step_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What comes of it."""

    tokens_per_verification: float
    seconds_per_token: float


def greatest_lead(agreement: float, max_budget: int, decay: float, least_probability: float) -> int:
    """Positions past the committed text at which a node is still worth sending."""
    if agreement <= 0:
        return 1
    return max(1, min(max_budget, int(log(least_probability) / log(min(decay * agreement, 0.999)))))


def streamed_pace(times: Times, agreement: float, max_lead: int) -> Pace:
    """The pace of streamed drafting.

    Args:
        agreement: share of positions that agree, 0 to 1.
        max_lead: positions that are drafted past the last known verdict.
    """
    agrees = _outcomes(agreement)
    edge = _StreamingEdge(times, agrees, max_lead)
    now_s, num_committed, num_steps = 0.0, 0, 0
    while num_committed < NUM_TOKENS:
        edge.draft_until(now_s)
        num_committed = edge.first_missing(num_committed, now_s) + 1
        now_s += times.verifier_step_s
        num_steps += 1
        edge.told(now_s + times.round_trip_s / 2, num_committed)
    return Pace(num_committed / num_steps, now_s / num_committed)


def _outcomes(agreement: float) -> Sequence[bool]:
    draw = random.Random(_SEED)
    return [draw.random() < agreement for _ in range(2 * NUM_TOKENS)]


class _StreamingEdge:
    """Drafts without pause; knows of the verifier what its verdicts have told by then."""

    def __init__(self, times: Times, agrees: Sequence[bool], max_lead: int) -> None:
        self._step_s = max(times.draft_step_s, 1e-6)
        self._way_s = times.round_trip_s / 2
        self._agrees = agrees
        self._max_lead = max_lead
        self._now_s = 0.0
        self._front = 0  # the next position to draft
        self._is_lost = False  # the position at the front does not agree, and no verdict has told so yet
        self._arrives_s: list[float] = [inf] * len(agrees)
        self._told_s: list[float] = []
        self._told_committed: list[int] = []

    def told(self, at_s: float, num_committed: int) -> None:
        """A verdict arrives at that time."""
        self._told_s.append(at_s)
        self._told_committed.append(num_committed)

    def draft_until(self, limit_s: float) -> None:
        """Every draft step whose nodes are at the verifier by then."""
        while self._now_s + self._step_s + self._way_s <= limit_s:
            index = bisect_left(self._told_s, self._now_s + 1e-12)
            known = self._told_committed[index - 1] if index else 0
            if known > self._front:
                self._front, self._is_lost = known, False
            if self._is_lost or self._front - known >= self._max_lead:
                if index == len(self._told_s):
                    return
                num_steps = ceil((self._told_s[index] - self._now_s) / self._step_s)
                self._now_s += max(num_steps, 1) * self._step_s
                continue
            self._now_s += self._step_s
            if self._agrees[self._front]:
                self._arrives_s[self._front] = self._now_s + self._way_s
                self._front += 1
            else:
                self._is_lost = True

    def first_missing(self, position: int, now_s: float) -> int:
        """The first position from here on whose token has not arrived."""
        while self._arrives_s[position] <= now_s:
            position += 1
        return position
