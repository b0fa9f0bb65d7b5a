"""The sampler's definition: one row, numpy, written to be read. :mod:`specedge.sampler` is held to it by test."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from specedge.noise import gumbel_noise
from specedge.sampling import SamplingParams

LARGEST: Final = float(np.finfo(np.float32).max)
MASS_BITS: Final = 40
"""Probabilities are added as integers in units of 2**-40 of the best token's.

Integer sums do not depend on the order of adding, so the nucleus of a row is the same whatever else is in its batch.
"""


def reference_scores(
    logits: NDArray[np.float32],
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    eos_ids: Sequence[int],
    allowed: Collection[int] | None = None,
) -> NDArray[np.float32]:
    """Scores of the token that follows prompt and answer: the highest is chosen, the lowest id among equals.

    Filtered tokens score minus infinity. So do NaN logits, and infinite ones count as the largest float: a broken model
    gives a poor text, not a crash. When every token is filtered the choice is token 0.

    Args:
        logits: float32 [vocab].
        params: the request's parameters, validated.
        prompt_ids: the prompt.
        generated_ids: the answer before the token being chosen, with the row's own draft tokens.
        eos_ids: the model's end-of-sequence tokens.
        allowed: ids that the request's grammar allows here; None without a grammar.
    """
    with np.errstate(all="ignore"):
        scores = _edited(logits, params, prompt_ids, generated_ids, eos_ids, allowed)
        if not params.is_greedy:
            scores = scores / np.float32(params.temperature)
        scores = np.nan_to_num(scores, nan=-np.inf, posinf=LARGEST, neginf=-np.inf)
    if params.is_greedy:
        return scores
    _keep_min_p(scores, params.min_p)
    _keep_top_k_and_top_p(scores, params.top_k, params.top_p)
    return scores + gumbel_noise(params.seed, len(prompt_ids) + len(generated_ids), len(scores))


def _edited(
    logits: NDArray[np.float32],
    params: SamplingParams,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    eos_ids: Sequence[int],
    allowed: Collection[int] | None,
) -> NDArray[np.float32]:
    edited = logits.astype(np.float32)
    for token_id, bias in params.logit_bias:
        edited[token_id] += np.float32(bias)
    occurrences = Counter(generated_ids)
    for token_id in set(prompt_ids) | set(generated_ids):
        repetition = np.float32(params.repetition_penalty)
        edited[token_id] = edited[token_id] / repetition if edited[token_id] > 0 else edited[token_id] * repetition
        if occurrences[token_id]:
            penalty = params.frequency_penalty * occurrences[token_id] + params.presence_penalty
            edited[token_id] -= np.float32(penalty)
    if params.allowed_token_ids:
        edited[[token_id for token_id in range(len(edited)) if token_id not in params.allowed_token_ids]] = -np.inf
    for *beginning, last in params.bad_words:
        if list(generated_ids[len(generated_ids) - len(beginning) :]) == beginning:
            edited[last] = -np.inf
    refused = {*eos_ids, *params.stop_token_ids} if len(generated_ids) < params.min_tokens else set()
    if allowed is not None:
        kept = set(allowed) - refused or set(allowed)
        refused = set(range(len(edited))) - kept
    edited[list(refused)] = -np.inf
    return edited


def _keep_min_p(scores: NDArray[np.float32], min_p: float) -> None:
    if min_p > 0:
        scores[scores < scores.max() + np.float32(np.log(min_p))] = -np.inf


def _keep_top_k_and_top_p(scores: NDArray[np.float32], top_k: int, top_p: float) -> None:
    """Both keep a prefix of the ranking by score, the lower id first among equals; top_p sees what top_k left."""
    if not np.isfinite(scores).any():
        return
    ranking = np.argsort(-scores, kind="stable")
    if top_k > 0:
        scores[ranking[top_k:]] = -np.inf
    if top_p < 1:
        mass = np.ldexp(np.exp(scores[ranking] - scores.max()), MASS_BITS).astype(np.int64)
        mass_before = np.cumsum(mass) - mass
        scores[ranking[mass_before >= mass.sum() * top_p]] = -np.inf
