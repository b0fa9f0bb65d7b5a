"""The one place where logits become tokens: the target's own on the verifier, and coupled candidates on the edge.

A row's scores depend on its logits, its parameters, its absolute position and its path, and on nothing else: the same
row gives the same token in any batch. :mod:`specedge.reference_sampler` states what is computed.

What a batch needs goes to the device in one copy, and one copy brings its tokens back. A led row (see
:mod:`specedge.row_scoring`) whose filters may keep more tokens than were looked at says so beside its token, and is
done again over the whole vocabulary, in a second trip that is rare.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from specedge.device_copy import Fetching, Upload, fetch
from specedge.model.out_of_memory import as_memory_error
from specedge.row_group import RowGroup as RowGroup
from specedge.row_scoring import (
    BatchRows,
    IntArray,
    LedRows,
    ScoredRows,
    Tempered,
    WholeRows,
    only_numbers,
    row_settings,
)
from specedge.torch_noise import TorchNoise


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
        """The token of each row, waited for; see `launch`."""
        return self.launch(logits, groups).tokens()

    def launch(self, logits: Tensor, groups: Sequence[RowGroup]) -> "ChosenTokens":
        """The token of each row: the highest score, the lowest id among equals, token 0 when all are filtered.

        Args:
            logits: float32 [rows, vocab]; left unchanged, also by the caller until the tokens are there.
            groups: the rows in order, as many in all as logits has.
        """
        parts = self.score(logits, groups)
        results = [_chosen(part) for part in parts]
        results += [part.is_cut.long() for part in parts if part.is_cut is not None]
        fetching = Fetching(torch.cat(results) if len(results) > 1 else results[0])
        if len(results) == 1:
            return ChosenTokens(fetching, lambda fetched: fetched)
        return ChosenTokens(fetching, lambda fetched: self._completed(fetched, parts, logits, groups))

    def _completed(
        self, fetched: IntArray, parts: Sequence[ScoredRows], logits: Tensor, groups: Sequence[RowGroup]
    ) -> IntArray:
        """The tokens in the order of the rows; rows that were cut are done again."""
        rows = np.concatenate([part.rows for part in parts])
        chosen = np.empty_like(rows)
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
        if all(group.params.is_greedy and not group.edits_logits for group in groups):
            return [ScoredRows(np.arange(len(logits)), only_numbers(logits))]
        settings = [row_settings(group.params, self._vocab_size) for group in groups]
        is_led = [setting.is_led(self._vocab_size) for setting in settings]
        batch = BatchRows.of(groups, settings)
        assert len(batch.keys) == len(logits), "every row belongs to exactly one group"
        upload = Upload()
        tempered = Tempered(groups, batch, self._vocab_size, upload)
        plans: list[LedRows | WholeRows] = []
        if any(is_led):
            plans.append(LedRows(batch.only(is_led), upload, num_leaders, self._vocab_size))
        if not all(is_led):
            plans.append(WholeRows(batch.only([not led for led in is_led]), upload))
        sent = upload.send(self._device)
        scores = tempered.scores(logits, sent)
        return [plan.scored(scores, sent, self._noise) for plan in plans]

    def scores(self, logits: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """The scores of all rows over the whole vocabulary, float32 [rows, vocab].

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.
        """
        batch = BatchRows.of(groups, [row_settings(group.params, self._vocab_size) for group in groups])
        upload = Upload()
        tempered = Tempered(groups, batch, self._vocab_size, upload)
        plan = WholeRows(batch, upload)
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


class ChosenTokens:
    """Tokens on their way from the device.

    Args:
        fetching: their copy.
        complete: what the host has still to do to them.
    """

    def __init__(self, fetching: Fetching, complete: Callable[[IntArray], IntArray]) -> None:
        self._fetching = fetching
        self._complete = complete

    @property
    def is_ready(self) -> bool:
        """Whether they have arrived."""
        return self._fetching.is_ready

    @as_memory_error()
    def tokens(self) -> IntArray:
        """int64 [rows]; waits for them. Want of memory is MemoryError."""
        return self._complete(self._fetching.result().astype(np.int64, copy=False))


def _only(groups: Sequence[RowGroup], rows: IntArray) -> list[RowGroup]:
    """The groups without the rows that are not named."""
    parts = []
    first = 0
    for group in groups:
        own = rows[(rows >= first) & (rows < first + len(group.positions))] - first
        first += len(group.positions)
        if len(own) > 0:
            paths = group.paths if group.paths is None else [group.paths[row] for row in own.tolist()]
            allowed = None if group.allowed is None else group.allowed[own]
            parts.append(group._replace(positions=group.positions[own], paths=paths, allowed=allowed))
    return parts


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
