"""Which tokens one session wants from a batch of logits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specedge.penalties import TokenCounts
from specedge.sampling import SamplingParams


class RowGroup(NamedTuple):
    """The rows of logits that one session wants tokens for.

    Attributes:
        params: the session's sampling parameters, validated.
        positions: int64 [rows], the absolute position of the token chosen at each row.
        eos_ids: the model's end-of-sequence tokens.
        prompt_len: tokens in the prompt; positions from here on belong to the answer.
        counts: the session's committed tokens, required when `params.has_penalties`.
        paths: for each row the draft tokens between the committed ones and its position, the row's own node included;
            None when no row has any. Read only when `params.needs_paths`.
        committed: the session's committed tokens, prompt and answer. Read only when `params.needs_paths`.
        allowed: int32 [rows, words], what the grammar allows at each row: bit ``id % 32`` of word ``id // 32``. Stop
            tokens that min_tokens holds back are out of it already. None: the session has no grammar.
    """

    params: SamplingParams
    positions: NDArray[np.int64]
    eos_ids: tuple[int, ...]
    prompt_len: int
    counts: TokenCounts | None = None
    paths: Sequence[Sequence[int]] | None = None
    committed: Sequence[int] = ()
    allowed: NDArray[np.int32] | None = None

    @property
    def edits_logits(self) -> bool:
        """Whether logits change before the temperature."""
        return self.params.edits_logits or self.allowed is not None
