"""Packed batches that mix everything a forward may hold: a prompt chunk, chains, and trees over a prefix."""

import numpy as np

from specedge.model.batch import PackedBatch, Segment

NUM_SLOTS = 128
MAX_POSITION = 15  # highest position in the batches
TREE = (-1, 0, 1, 1, 3, 0)  # parent row of each row: a root, a path of three with a branch, another child of the root


def tree_mask(parents: tuple[int, ...]) -> np.ndarray:
    """[num_rows, num_rows] ancestors and self."""
    mask = np.eye(len(parents), dtype=bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] |= mask[parent]
    return mask


def mixed_batches(vocab_size: int, seed: int = 0) -> list[PackedBatch]:
    """Two prompts, then one batch of three kinds of segments, then two rows that attend to a tail longer than they are.

    Every batch builds on the keys and values that the ones before it stored.
    """
    rng = np.random.default_rng(seed)
    slots = rng.permutation(NUM_SLOTS).astype(np.int64)
    first, second, third = slots[:40], slots[40:80], slots[80:]
    mask = tree_mask(TREE)
    depths = mask.sum(1) - 1

    def tokens(count: int) -> np.ndarray:
        return rng.integers(0, vocab_size, count)

    batches = [
        PackedBatch(tokens(n), np.arange(n), own[:n], (Segment(n, own[:n]),), np.array([n - 1]))
        for n, own in ((11, first), (5, second))
    ]
    batches.append(
        PackedBatch(
            token_ids=tokens(6 + 3 + 9),
            positions=np.concatenate([11 + depths, np.arange(5, 8), np.arange(9)]),
            slots=np.concatenate([first[11:17], second[5:8], third[:9]]),
            segments=(Segment(6, first[:17], mask), Segment(3, second[:8]), Segment(9, third[:9])),
            logits_rows=np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 17]),
        )
    )
    # Two children more of the tree's rows 4 and 2, whose own ancestors were computed by the batch before.
    tail = np.concatenate([np.stack([mask[4], mask[2]]), np.eye(2, dtype=bool)], axis=1)
    tail_positions = np.concatenate([11 + depths, [15, 14]])
    batches.append(
        PackedBatch(
            token_ids=tokens(2),
            positions=tail_positions[6:],
            slots=first[17:19],
            segments=(Segment(2, first[:19], tail, tail_positions),),
            logits_rows=np.array([1, 0]),
        )
    )
    return batches
