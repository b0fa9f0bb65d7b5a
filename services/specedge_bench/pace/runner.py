"""Forwards that take as long as a GPU's: the same time for one row as for a hundred."""

import time
from typing import Any

import torch

from specedge.model.batch import PackedBatch
from specedge.model.runner import ModelRunner


class PacedRunner(ModelRunner):
    """Computes, then sleeps until `forward_s` have passed since the forward began.

    Where the computation itself takes longer the forward is late; the verifier's step time shows it.
    """

    def __init__(self, model: Any, num_slots: int, *, forward_s: float) -> None:
        super().__init__(model, num_slots)
        self._forward_s = forward_s

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        started_s = time.perf_counter()
        logits = self.compute(batch)
        time.sleep(max(0.0, started_s + self._forward_s - time.perf_counter()))
        return logits

    def compute(self, batch: PackedBatch) -> torch.Tensor:
        """The logits of the wanted rows."""
        return super().forward(batch)
