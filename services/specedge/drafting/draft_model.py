"""The draft model as drafting sees it: a step in, the best children of its rows out."""

from collections.abc import Iterable
from typing import Protocol

import torch

from specedge.drafting.draft_step import DraftStep
from specedge.drafting.growth import Candidates
from specedge.drafting.ranking import ChildRanking
from specedge.model.batch import PackedBatch
from specedge.model.out_of_memory import as_memory_error


class DraftRunner(Protocol):
    """The loaded draft model: `specedge.model.runner.ModelRunner`, or a fake."""

    @property
    def num_slots(self) -> int:
        """KV slots, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def device(self) -> torch.device:
        """Where the logits are."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of the wanted rows, float32 [num_wanted, vocab_size]."""


class RankedDraftModel:
    """A runner and the ranking of its logits; implements `specedge.drafting.core.DraftModel`."""

    def __init__(self, runner: DraftRunner, ranking: ChildRanking) -> None:
        self.ranking = ranking
        self._runner = runner

    @as_memory_error()
    def children(self, step: DraftStep) -> list[Candidates]:
        """One forward, children ranked on the device. Want of memory is MemoryError."""
        logits = self._runner.forward(step.batch())
        groups = step.groups()
        return self.ranking.rank(logits, groups) if groups else []

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """Fits the ranking's tau."""
        self.ranking.observe(evidence)
