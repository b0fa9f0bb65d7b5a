"""Where an answer leaves the expected one, and whether the target itself is undecided there."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.exactness.cases import Answer, Case
from specedge.model.loader import load_model
from specedge.reference_sampler import reference_scores
from specedge.sampling import SamplingParams

Dtype = Literal["float32", "float16", "bfloat16"]

TOLERANCES: dict[Dtype, float] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-1}
"""Scores closer than this, by number format, are a near-tie: two ways to add up one dot product may order them."""

_TOP_P_TOLERANCE = 1e-4

Verdict = Literal["near-tie", "wrong"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which two answers differ.

    Attributes:
        position: absolute position, counted from the first prompt token.
        expected, actual: the tokens; None where an answer had ended.
        gap: by how much the target's own score of `expected` is above that of `actual`; infinite if a filter drops one.
        verdict: near-tie, if a nudge within the tolerance makes the target choose either token.
    """

    cell: str
    prompt: int
    position: int
    expected: int | None
    actual: int | None
    gap: float
    verdict: Verdict

    def __str__(self) -> str:
        return (
            f"{self.verdict}: cell {self.cell!r}, prompt {self.prompt}, position {self.position}: "
            f"expected token {self.expected}, got {self.actual}, which the target scores lower by {self.gap:.3g}"
        )


class Judge:
    """Compares answers, and asks a plain model about those that differ.

    Args:
        target: folder or id of the target model.
        device: where the plain forward runs.
        dtype: the number format the answers were computed in.
        eos_ids: the target's end-of-sequence tokens.
    """

    def __init__(self, target: str, device: str, dtype: Dtype, eos_ids: tuple[int, ...]) -> None:
        self._model: Any = load_model(target, device, dtype, attention="sdpa")
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
            return Difference(cell, case.index, len(case.prompt_ids) + index, left, right, float("inf"), "wrong")
        before = expected.token_ids[:index]
        logits = self.plain_logits((*case.prompt_ids, *before))
        tokens = expected.token_ids[index], actual.token_ids[index]
        scores = self._scores(logits, case, before, case.sampling)
        gap = float(scores[tokens[0]] - scores[tokens[1]]) if np.isfinite(scores[list(tokens)]).all() else float("inf")
        is_tie = all(self._may_choose(token, logits, case, before) for token in tokens)
        position = len(case.prompt_ids) + index
        return Difference(cell, case.index, position, *tokens, gap, "near-tie" if is_tie else "wrong")

    def _may_choose(self, token: int, logits: NDArray[np.float32], case: Case, before: tuple[int, ...]) -> bool:
        """Whether a nudge makes the target choose this token, be it by its score or by the edge of a filter."""
        params = case.sampling
        nudged = logits.copy()
        nudged[token] += self._tolerance * (1.0 if params.is_greedy else params.temperature)
        nuclei = {params.top_p}
        if params.top_p < 1:
            nuclei |= {params.top_p - _TOP_P_TOLERANCE, min(1.0, params.top_p + _TOP_P_TOLERANCE)}
        return any(
            self._scores(nudged, case, before, replace(params, top_p=top_p)).argmax() == token for top_p in nuclei
        )

    def _scores(
        self, logits: NDArray[np.float32], case: Case, before: tuple[int, ...], params: SamplingParams
    ) -> NDArray[np.float32]:
        return reference_scores(logits, params, prompt_ids=case.prompt_ids, generated_ids=before, eos_ids=self._eos_ids)

    @torch.inference_mode()
    def plain_logits(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        output = self._model(input_ids=torch.tensor([token_ids], device=self._model.device), logits_to_keep=1)
        logits: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        return logits
