"""How the rows of a batch get their scores: planned on the host, computed on the device.

What every step needs is added to one upload while the batch is planned; `scored` then only queues work on the device.
Rows with a filter are *led*: only their best tokens are looked at, and only those need noise.
"""

from collections.abc import Sequence
from itertools import compress
from math import inf
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from specedge.device_copy import Upload
from specedge.filters import NARROW, Limits, keep_leaders, keep_min_p, keep_top_k, keep_top_p
from specedge.logit_edits import LogitEdits
from specedge.noise import noise_keys
from specedge.reference_sampler import LARGEST
from specedge.row_group import RowGroup
from specedge.sampling import SamplingParams
from specedge.torch_noise import TorchNoise

MAX_LEADERS: Final = 128
"""Tokens looked at in a row with a filter."""

_ALL_TOP_P: Final = 2.0
_ALL_TOP_K: Final = 2.0**53

IntArray = NDArray[np.int64]


class ScoredRows(NamedTuple):
    """Some rows of a batch with their scores, on the device.

    Attributes:
        rows: int64 [num_rows], on the host: their numbers in the batch.
        scores: float32 [num_rows, width], noise included; minus infinity where filtered.
        token_ids: int64 [num_rows, width] the scores belong to; None: they are the whole vocabulary's, in order.
        is_cut: bool [num_rows], whether tokens that are not here might have been kept; None: no row is cut.
    """

    rows: IntArray
    scores: Tensor
    token_ids: Tensor | None = None
    is_cut: Tensor | None = None


class RowSettings(NamedTuple):
    """What the sampler does with the rows of one session.

    A filter that is off has a value that changes nothing should the row be filtered beside others: a top_p of 1 would
    still drop the tokens whose probability is too small to be counted.
    """

    temperature: float
    log_min_p: float
    top_k: float
    top_p: float
    is_sampled: bool

    def is_led(self, vocab_size: int) -> bool:
        """Whether the filters keep so few tokens, surely or most likely, that only the best ones are looked at."""
        if self.top_k < _ALL_TOP_K:
            return self.top_k <= MAX_LEADERS
        return vocab_size > NARROW and (self.log_min_p > -inf or self.top_p < 1)


def row_settings(params: SamplingParams, vocab_size: int) -> RowSettings:
    if params.is_greedy:
        return _GREEDY
    log_min_p = float(np.log(params.min_p)) if params.min_p > 0 else -inf
    top_k = params.top_k if 0 < params.top_k < vocab_size else _ALL_TOP_K
    return RowSettings(params.temperature, log_min_p, top_k, params.top_p if params.top_p < 1 else _ALL_TOP_P, True)


_GREEDY: Final = RowSettings(1.0, -inf, _ALL_TOP_K, _ALL_TOP_P, False)


class BatchRows(NamedTuple):
    """Rows of a batch on the host, session by session.

    Attributes:
        settings, sizes: of each session, and how many rows it has.
        rows: their numbers in the batch; None: the batch is these rows.
        keys: uint64 [rows] of the noise.
    """

    settings: list[RowSettings]
    sizes: list[int]
    rows: IntArray | None
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, groups: Sequence[RowGroup], settings: list[RowSettings]) -> "BatchRows":
        sizes = [len(group.positions) for group in groups]
        seeds = np.repeat(np.array([group.params.seed for group in groups], dtype=np.uint64), sizes)
        return cls(settings, sizes, None, noise_keys(seeds, np.concatenate([group.positions for group in groups])))

    def only(self, is_wanted: list[bool]) -> "BatchRows":
        """The rows of some sessions of a batch."""
        if all(is_wanted):
            return self
        rows = np.flatnonzero(np.repeat(is_wanted, self.sizes))
        return BatchRows(
            list(compress(self.settings, is_wanted)), list(compress(self.sizes, is_wanted)), rows, self.keys[rows]
        )

    @property
    def numbers(self) -> IntArray:
        """Their numbers in the batch."""
        return np.arange(len(self.keys)) if self.rows is None else self.rows

    def column(self, values: Sequence[float], dtype: DTypeLike) -> NDArray[Any]:
        """One value per row from one value per session."""
        return np.repeat(np.array(values, dtype=dtype), self.sizes)

    def where(self, is_wanted: list[bool]) -> IntArray:
        """Which of these rows belong to such sessions."""
        return np.flatnonzero(np.repeat(is_wanted, self.sizes))


class Tempered:
    """The step that all rows of a batch share: edits, temperature, and numbers where logits are none."""

    def __init__(self, groups: Sequence[RowGroup], batch: BatchRows, vocab_size: int, upload: Upload) -> None:
        self._edits = LogitEdits(groups, vocab_size, upload)
        temperatures = [setting.temperature for setting in batch.settings]
        is_needed = any(temperature != 1 for temperature in temperatures)
        self._place = upload.add(batch.column(temperatures, np.float32)) if is_needed else None

    def scores(self, logits: Tensor, sent: Sequence[Tensor]) -> Tensor:
        """A new float32 [rows, vocab]."""
        edited = self._edits.applied(logits, sent)
        if self._place is None:
            return only_numbers(edited)
        return only_numbers_(edited / sent[self._place][:, None])


