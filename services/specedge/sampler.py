"""The one place where logits become tokens: the target's own on the verifier, and coupled candidates on the edge.

A row's scores depend on its logits, its parameters, its absolute position and its path, and on nothing else: the same
row gives the same token in any batch. :mod:`specedge.reference_sampler` states what is computed.

What a batch needs goes to the device in one copy and one copy brings its tokens back. Rows with a filter are *led*:
only their best tokens are looked at, and only those need noise. A row whose filters may keep more tokens than were
looked at says so beside its token, and is done again over the whole vocabulary, in a second trip that is rare.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specedge.device_copy import Upload, fetch
from specedge.filters import NARROW, Limits, keep_leaders, keep_min_p, keep_top_k, keep_top_p
from specedge.logit_edits import LogitEdits
from specedge.noise import noise_keys
from specedge.reference_sampler import LARGEST
from specedge.row_group import RowGroup as RowGroup
from specedge.sampling import SamplingParams
from specedge.torch_noise import TorchNoise

MAX_LEADERS: Final = 128
"""Tokens looked at in a row with a filter."""

_TEMPERATURE, _LOG_MIN_P, _TOP_K, _TOP_P = range(4)
_ALL_TOP_P: Final = 2.0
_ALL_TOP_K: Final = 2.0**53

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


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


class Sampler:
    """Turns batches of logits into scores and tokens.

    Args:
        vocab_size: the width of the logits.
        device: where the logits are.
        has_noise: sampled tokens are drawn with the noise of their position; without, scores are the filtered logits.
    """

    def __init__(self, vocab_size: int, device: torch.device | str, *, has_noise: bool = True) -> None:
        self._device = torch.device(device)
        self._vocab_size = vocab_size
        self._noise = TorchNoise(vocab_size, device) if has_noise else None

    def choose(self, logits: Tensor, groups: Sequence[RowGroup]) -> IntArray:
        """The token of each row: the highest score, the lowest id among equals, token 0 when all are filtered.

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.
        """
        if all(group.params.is_greedy and not group.params.edits_logits for group in groups):
            return fetch(_best(_numbers(logits))).astype(np.int64, copy=False)
        parts = self.score(logits, groups)
        results = [_chosen(part) for part in parts]
        results += [part.is_cut.long() for part in parts if part.is_cut is not None]
        fetched = fetch(torch.cat(results))
        chosen = np.empty(len(logits), dtype=np.int64)
        rows = np.concatenate([part.rows for part in parts])
        chosen[rows] = fetched[: len(rows)]
        cut = np.concatenate([part.rows for part in parts if part.is_cut is not None] or [rows[:0]])
        cut = cut[fetched[len(rows) :] != 0]
        if len(cut) > 0:
            chosen[cut] = fetch(_best(self.whole_scores(logits, groups, cut)))
        return chosen

    def score(self, logits: Tensor, groups: Sequence[RowGroup], num_leaders: int = 1) -> list[ScoredRows]:
        """Every row once, with its filtered logits / temperature + noise; for greedy rows the edited logits.

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.
            num_leaders: how many tokens each row must at least have.
        """
        settings = _RowSettings.of(groups, self._vocab_size)
        assert len(settings.keys) == len(logits), "every row belongs to exactly one group"
        is_led = settings.is_led(self._vocab_size)
        led, whole = np.flatnonzero(is_led), np.flatnonzero(~is_led)
        upload = Upload()
        tempered = _Tempered(groups, settings, self._vocab_size, upload)
        led_plan = _LedRows(led, settings, upload, num_leaders, self._vocab_size) if len(led) > 0 else None
        whole_plan = _WholeRows(whole, settings, upload)
        sent = upload.send(self._device)
        scores = tempered.scores(logits, sent)
        parts = []
        if led_plan is not None:
            parts.append(led_plan.scored(scores, sent, self._noise))
        if len(whole) > 0 or led_plan is None:
            parts.append(whole_plan.scored(scores, sent, self._noise))
        return parts

    def scores(self, logits: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """The scores of all rows over the whole vocabulary, float32 [rows, vocab].

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.
        """
        settings = _RowSettings.of(groups, self._vocab_size)
        upload = Upload()
        tempered = _Tempered(groups, settings, self._vocab_size, upload)
        plan = _WholeRows(np.arange(len(logits)), settings, upload)
        sent = upload.send(self._device)
        return plan.scored(tempered.scores(logits, sent), sent, self._noise).scores

    def whole_scores(self, logits: Tensor, groups: Sequence[RowGroup], rows: IntArray) -> Tensor:
        """`scores` of some rows, such as those that were cut: float32 [len(rows), vocab].

        Args:
            logits, groups: of the whole batch.
            rows: int64, numbers in the batch, ascending.
        """
        upload = Upload()
        upload.add(rows)
        return self.scores(logits.index_select(0, upload.send(self._device)[0]), _only(groups, rows))


class _RowSettings(NamedTuple):
    """The parameters of every row of a batch, on the host.

    Attributes:
        table: float64 [4, rows]: temperature, log of min_p, top_k and top_p. A filter that is off has a value that
            changes nothing should the row be filtered beside others: a top_p of 1 would still drop the tokens whose
            probability is too small to be counted.
        is_sampled: bool [rows]: not greedy.
        keys: uint64 [rows]: of the noise.
    """

    table: FloatArray
    is_sampled: NDArray[np.bool_]
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, groups: Sequence[RowGroup], vocab_size: int) -> "_RowSettings":
        sizes = [len(group.positions) for group in groups]
        by_group = np.array([_settings(group.params, vocab_size) for group in groups]).reshape(-1, 4)
        table = np.repeat(by_group, sizes, axis=0).T
        seeds = np.repeat(np.array([group.params.seed for group in groups], dtype=np.uint64), sizes)
        positions = np.concatenate([group.positions for group in groups])
        is_sampled = np.repeat(np.array([not group.params.is_greedy for group in groups], dtype=np.bool_), sizes)
        return cls(table, is_sampled, noise_keys(seeds, positions))

    def is_led(self, vocab_size: int) -> NDArray[np.bool_]:
        """Rows whose filters keep so few tokens, surely or most likely, that only the best ones are looked at."""
        _, log_min_p, top_k, top_p = self.table
        is_led = top_k <= MAX_LEADERS
        if vocab_size > NARROW:
            is_led |= (top_k == _ALL_TOP_K) & ((log_min_p > -np.inf) | (top_p <= 1))
        return is_led


class _Tempered:
    """The step that all rows of a batch share: edits, temperature, and numbers where logits are none."""

    def __init__(self, groups: Sequence[RowGroup], settings: _RowSettings, vocab_size: int, upload: Upload) -> None:
        self._edits = LogitEdits(groups, vocab_size, upload)
        temperature = settings.table[_TEMPERATURE]
        self._place = None if (temperature == 1).all() else upload.add(temperature.astype(np.float32))

    def scores(self, logits: Tensor, sent: Sequence[Tensor]) -> Tensor:
        """A new float32 [rows, vocab]."""
        edited = self._edits.applied(logits, sent)
        if self._place is None:
            return _numbers(edited)
        return _numbers_(edited / sent[self._place][:, None])


class _LedRows:
    """Rows of which only the best tokens are looked at."""

    def __init__(
        self, rows: IntArray, settings: _RowSettings, upload: Upload, num_leaders: int, vocab_size: int
    ) -> None:
        _, log_min_p, top_k, top_p = settings.table[:, rows]
        has_top_k = top_k < _ALL_TOP_K
        is_plain = ~has_top_k & (log_min_p == -np.inf)
        width = int(top_k.max()) if has_top_k.all() else MAX_LEADERS
        self._rows = rows
        self._width = min(max(width, num_leaders), vocab_size)
        self._has_min_p = bool((log_min_p > -np.inf).any())
        self._has_top_p = bool((top_p <= 1).any())
        self._index = upload.add(rows) if len(rows) < len(settings.keys) else None
        self._log_min_p = upload.add(log_min_p.astype(np.float32))
        self._top_k = upload.add(np.minimum(top_k, vocab_size + 1).astype(np.int64))
        self._top_p = upload.add(top_p)
        self._plain = None if is_plain.all() else upload.add(np.flatnonzero(is_plain & (top_p <= 1)))
        self._keys = upload.add(settings.keys[rows].view(np.int64))

    def scored(self, scores: Tensor, sent: Sequence[Tensor], noise: TorchNoise | None) -> ScoredRows:
        if self._index is not None:
            scores = scores.index_select(0, sent[self._index])
        limits = Limits(
            log_min_p=sent[self._log_min_p],
            top_k=sent[self._top_k],
            top_p=sent[self._top_p],
            has_min_p=self._has_min_p,
            has_top_p=self._has_top_p,
            plain_nuclei=None if self._plain is None else sent[self._plain],
        )
        token_ids, leading, is_cut = keep_leaders(scores, self._width, limits)
        if noise is not None:
            leading += noise.gumbel_of(sent[self._keys], token_ids)
        return ScoredRows(self._rows, leading, token_ids, is_cut if self._width < scores.shape[1] else None)


class _WholeRows:
    """Rows of which every token is looked at."""

    def __init__(self, rows: IntArray, settings: _RowSettings, upload: Upload) -> None:
        self._rows = rows
        self._index = upload.add(rows) if len(rows) < len(settings.keys) else None
        table = settings.table[:, rows]
        _, log_min_p, top_k, top_p = table
        has_top_k = top_k < _ALL_TOP_K
        self._max_top_k = int(top_k[has_top_k].max(initial=0))
        self._has_top_k_and_top_p = bool((has_top_k & (top_p <= 1)).any())
        self._filtered = [
            (keep, upload.add(wanted), upload.add(table[:, wanted]))
            for keep, is_wanted in (
                (self._keep_min_p, log_min_p > -np.inf),
                (self._keep_top_k, has_top_k),
                (self._keep_top_p, (top_p <= 1) & ~has_top_k),
            )
            if len(wanted := np.flatnonzero(is_wanted)) > 0
        ]
        sampled = np.flatnonzero(settings.is_sampled[rows])
        keys, key_of_row = np.unique(settings.keys[rows[sampled]], return_inverse=True)
        self._num_sampled = len(sampled)
        self._noisy = upload.add(np.stack((sampled, key_of_row)))
        self._keys = upload.add(keys.view(np.int64))

    def scored(self, scores: Tensor, sent: Sequence[Tensor], noise: TorchNoise | None) -> ScoredRows:
        """The scores given are used up."""
        if self._index is not None:
            scores = scores.index_select(0, sent[self._index])
        for keep, rows_place, table_place in self._filtered:
            rows = sent[rows_place]
            part = scores.index_select(0, rows)
            keep(part, sent[table_place])
            scores.index_copy_(0, rows, part)
        if noise is not None and self._num_sampled > 0:
            rows, key_of_row = sent[self._noisy]
            scores.index_add_(0, rows, noise.gumbel(sent[self._keys]).index_select(0, key_of_row))
        return ScoredRows(self._rows, scores)

    def _keep_min_p(self, part: Tensor, table: Tensor) -> None:
        keep_min_p(part, table[_LOG_MIN_P].float())

    def _keep_top_k(self, part: Tensor, table: Tensor) -> None:
        keep_top_k(part, table[_TOP_K].long(), self._max_top_k, table[_TOP_P] if self._has_top_k_and_top_p else None)

    def _keep_top_p(self, part: Tensor, table: Tensor) -> None:
        keep_top_p(part, table[_TOP_P])


def _settings(params: SamplingParams, vocab_size: int) -> tuple[float, float, float, float]:
    """Temperature, log of min_p, top_k and top_p of one session."""
    if params.is_greedy:
        return 1.0, -np.inf, _ALL_TOP_K, _ALL_TOP_P
    log_min_p = float(np.log(params.min_p)) if params.min_p > 0 else -np.inf
    top_k = params.top_k if 0 < params.top_k < vocab_size else _ALL_TOP_K
    return params.temperature, log_min_p, top_k, params.top_p if params.top_p < 1 else _ALL_TOP_P


def _only(groups: Sequence[RowGroup], rows: IntArray) -> list[RowGroup]:
    """The groups without the rows that are not named."""
    parts = []
    first = 0
    for group in groups:
        own = rows[(rows >= first) & (rows < first + len(group.positions))] - first
        first += len(group.positions)
        if len(own) > 0:
            paths = group.paths if group.paths is None else [group.paths[row] for row in own.tolist()]
            parts.append(group._replace(positions=group.positions[own], paths=paths))
    return parts


def _numbers(logits: Tensor) -> Tensor:
    """A copy without NaN, which counts as minus infinity, and without infinity, which counts as the largest float."""
    return torch.nan_to_num(logits, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)


def _numbers_(logits: Tensor) -> Tensor:
    return logits.nan_to_num_(nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)


def _chosen(part: ScoredRows) -> Tensor:
    """The best token of each row, int64 [num_rows]."""
    if part.token_ids is None:
        return _best(part.scores)
    is_best = part.scores == part.scores.amax(dim=-1, keepdim=True)
    return part.token_ids.masked_fill(~is_best, torch.iinfo(torch.int64).max).amin(dim=-1)


def _best(scores: Tensor) -> Tensor:
    """Where each row is highest, first come first among equals; without NaN."""
    if scores.device.type == "cpu":  # numpy's argmax is vectorised, torch's is not
        return torch.from_numpy(scores.numpy().argmax(axis=-1))
    return scores.argmax(dim=-1)
