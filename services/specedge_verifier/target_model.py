"""The target model as the engine sees it: a schedule in, the target's tokens out."""

from collections.abc import Sequence

import numpy as np
import torch

from specedge.model.runner import ModelRunner
from specedge.node_store import IntArray
from specedge.sampler import Sampler
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.scheduler import Schedule


class TargetModel:
    """The target behind the engine's `StepModel` interface.

    Args:
        runner: the loaded model with its KV cache.
        sampler: decides tokens from logits.
    """

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def forward(self, schedule: Schedule) -> torch.Tensor:
        """Logits of all sampling rows, float32 [num_wanted, vocab]."""
        return self._runner.forward(pack(schedule))

    def sample(self, schedule: Schedule, logits: torch.Tensor) -> IntArray:
        """The target's token after each sampling row."""
        groups = row_groups(schedule)
        return self._sampler.choose(logits, groups) if groups else np.empty(0, dtype=np.int64)

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Copy keys and values between slots in all layers."""
        self._runner.copy_kv(np.asarray(source_slots, dtype=np.int64), np.asarray(target_slots, dtype=np.int64))
