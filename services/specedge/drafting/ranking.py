"""From draft logits to a node's best children.

Children are ranked by what the target would draw: the sampler's own scores of the draft's logits (same filters, same
temperature, same noise), since the target adds the same noise to its logits (Gumbel coupling: Daliri, Musco and Suresh
2024). Their probabilities are log_softmax(scores / tau), with tau fitted online.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import numpy as np
import torch

from specedge.device_copy import fetch
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import Candidates, FloatArray
from specedge.drafting.tau import TAUS, TauEstimate
from specedge.filters import block_bests, has_blocks, nominees
from specedge.row_chunks import row_chunks
from specedge.row_group import RowGroup
from specedge.row_scoring import ScoredRows
from specedge.sampler import Sampler

_PRODUCTS = [8, 5, 2, 4, 1, 0]
"""Of the products of (q, q ** 2, q ** 4) with themselves, row by row, those that TAUS need: see `_log_partitions`."""

_TAUS = np.array(TAUS)

_MAX_VOCAB = 2**24
"""Token ids below this are exact as float32, in which they come from the device beside their scores."""

_FEW = 2**16
"""Scores among which the best are found directly at less cost than by blocks."""


class _Logits(Protocol):
    """Where logits come from, and how wide they are."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


class ChildRanking:
    """Ranks the children of a step's rows on the device, with one copy to the host.

    Args:
        vocab_size: token ids from here on are never proposed.
        device: where the logits are.
        width: children per node.
        coupled: rank with the target's noise. Without, by draft probability alone, as uncoupled systems do.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str,
        *,
        width: int,
        coupled: bool = True,
    ) -> None:
        self.greedy_tau = TauEstimate()
        self.sampled_tau = TauEstimate()
        assert vocab_size <= _MAX_VOCAB
        self._vocab_size = vocab_size
        self._width = min(width, vocab_size)
        self._sampler = Sampler(vocab_size, device, has_noise=coupled)
        self._products = torch.tensor(_PRODUCTS, device=device)

    @classmethod
    def of(
        cls, runner: _Logits, settings: DraftingSettings, *, vocab_size: int | None = None, coupled: bool = True
    ) -> Self:
        """For a draft model under these settings; `vocab_size` is the target's where that is the smaller one."""
        width = max(settings.growth.max_branch_width, settings.proactive.max_branch_width)
        return cls(min(vocab_size or runner.vocab_size, runner.vocab_size), runner.device, width=width, coupled=coupled)

    @torch.inference_mode()
    def rank(self, logits: torch.Tensor, groups: Sequence[RowGroup]) -> list[Candidates]:
        """The best children of each row, best first; fewer than `width` where filters leave fewer tokens.

        Args:
            logits: float32 [rows, at least vocab_size] of the draft model.
            groups: the sessions' rows in order.
        """
        logits = logits[:, : self._vocab_size]
        parts = self._sampler.score(logits, groups, self._width)
        tables = [self._ranked(part) for part in parts]
        table = fetch(torch.cat(tables) if len(tables) > 1 else tables[0])  # [rows, 2 * width + num_taus + 1]
        if len(parts) > 1:
            table[np.concatenate([part.rows for part in parts])] = table.copy()
        cut = np.flatnonzero(table[:, -1])
        if len(cut) > 0:
            table[cut] = fetch(self._ranked(ScoredRows(cut, self._sampler.whole_scores(logits, groups, cut))))
        return self._candidates(table[:, :-1].astype(np.float64), groups)

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """Fits the taus to tokens that were committed after expanded nodes."""
        for candidates, token in evidence:
            if candidates.token_ids:  # none where the draft's logits were not numbers
                (self.greedy_tau if candidates.is_greedy else self.sampled_tau).observe(candidates, token)

    def _ranked(self, part: ScoredRows) -> torch.Tensor:
        """Of each row the best tokens, their scores, the log-partitions, and whether it was cut: float32."""
        values, token_ids = _best(part.scores, self._width)
        if part.token_ids is not None:
            token_ids = part.token_ids.gather(1, token_ids)
        best = values[:, :1]  # relative to it the exponentials can neither overflow nor all vanish
        is_cut = torch.zeros_like(token_ids[:, :1]) if part.is_cut is None else part.is_cut[:, None]
        return torch.cat((values - best, token_ids, self._log_partitions(part.scores, best), is_cut), dim=-1)

    def _log_partitions(self, scores: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """logsumexp((scores - best) / tau) for the taus of the grid, [rows, num_taus]; from one exponential.

        With q, the exponential of a quarter of the score, q ** 8 .. q ** 2 are products of q, q ** 2 and q ** 4.
        """
        products = torch.empty(len(scores), 3, 3, device=scores.device)
        for rows in row_chunks(len(scores), scores.shape[1], scores.device):
            part = scores[rows]
            powers = torch.empty(len(part), 3, scores.shape[1], device=scores.device)
            quarter, half, whole = powers.unbind(1)
            torch.sub(part, best[rows], out=quarter).mul_(0.25).exp_()
            torch.mul(quarter, quarter, out=half)
            torch.mul(half, half, out=whole)
            torch.bmm(powers, powers.mT, out=products[rows])
        return products.flatten(1).index_select(1, self._products).log_()

    def _candidates(self, table: FloatArray, groups: Sequence[RowGroup]) -> list[Candidates]:
        width = self._width
        sizes = [len(group.positions) for group in groups]
        is_greedy = np.repeat([group.params.is_greedy for group in groups], sizes)
        scores, log_partitions = table[:, :width], table[:, 2 * width :]
        tau_index = np.where(is_greedy, self.greedy_tau.index, self.sampled_tau.index)
        log_partition = log_partitions[np.arange(len(table)), tau_index]
        log_probs = scores / _TAUS[tau_index][:, None] - log_partition[:, None]
        num_possible = np.isfinite(scores).sum(axis=1).tolist()
        columns = (
            table[:, width : 2 * width].astype(np.int64).tolist(),
            log_probs.tolist(),
            scores,
            log_partitions,
            is_greedy,
        )
        return [
            Candidates(ids[:count], own[:count], row_scores[:count], partitions, bool(greedy))
            for count, ids, own, row_scores, partitions, greedy in zip(num_possible, *columns, strict=True)
        ]


def _best(scores: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scores of each row and where they are, best first: [rows, width] each."""
    if scores.numel() < _FEW or not has_blocks(scores, width):
        top = scores.topk(width, dim=-1)
        return top.values, top.indices
    nominated, places = nominees(scores, block_bests(scores).topk(width, dim=-1).indices)
    top = nominated.topk(width, dim=-1)
    return top.values, places.gather(1, top.indices)
