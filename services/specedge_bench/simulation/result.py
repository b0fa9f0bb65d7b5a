"""What a simulation measured, defined as for the real services."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from specedge_bench.statistics import percentiles


@dataclass(slots=True)
class Answer:
    """One request as its user saw it; times in seconds of virtual time.

    Attributes:
        bursts: (arrival, tokens) of every verdict.
        user, edge: who asked, and where.
        verifier: who answered.
        retry_after_s: told in place of an answer.
        predicted_ttft_s: when its session was opened, of the time from then on.
        opened_s: when that was.
    """

    sent_s: float
    bursts: list[tuple[float, int]]
    user: int = 0
    edge: int = 0
    num_prompt_tokens: int = 0
    verifier: int = 0
    retry_after_s: float | None = None
    predicted_ttft_s: float = 0.0
    opened_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.bursts)

    @property
    def ttft_s(self) -> float:
        return self.bursts[0][0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first burst; None for an answer of one burst."""
        later = self.num_tokens - self.bursts[0][1]
        return (self.bursts[-1][0] - self.bursts[0][0]) / later if later else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimResult:
    """One simulation's numbers.

    Attributes:
        num_answers, num_tokens: finished.
        num_refused: refusals for want of room; in a closed loop the same request comes again.
        wall_s: from the first request to the last token, in virtual time.
        tokens_per_s: over the whole of it.
        itl_ms: per token, at 50, 95 and 99 %: a burst of k tokens after a gap g counts as k gaps of g / k.
        burst_ms: pauses between bursts, at 50, 95 and 99 %.
        tpot_ms: median over answers.
        ttft_ms: at 50, 95 and 99 %; after refusals, from the request that was taken.
        tokens_per_verification, nodes_per_verification: means over sessions and steps.
        with_tree: share of the verifications that had a draft to verify.
        verifier_busy, draft_busy: shares of wall time, the mean over devices. In "server-only" the drafting is part
            of the verifier's.
        verifier_busy_s, draft_busy_s: sums over devices.
        sessions_per_step: mean.
        bytes_up, bytes_down: per verification, message framing included.
        guesses_hit, guesses_missed: outcomes of proactive drafting.
        num_preemptions: for lack of KV blocks.
        imbalance: sessions of the busiest verifier, over time, by the mean of all.
    """

    num_answers: int
    num_tokens: int
    num_refused: int
    wall_s: float
    tokens_per_s: float
    itl_ms: tuple[float, float, float]
    burst_ms: tuple[float, float, float]
    tpot_ms: float
    ttft_ms: tuple[float, float, float]
    tokens_per_verification: float
    nodes_per_verification: float
    with_tree: float
    verifier_busy: float
    draft_busy: float
    verifier_busy_s: float
    draft_busy_s: float
    sessions_per_step: float
    bytes_up: float
    bytes_down: float
    guesses_hit: int
    guesses_missed: int
    num_preemptions: int
    imbalance: float = 1.0


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float, float]:
    """50, 95 and 99 % of them by nearest rank, in milliseconds; NaN for none."""
    found = percentiles(seconds)
    return 1e3 * found.p50, 1e3 * found.p95, 1e3 * found.p99


def burst_gaps(answers: Sequence[Answer]) -> list[float]:
    """Seconds between the bursts of each answer."""
    return [later[0] - earlier[0] for answer in answers for earlier, later in pairwise(answer.bursts)]


def token_gaps(answers: Sequence[Answer]) -> list[float]:
    """Seconds per token, one entry a token."""
    gaps: list[float] = []
    for answer in answers:
        before_s = answer.bursts[0][0]
        for at_s, count in answer.bursts[1:]:
            gaps += [(at_s - before_s) / count] * count
            before_s = at_s
    return gaps
