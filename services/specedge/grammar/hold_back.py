"""Holds tokens back in packed masks, as min_tokens does with those that end an answer."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hold_back(masks: NDArray[np.int32], is_early: NDArray[np.bool_], token_ids: Iterable[int]) -> None:
    """Refuse the tokens in rows that come too early for them, in place; where nothing else is allowed, they stay.

    Args:
        masks: int32 [rows, words]; bit ``id % 32`` of word ``id // 32`` says whether the id is allowed.
        is_early: bool [rows].
        token_ids: what is held back.
    """
    others = np.full(masks.shape[1], -1, dtype=np.int32)
    for token_id in (held for held in token_ids if held // 32 < len(others)):
        others.view(np.uint32)[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    kept = masks & others
    is_kept = is_early & kept.any(axis=1)
    masks[is_kept] = kept[is_kept]
