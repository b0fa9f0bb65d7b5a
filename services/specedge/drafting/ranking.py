"""From draft logits to a node's best children.

Children are ranked by what the target would draw: the sampler's own scores of the draft's logits (same filters, same
temperature, same noise), since the target adds the same noise to its logits (Gumbel coupling: Daliri, Musco and Suresh
2024). Their probabilities are log_softmax(scores / tau), with tau fitted online.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import numpy as np
import torch

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import Candidates, FloatArray
from specedge.drafting.tau import TAUS, TauEstimate
from specedge.noise import noise_keys
from specedge.sampler import RowGroup, Sampler
from specedge.torch_noise import TorchNoise


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
        self._vocab_size = vocab_size
        self._width = min(width, vocab_size)
        self._sampler = Sampler(vocab_size, device)
        self._noise = None if coupled else TorchNoise(vocab_size, device)

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
        scores = self._scores(logits[:, : self._vocab_size], groups)  # [rows, vocab]
        top = scores.topk(self._width, dim=-1)
        best = top.values[:, :1]  # relative to it the exponentials can neither overflow nor all vanish
        parts = (top.indices.double(), (top.values - best).double(), _log_partitions(scores - best).double())
        return self._candidates(torch.cat(parts, dim=-1).cpu().numpy(), groups)

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """Fits the taus to tokens that were committed after expanded nodes."""
        for candidates, token in evidence:
            if candidates.token_ids:  # none where the draft's logits were not numbers
                (self.greedy_tau if candidates.is_greedy else self.sampled_tau).observe(candidates, token)

    def _scores(self, logits: torch.Tensor, groups: Sequence[RowGroup]) -> torch.Tensor:
        scores = self._sampler.scores(logits, groups)
        if self._noise is not None:
            sampled = [not group.params.is_greedy for group in groups]
            sizes = [len(group.positions) for group in groups]
            seeds = np.repeat(np.array([group.params.seed for group in groups], dtype=np.uint64), sizes)
            positions = np.concatenate([group.positions for group in groups])
            noise = self._noise.gumbel(noise_keys(seeds, positions))
            noise *= torch.from_numpy(np.repeat(sampled, sizes)).to(noise.device)[:, None]
            scores = scores - noise
        return scores

    def _candidates(self, packed: FloatArray, groups: Sequence[RowGroup]) -> list[Candidates]:
        width = self._width
        is_greedy = np.repeat([group.params.is_greedy for group in groups], [len(group.positions) for group in groups])
        scores, log_partitions = packed[:, width : 2 * width], packed[:, 2 * width :]
        tau_index = np.where(is_greedy, self.greedy_tau.index, self.sampled_tau.index)
        taus = np.array(TAUS)[tau_index][:, None]
        log_probs = scores / taus - np.take_along_axis(log_partitions, tau_index[:, None], axis=1)
        num_possible = np.isfinite(scores).sum(axis=1)
        token_ids = packed[:, :width].astype(np.int64)
        return [
            Candidates(
                token_ids=token_ids[row, :count].tolist(),
                log_probs=log_probs[row, :count].tolist(),
                scores=scores[row, :count],
                log_partitions=log_partitions[row],
                is_greedy=bool(is_greedy[row]),
            )
            for row, count in enumerate(num_possible.tolist())
        ]


def _log_partitions(scores: torch.Tensor) -> torch.Tensor:
    """logsumexp(scores / tau) for the taus of the grid, [rows, num_taus]; all of them from one exponential."""
    quarter = scores.mul(0.25).exp_()
    half = quarter * quarter
    whole = half * half
    inner = torch.linalg.vecdot
    sums = (
        inner(whole, whole),
        inner(whole, half),
        inner(whole, quarter),
        whole.sum(dim=-1),
        inner(half, quarter),
        half.sum(dim=-1),
    )
    return torch.stack(sums, dim=-1).log_()
