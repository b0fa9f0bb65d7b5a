"""The edits that come before the temperature: logit_bias, penalties, masks and grammars, in this order.

Only the edited entries are touched: their rows, ids and values are collected on the host for the whole batch, and each
kind of edit is one gather and one scatter on the device. Rows with few allowed tokens are filled, and these put back;
of grammars only the rows they bind are touched.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specedge.device_copy import Upload
from specedge.grammar.apply_masks import apply_masks
from specedge.penalties import PenalisedEntries, penalised_rows
from specedge.row_group import RowGroup


class LogitEdits:
    """The edits of a batch: collected here, applied once the upload they were added to has been sent.

    Args:
        groups: the rows of the batch.
        vocab_size: width of the logits; ids from here on are left out, since a draft model may have fewer than its
            target.
        upload: takes the entries along.
    """

    def __init__(self, groups: Sequence[RowGroup], vocab_size: int, upload: Upload) -> None:
        self._places: list[tuple[int, int]] = []  # of each kind's (rows, ids) and (additive, multiplicative)
        self._allowed: tuple[int, int] | None = None  # of the rows, and of (rows, ids)
        self._masks_place: int | None = None  # of the grammars' masks
        self._bound_place: int | None = None  # of the rows with a grammar; None: all of them
        if not any(group.edits_logits for group in groups):
            return
        biases, penalties, masks = _Entries(), _Entries(), _Entries()
        next_row = 0
        for group in groups:
            rows = range(next_row, next_row + len(group.positions))
            next_row = rows.stop
            _collect_bias(biases, group, rows)
            _collect_penalties(penalties, group, rows)
            _collect_mask(masks, group, rows)
        for entries in (biases, penalties, masks):
            if entries.has_any:
                index, values = entries.arrays(vocab_size)
                self._places.append((upload.add(index), upload.add(values)))
        if any(group.params.allowed_token_ids for group in groups):
            rows_and_ids = _allowed_entries(groups, vocab_size)
            self._allowed = upload.add(rows_and_ids[0]), upload.add(rows_and_ids[1])
        self._bind(groups, upload)

    def applied(self, logits: Tensor, sent: Sequence[Tensor]) -> Tensor:
        """The logits after the edits, [rows, vocab]; the given tensor itself when nothing is edited."""
        if not self._places and self._allowed is None and self._masks_place is None:
            return logits
        edited = logits.clone()
        for index_place, values_place in self._places:
            rows, ids = sent[index_place]
            additive, multiplicative = sent[values_place]
            before = edited[rows, ids]
            repeated = torch.where(before > 0, before / multiplicative, before * multiplicative)
            edited[rows, ids] = repeated + additive
        if self._allowed is not None:
            rows, ids = sent[self._allowed[1]]
            kept = edited[rows, ids]
            edited.index_fill_(0, sent[self._allowed[0]], -torch.inf)
            edited[rows, ids] = kept
        if self._masks_place is not None:
            self._apply_grammars(edited, sent)
        return edited

    def _bind(self, groups: Sequence[RowGroup], upload: Upload) -> None:
        masks = [group.allowed for group in groups if group.allowed is not None]
        if not masks:
            return
        self._masks_place = upload.add(np.concatenate(masks))
        if len(masks) < len(groups):
            is_bound = np.repeat(
                [group.allowed is not None for group in groups], [len(group.positions) for group in groups]
            )
            self._bound_place = upload.add(is_bound.nonzero()[0])

    def _apply_grammars(self, logits: Tensor, sent: Sequence[Tensor]) -> None:
        assert self._masks_place is not None
        allowed = sent[self._masks_place]
        if self._bound_place is None:
            apply_masks(logits, allowed)
            return
        rows = sent[self._bound_place]
        bound = logits.index_select(0, rows)
        apply_masks(bound, allowed)
        logits.index_copy_(0, rows, bound)


class _Entries:
    """Entries of a batch that change by ``x -> (x / multiplicative if x > 0 else x * multiplicative) + additive``."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._ids: list[NDArray[np.int64]] = []
        self._additive: list[NDArray[np.float32]] = []
        self._multiplicative: list[NDArray[np.float32]] = []

    @property
    def has_any(self) -> bool:
        return bool(self._rows)

    def add(self, row: int, entries: PenalisedEntries) -> None:
        """Add entries of one row; only masks may be added twice."""
        self._rows.append(row)
        self._lengths.append(len(entries.ids))
        self._ids.append(entries.ids)
        self._additive.append(entries.additive)
        self._multiplicative.append(entries.multiplicative)

    def arrays(self, vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Row and id, and addend and factor, of every entry: [2, num_entries] each."""
        index = np.stack((np.repeat(self._rows, self._lengths), np.concatenate(self._ids)))
        values = np.stack((np.concatenate(self._additive), np.concatenate(self._multiplicative)))
        is_inside = index[1] < vocab_size
        return (index, values) if is_inside.all() else (index[:, is_inside], values[:, is_inside])


def _collect_bias(entries: _Entries, group: RowGroup, rows: range) -> None:
    if group.params.logit_bias:
        ids, values = zip(*group.params.logit_bias, strict=True)
        additions = _additions(np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32))
        for row in rows:
            entries.add(row, additions)


def _collect_penalties(entries: _Entries, group: RowGroup, rows: range) -> None:
    if not group.params.has_penalties:
        return
    assert group.counts is not None, "penalties need the committed tokens"
    paths = group.paths if group.paths is not None else [()] * len(rows)
    for row, penalised in zip(rows, penalised_rows(group.params, group.counts, paths), strict=True):
        entries.add(row, penalised)


def _collect_mask(entries: _Entries, group: RowGroup, rows: range) -> None:
    if group.params.bad_words:
        for row, masked in zip(rows, bad_tokens(group), strict=True):
            ids = np.array(sorted(masked), dtype=np.int64)
            entries.add(row, _additions(ids, np.full(len(ids), -np.inf, dtype=np.float32)))
    if group.params.min_tokens == 0 or group.allowed is not None:
        return
    num_generated = group.positions - group.prompt_len
    stop_ids = np.array(sorted({*group.eos_ids, *group.params.stop_token_ids}), dtype=np.int64)
    additions = _additions(stop_ids, np.full(len(stop_ids), -np.inf, dtype=np.float32))
    for row, is_masked in zip(rows, (num_generated < group.params.min_tokens).tolist(), strict=True):
        if is_masked:
            entries.add(row, additions)


def bad_tokens(group: RowGroup) -> Iterator[set[int]]:
    """For each row the tokens that would complete a bad word at the end of its own path."""
    words = group.params.bad_words
    num_before = max(len(word) for word in words) - 1
    answer = list(group.committed[max(group.prompt_len, len(group.committed) - num_before) :])
    for path in group.paths if group.paths is not None else [()] * len(group.positions):
        before = [*answer, *path]
        yield {last for *beginning, last in words if before[len(before) - len(beginning) :] == beginning}


def _allowed_entries(groups: Sequence[RowGroup], vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows with allowed tokens, and the row and id of each allowed entry [2, num_entries]."""
    all_rows, index = [], []
    next_row = 0
    for group in groups:
        rows = np.arange(next_row, next_row + len(group.positions))
        next_row += len(rows)
        if group.params.allowed_token_ids:
            ids = np.array([token for token in group.params.allowed_token_ids if token < vocab_size], dtype=np.int64)
            all_rows.append(rows)
            index.append(np.stack((rows.repeat(len(ids)), np.tile(ids, len(rows)))))
    return np.concatenate(all_rows), np.concatenate(index, axis=1)


def _additions(ids: NDArray[np.int64], values: NDArray[np.float32]) -> PenalisedEntries:
    return PenalisedEntries(ids, values, np.ones(len(ids), dtype=np.float32))
