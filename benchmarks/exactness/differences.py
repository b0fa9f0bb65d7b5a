"""Where an answer leaves the expected one, and whether the target itself is undecided there."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.exactness.cases import Answer, Case
from specedge.model.batch import PackedBatch, Segment
from specedge.model.engines import Engine, load_for, make_runner
from specedge.reference_sampler import reference_scores
from specedge.sampling import SamplingParams

Dtype = Literal["float32", "float16", "bfloat16"]

TOLERANCES: dict[Dtype, float] = {"float32": 5e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""By how much another order of adding may change one logit, by number format; see docs/exactness.md."""

Verdict = Literal["near-tie", "wrong"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which two answers differ.

    Attributes:
        seed: of the request's noise.
        position: absolute position, counted from the first prompt token.
        expected, actual: the tokens; None where an answer had ended.
        logit_gap: by how much the target's own logit of `expected` is above that of `actual`.
        score_gap: the same of the scores that decide, with penalties, temperature, filters and noise; infinite if a
            filter drops one of the two.
        verdict: near-tie, if changing the two tokens' logits within the tolerance makes the target choose either.
    """

    cell: str
    prompt: int
    seed: int
    position: int
    expected: int | None
    actual: int | None
    logit_gap: float
    score_gap: float
    verdict: Verdict

    def __str__(self) -> str:
        return (
            f"{self.verdict}: cell {self.cell!r}, prompt {self.prompt}, seed {self.seed}, position {self.position}: "
            f"expected token {self.expected}, got {self.actual}; the target's own logits differ by "
            f"{self.logit_gap:.3g}, its scores by {self.score_gap:.3g}"
        )


class Judge:
    """Compares answers, and asks the target itself about those that differ: one text, one forward, no drafts.

    Args:
        target: folder or id of the target model.
        device, engine, dtype: what computed the answers.
        eos_ids: the target's end-of-sequence tokens.
        max_len: tokens of the longest text.
    """

    def __init__(
        self, target: str, device: str, engine: Engine, dtype: Dtype, eos_ids: tuple[int, ...], max_len: int = 1024
    ) -> None:
        self._runner = make_runner(load_for(engine, target, device, dtype), max_len)
        self._tolerance = TOLERANCES[dtype]
        self._eos_ids = eos_ids

    def compare(self, cell: str, case: Case, expected: Answer, actual: Answer) -> Difference | None:
        """The first difference; None when tokens and finish reason are equal."""
        if expected == actual:
            return None
        pairs = zip(expected.token_ids, actual.token_ids, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if index is None:
            index = min(len(expected.token_ids), len(actual.token_ids))
            left, right = ((*answer.token_ids, None)[index] for answer in (expected, actual))
            return _difference(cell, case, index, (left, right), float("inf"), float("inf"), "wrong")
        before = expected.token_ids[:index]
        logits = self.plain_logits((*case.prompt_ids, *before))
        tokens = expected.token_ids[index], actual.token_ids[index]
        logit_gap = float(logits[tokens[0]] - logits[tokens[1]])
        scores = self._scores(logits, case, before, case.sampling)[list(tokens)]
        score_gap = float(scores[0] - scores[1]) if np.isfinite(scores).all() else float("inf")
        is_tie = all(self._may_choose(pair, logits, case, before) for pair in (tokens, tokens[::-1]))
        return _difference(cell, case, index, tokens, logit_gap, score_gap, "near-tie" if is_tie else "wrong")

    def _may_choose(
        self, pair: tuple[int, int], logits: NDArray[np.float32], case: Case, before: tuple[int, ...]
    ) -> bool:
        """Whether a nudge makes the target choose the first token, be it by its score or by the edge of a filter."""
        params, (token, other) = case.sampling, pair
        nudged = logits.copy()
        nudged[token] += self._tolerance
        nudged[other] -= self._tolerance
        nuclei = {params.top_p}
        if params.top_p < 1:  # what lies before the edge has changed as well, by a share of at most a quarter
            nuclei |= {max(1e-6, params.top_p - self._tolerance / 4), min(1.0, params.top_p + self._tolerance / 4)}
        return any(
            self._scores(nudged, case, before, replace(params, top_p=top_p)).argmax() == token for top_p in nuclei
        )

    def _scores(
        self, logits: NDArray[np.float32], case: Case, before: tuple[int, ...], params: SamplingParams
    ) -> NDArray[np.float32]:
        return reference_scores(logits, params, prompt_ids=case.prompt_ids, generated_ids=before, eos_ids=self._eos_ids)

    def plain_logits(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        """The target's own logits after a text."""
        rows = np.arange(len(token_ids))
        segment = Segment(len(rows), rows)
        logits = self._runner.forward(PackedBatch(np.array(token_ids), rows, rows, (segment,), rows[-1:]))
        own: NDArray[np.float32] = logits[0].cpu().numpy()
        return own


def _difference(
    cell: str,
    case: Case,
    index: int,
    tokens: tuple[int | None, int | None],
    logit_gap: float,
    score_gap: float,
    verdict: Verdict,
) -> Difference:
    position = len(case.prompt_ids) + index
    return Difference(cell, case.index, case.sampling.seed, position, *tokens, logit_gap, score_gap, verdict)
