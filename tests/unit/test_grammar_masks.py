"""Masks of grammars on logits."""

import numpy as np
import pytest
import torch

from specedge.grammar.apply_masks import apply_masks


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_mask_does_not_name_is_gone(vocab_size: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(vocab_size)
    num_words = -(-vocab_size // 32)
    masks = torch.from_numpy(rng.integers(-(2**31), 2**31, (5, num_words)).astype(np.int32))
    masks[1], masks[2] = -1, 0
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    is_allowed = np.unpackbits(masks.numpy().view(np.uint8), axis=1, bitorder="little")[:, :vocab_size] != 0
    expected = logits.masked_fill(torch.from_numpy(~is_allowed), -torch.inf)
    apply_masks(logits, masks)
    assert torch.equal(logits, expected)
    assert logits[1].isfinite().all()
    assert logits[2].isneginf().all()


def test_ids_past_the_masks_are_not_allowed() -> None:
    logits = torch.zeros(2, 70)
    apply_masks(logits, torch.full((2, 2), -1, dtype=torch.int32))
    assert logits[:, :64].eq(0).all()
    assert logits[:, 64:].isneginf().all()


def test_masks_of_some_rows_of_a_wider_array() -> None:
    masks = torch.full((4, 6), -1, dtype=torch.int32)[::2, 1:3]
    masks[1, 0] = 0
    logits = torch.zeros(2, 64)
    apply_masks(logits, masks)
    assert logits[0].eq(0).all()
    assert logits[1].isneginf().sum() == 32