class LedRows:
    """Rows of which only the best tokens are looked at."""

    def __init__(self, rows: BatchRows, upload: Upload, num_leaders: int, vocab_size: int) -> None:
        settings = rows.settings
        has_top_k = all(setting.top_k < _ALL_TOP_K for setting in settings)
        width = max(int(setting.top_k) for setting in settings) if has_top_k else MAX_LEADERS
        self._width = min(max(width, num_leaders), vocab_size)
        self._rows = rows
        self._index = None if rows.rows is None else upload.add(rows.rows)
        self._top_k = upload.add(rows.column([min(setting.top_k, vocab_size + 1) for setting in settings], np.int64))
        self._log_min_p = self._top_p = self._plain = None
        if any(setting.log_min_p > -inf for setting in settings):
            self._log_min_p = upload.add(rows.column([setting.log_min_p for setting in settings], np.float32))
        if any(setting.top_p < 1 for setting in settings):
            self._top_p = upload.add(rows.column([setting.top_p for setting in settings], np.float64))
            is_plain = [setting.top_k == _ALL_TOP_K and setting.log_min_p == -inf for setting in settings]
            self._plain = None if all(is_plain) else upload.add(rows.where(is_plain))
        self._keys = upload.add(rows.keys.view(np.int64))

    def scored(self, scores: Tensor, sent: Sequence[Tensor], noise: TorchNoise | None) -> ScoredRows:
        if self._index is not None:
            scores = scores.index_select(0, sent[self._index])
        limits = Limits(
            top_k=sent[self._top_k],
            log_min_p=None if self._log_min_p is None else sent[self._log_min_p],
            top_p=None if self._top_p is None else sent[self._top_p],
            plain_nuclei=None if self._plain is None else sent[self._plain],
        )
        token_ids, leading, is_cut = keep_leaders(scores, self._width, limits)
        if noise is not None:
            leading += noise.gumbel_of(sent[self._keys], token_ids)
        return ScoredRows(self._rows.numbers, leading, token_ids, is_cut if self._width < scores.shape[1] else None)


class WholeRows:
    """Rows of which every token is looked at."""

    def __init__(self, rows: BatchRows, upload: Upload) -> None:
        self._rows = rows
        self._index = None if rows.rows is None else upload.add(rows.rows)
        kinds = (
            (_keep_min_p, [setting.log_min_p > -inf for setting in rows.settings]),
            (_keep_top_k, [setting.top_k < _ALL_TOP_K for setting in rows.settings]),
            (_keep_top_p, [setting.top_p < 1 and setting.top_k == _ALL_TOP_K for setting in rows.settings]),
        )
        self._filters = [(keep, _FilteredRows(rows, wanted, upload)) for keep, wanted in kinds if any(wanted)]
        is_sampled = [setting.is_sampled for setting in rows.settings]
        sampled = None if all(is_sampled) else rows.where(is_sampled)
        keys = (rows.keys if sampled is None else rows.keys[sampled]).view(np.int64).tolist()
        key_numbers: dict[int, int] = {}
        key_of_row = [key_numbers.setdefault(key, len(key_numbers)) for key in keys]
        self._has_noise = bool(keys)
        self._keys = upload.add(np.array(list(key_numbers), dtype=np.int64))
        self._sampled = None if sampled is None else upload.add(sampled)
        self._key_of_row = None if len(key_numbers) == len(keys) else upload.add(np.array(key_of_row, dtype=np.int64))

    def scored(self, scores: Tensor, sent: Sequence[Tensor], noise: TorchNoise | None) -> ScoredRows:
        """The scores given are used up."""
        if self._index is not None:
            scores = scores.index_select(0, sent[self._index])
        for keep, filtered in self._filters:
            part = scores if filtered.index is None else scores.index_select(0, sent[filtered.index])
            keep(part, filtered, sent[filtered.table])
            if filtered.index is not None:
                scores.index_copy_(0, sent[filtered.index], part)
        if noise is not None and self._has_noise:
            added = noise.gumbel(sent[self._keys])
            if self._key_of_row is not None:
                added = added.index_select(0, sent[self._key_of_row])
            if self._sampled is None:
                scores.add_(added)
            else:
                scores.index_add_(0, sent[self._sampled], added)
        return ScoredRows(self._rows.numbers, scores)


class _FilteredRows:
    """The rows that one filter is for.

    Attributes:
        index: where an upload has their numbers; None: all rows.
        table: where it has log of min_p, top_k and top_p, float64 [3, rows].
        max_top_k: the largest top_k.
        has_top_p: whether any row has one.
    """

    def __init__(self, rows: BatchRows, is_wanted: list[bool], upload: Upload) -> None:
        filtered = rows.only(is_wanted)
        settings = filtered.settings
        table = np.array([(setting.log_min_p, setting.top_k, setting.top_p) for setting in settings])
        self.index = None if all(is_wanted) else upload.add(rows.where(is_wanted))
        self.table = upload.add(np.repeat(table, filtered.sizes, axis=0).T)
        self.max_top_k = int(max(setting.top_k for setting in settings))
        self.has_top_p = any(setting.top_p < 1 for setting in settings)


def _keep_min_p(scores: Tensor, rows: _FilteredRows, table: Tensor) -> None:
    keep_min_p(scores, table[0].float())


def _keep_top_k(scores: Tensor, rows: _FilteredRows, table: Tensor) -> None:
    keep_top_k(scores, table[1].long(), rows.max_top_k, table[2] if rows.has_top_p else None)


def _keep_top_p(scores: Tensor, rows: _FilteredRows, table: Tensor) -> None:
    keep_top_p(scores, table[2])


def only_numbers(logits: Tensor) -> Tensor:
    """A copy without NaN, which counts as minus infinity, and without infinity, which counts as the largest float."""
    return torch.nan_to_num(logits, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)


def only_numbers_(logits: Tensor) -> Tensor:
    return logits.nan_to_num_(nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
