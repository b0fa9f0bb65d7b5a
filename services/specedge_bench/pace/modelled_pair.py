"""A pair of models that is all arithmetic: tokens from a hash, drafts that agree with a chosen probability.

The target's next token is a function of the last token and its position. The draft's first choice is that token with
probability 0.86, and it claims just the probabilities it has. What a run measures then is services, network and policy
at an acceptance that is known: the one for which the design's simulation gives its numbers.
"""

import numpy as np
import torch

from specedge.model.batch import IntArray, PackedBatch
from specedge.noise import noise_keys
from specedge_bench.pace.runner import PacedRunner

AGREEMENT = (0.86, 0.06, 0.03, 0.02)
"""Probabilities that the target's token is the draft's first, second, third, fourth choice."""

_NUM_SPECIAL = 3
"""Lower token ids end texts or turns; the pair never says them."""
_CERTAIN_LOGIT = 30.0


class ModelledTarget(PacedRunner):
    """Certain of its next token; to be sampled at temperature 0."""

    def compute(self, batch: PackedBatch) -> torch.Tensor:
        next_tokens, _ = _next_tokens(batch, self.vocab_size)
        logits = torch.zeros(len(next_tokens), self.vocab_size)
        logits[torch.arange(len(next_tokens)), torch.from_numpy(next_tokens)] = _CERTAIN_LOGIT
        return logits


class ModelledDraft(PacedRunner):
    """Names the target's token among its choices as often as it claims."""

    def compute(self, batch: PackedBatch) -> torch.Tensor:
        next_tokens, draws = _next_tokens(batch, self.vocab_size)
        num_choices, num_others = len(AGREEMENT), self.vocab_size - len(AGREEMENT)
        rank = np.searchsorted(np.cumsum(AGREEMENT), draws)  # num_choices where none of them is the target's token
        choices = next_tokens[:, None] + np.arange(num_choices) - rank[:, None]  # the target's own is number `rank`
        choices = _NUM_SPECIAL + (choices - _NUM_SPECIAL) % (self.vocab_size - _NUM_SPECIAL)
        logits = torch.full((len(next_tokens), self.vocab_size), float(np.log((1 - sum(AGREEMENT)) / num_others)))
        log_probs = torch.tensor(AGREEMENT).log().expand(len(next_tokens), -1)
        return logits.scatter_(1, torch.from_numpy(choices), log_probs)


def _next_tokens(batch: PackedBatch, vocab_size: int) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """The target's token after each wanted row, and a number in [0, 1) that decides what the draft makes of it."""
    rows = batch.logits_rows
    keys = noise_keys(batch.token_ids[rows].astype(np.uint64), batch.positions[rows])
    tokens = _NUM_SPECIAL + (keys % np.uint64(vocab_size - _NUM_SPECIAL)).astype(np.int64)
    draws = (noise_keys(keys, np.zeros(len(rows), dtype=np.int64)) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return tokens, draws
