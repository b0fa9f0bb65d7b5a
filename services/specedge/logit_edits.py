"""The edits that come before the temperature: logit_bias, penalties and the min_tokens mask, in this order.

Only the edited entries are touched: their rows, ids and values are collected on the host for the whole batch, and each
kind of edit is one gather and one scatter on the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specedge.penalties import penalised_entries
from specedge.row_group import RowGroup


def edited_logits(logits: Tensor, groups: Sequence[RowGroup]) -> Tensor:
    """The logits after the edits of each group, [rows, vocab]; the given tensor itself when nothing is edited."""
    if not any(group.params.edits_logits for group in groups):
        return logits
    biases, penalties, masks = _Entries(), _Entries(), _Entries()
    next_row = 0
    for group in groups:
        rows = np.arange(next_row, next_row + len(group.positions))
        next_row += len(rows)
        _collect_bias(biases, group, rows)
        _collect_penalties(penalties, group, rows)
        _collect_mask(masks, group, rows)
    edited = logits.clone()
    for entries in (biases, penalties, masks):
        entries.apply_to(edited)
    return edited


class _Entries:
    """Entries of a batch that change by ``x -> (x / multiplicative if x > 0 else x * multiplicative) + additive``."""

    def __init__(self) -> None:
        self._index: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def add(
        self,
        rows: NDArray[np.int64],
        ids: NDArray[np.int64],
        additive: NDArray[np.float32] | float,
        multiplicative: NDArray[np.float32] | float = 1.0,
    ) -> None:
        """Add the same entries to each of `rows`; no entry may be added twice."""
        values = np.empty((2, len(ids)), dtype=np.float32)
        values[0], values[1] = additive, multiplicative
        self._index.append(np.stack((np.repeat(rows, len(ids)), np.tile(ids, len(rows)))))
        self._values.append(np.tile(values, len(rows)))

    def apply_to(self, logits: Tensor) -> None:
        """Change the entries in place, except ids past the logits: a draft model may have fewer than its target."""
        if not self._index:
            return
        index, values = np.concatenate(self._index, axis=1), np.concatenate(self._values, axis=1)
        is_inside = index[1] < logits.shape[1]
        rows, ids = torch.from_numpy(index[:, is_inside]).to(logits.device)
        additive, multiplicative = torch.from_numpy(values[:, is_inside]).to(logits.device)
        before = logits[rows, ids]
        repeated = torch.where(before > 0, before / multiplicative, before * multiplicative)
        logits[rows, ids] = repeated + additive


def _collect_bias(entries: _Entries, group: RowGroup, rows: NDArray[np.int64]) -> None:
    if group.params.logit_bias:
        ids, values = zip(*group.params.logit_bias, strict=True)
        entries.add(rows, np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32))


def _collect_penalties(entries: _Entries, group: RowGroup, rows: NDArray[np.int64]) -> None:
    if not group.params.needs_paths:
        return
    assert group.counts is not None, "penalties need the committed tokens"
    paths = group.paths if group.paths is not None else [()] * len(rows)
    for row, path in zip(rows, paths, strict=True):
        entries.add(row[None], *penalised_entries(group.params, group.counts, path))


def _collect_mask(entries: _Entries, group: RowGroup, rows: NDArray[np.int64]) -> None:
    if group.params.min_tokens == 0:
        return
    num_generated = group.positions - group.prompt_len
    stop_ids = np.array(sorted({*group.eos_ids, *group.params.stop_token_ids}), dtype=np.int64)
    entries.add(rows[num_generated < group.params.min_tokens], stop_ids, -np.inf)
