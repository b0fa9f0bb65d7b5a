"""Which logits the penalties change, and by how much, exactly for each path of a token tree.

A session's counts are kept up to date as tokens are committed; a row of its tree adds the draft tokens of its own path
and of no other. A penalty computed once for all rows of a tree would let a sibling's tokens change the text.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specedge.sampling import SamplingParams


class TokenCounts:
    """The distinct tokens of one session's prompt and answer, with how often the answer holds each."""

    __slots__ = ("_generated", "_ids", "_slots")

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self._slots = {token_id: slot for slot, token_id in enumerate(dict.fromkeys(prompt_ids))}
        self._ids = array("q", self._slots)
        self._generated = array("q", bytes(8 * len(self._slots)))

    def append(self, tokens: Iterable[int]) -> None:
        """Count tokens that were committed to the answer."""
        for token_id in tokens:
            slot = self._slots.setdefault(token_id, len(self._ids))
            if slot == len(self._ids):
                self._ids.append(token_id)
                self._generated.append(0)
            self._generated[slot] += 1

    def with_paths(self, paths: Sequence[Sequence[int]]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each path: distinct token ids, and how often each was generated if the path were committed."""
        ids, generated = np.array(self._ids, dtype=np.int64), np.array(self._generated, dtype=np.int64)
        for path in paths:
            if path:
                new_ids = [token_id for token_id in dict.fromkeys(path) if token_id not in self._slots]
                new_slots = {token_id: slot for slot, token_id in enumerate(new_ids, start=len(ids))}
                counts = np.concatenate((generated, np.zeros(len(new_ids), dtype=np.int64)))
                for token_id in path:
                    counts[new_slots[token_id] if token_id in new_slots else self._slots[token_id]] += 1
                yield np.concatenate((ids, np.array(new_ids, dtype=np.int64))), counts
            else:
                yield ids, generated


class PenalisedEntries(NamedTuple):
    """One row's penalised logits: ``x -> (x / multiplicative if x > 0 else x * multiplicative) + additive``."""

    ids: NDArray[np.int64]
    additive: NDArray[np.float32]
    multiplicative: NDArray[np.float32]


def penalised_rows(
    params: SamplingParams, counts: TokenCounts, paths: Sequence[Sequence[int]]
) -> Iterator[PenalisedEntries]:
    """The entries of rows with these draft paths: repetition counts the prompt too, the others only the answer."""
    for ids, generated in counts.with_paths(paths):
        if params.repetition_penalty == 1:
            is_generated = generated > 0
            ids, generated = ids[is_generated], generated[is_generated]
        additive = -(params.frequency_penalty * generated + params.presence_penalty * (generated > 0))
        with np.errstate(over="ignore"):
            multiplicative = np.full(len(ids), params.repetition_penalty).astype(np.float32)
        yield PenalisedEntries(ids, additive.astype(np.float32), multiplicative)
