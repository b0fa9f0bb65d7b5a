"""The one place where logits become tokens: the target's own on the verifier, and coupled candidates on the edge.

A row's scores depend on its logits, its parameters, its absolute position and its path, and on nothing else: the same
row gives the same token in any batch. :mod:`specedge.reference_sampler` states what is computed.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specedge.filters import keep_min_p, keep_top_k, keep_top_p
from specedge.logit_edits import edited_logits
from specedge.noise import noise_keys
from specedge.reference_sampler import LARGEST
from specedge.row_group import RowGroup as RowGroup
from specedge.sampling import SamplingParams
from specedge.torch_noise import TorchNoise

_TEMPERATURE, _LOG_MIN_P, _TOP_K, _TOP_P = range(4)
_ALL_TOP_P: Final = 2.0


class Sampler:
    """Turns batches of logits into scores and tokens.

    Args:
        vocab_size: the width of the logits.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self._noise = TorchNoise(vocab_size, device)

    def choose(self, logits: Tensor, groups: Sequence[RowGroup]) -> NDArray[np.int64]:
        """`choose_on_device`, and wait for it."""
        chosen: NDArray[np.int64] = self.choose_on_device(logits, groups).cpu().numpy()
        return chosen

    def choose_on_device(self, logits: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """The token of each row: the highest score, the lowest id among equals, token 0 when all are filtered.

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.

        Returns:
            int64 [rows], where the logits are.
        """
        if all(group.params.is_greedy and not group.params.edits_logits for group in groups):
            scores = torch.nan_to_num(logits, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
        else:
            scores = self.scores(logits, groups)
        return scores.argmax(dim=-1)

    def scores(self, logits: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """Filtered logits / temperature + noise, float32 [rows, vocab]; for greedy rows the edited logits.

        Args:
            logits: float32 [rows, vocab]; left unchanged.
            groups: the rows in order, as many in all as logits has.
        """
        rows = _Rows(groups, logits)
        scores = edited_logits(logits, groups) / rows.table[_TEMPERATURE].float()[:, None]
        scores.nan_to_num_(nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
        rows.filter(scores)
        if len(rows.sampled) > 0:
            keys, key_of_row = np.unique(rows.noise_keys, return_inverse=True)
            index = torch.from_numpy(np.stack((rows.sampled, key_of_row))).to(logits.device)
            scores.index_add_(0, index[0], self._noise.gumbel(keys).index_select(0, index[1]))
        return scores


class _Rows:
    """The parameters of every row of a batch: decided on the host, moved to the device in one copy."""

    def __init__(self, groups: Sequence[RowGroup], logits: Tensor) -> None:
        sizes = [len(group.positions) for group in groups]
        assert sum(sizes) == len(logits), "every row belongs to exactly one group"
        settings = np.array([_settings(group.params, logits.shape[-1]) for group in groups]).reshape(-1, 4)
        self._host = np.repeat(settings, sizes, axis=0).T  # [4, rows]
        self.table = torch.from_numpy(self._host).to(logits.device)
        self.sampled = np.flatnonzero(np.repeat([not group.params.is_greedy for group in groups], sizes))
        seeds = np.repeat(np.array([group.params.seed for group in groups], dtype=np.uint64), sizes)
        positions = np.concatenate([group.positions for group in groups])
        self.noise_keys = noise_keys(seeds[self.sampled], positions[self.sampled])

    def filter(self, scores: Tensor) -> None:
        """Apply each filter to the rows that ask for it."""
        top_k, top_p = self._host[_TOP_K], self._host[_TOP_P]
        is_top_k = top_k > 0
        max_top_k = int(top_k.max(initial=0))
        has_both = bool((is_top_k & (top_p < 1)).any())

        def min_p_filter(part: Tensor, table: Tensor) -> None:
            keep_min_p(part, table[_LOG_MIN_P].float())

        def top_k_filter(part: Tensor, table: Tensor) -> None:
            keep_top_k(part, table[_TOP_K].long(), max_top_k, table[_TOP_P] if has_both else None)

        def top_p_filter(part: Tensor, table: Tensor) -> None:
            keep_top_p(part, table[_TOP_P])

        self._apply(min_p_filter, scores, self._host[_LOG_MIN_P] > -np.inf)
        self._apply(top_k_filter, scores, is_top_k)
        self._apply(top_p_filter, scores, (top_p < 1) & ~is_top_k)

    def _apply(self, keep: Callable[[Tensor, Tensor], None], scores: Tensor, is_wanted: NDArray[np.bool_]) -> None:
        if not is_wanted.any():
            return
        if is_wanted.all():
            keep(scores, self.table)
        else:
            rows = torch.from_numpy(np.flatnonzero(is_wanted)).to(scores.device)
            part = scores.index_select(0, rows)
            keep(part, self.table.index_select(1, rows))
            scores.index_copy_(0, rows, part)


def _settings(params: SamplingParams, vocab_size: int) -> tuple[float, float, float, float]:
    """Temperature, log of min_p, top_k and top_p of one session.

    A filter that is off gets a value that changes nothing should the row be filtered beside others: a top_p of 1 would
    still drop the tokens whose probability is too small to be counted, so it becomes _ALL_TOP_P.
    """
    if params.is_greedy:
        return 1.0, -np.inf, 0.0, _ALL_TOP_P
    log_min_p = float(np.log(params.min_p)) if params.min_p > 0 else -np.inf
    top_k = params.top_k if params.top_k < vocab_size else 0.0
    return params.temperature, log_min_p, top_k, params.top_p if params.top_p < 1 else _ALL_TOP_P
