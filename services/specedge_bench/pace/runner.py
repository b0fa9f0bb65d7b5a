"""Forwards that take as long as another device's: as a step-time curve says for their rows."""

import time
from typing import Any

import torch

from specedge.model.batch import PackedBatch
from specedge.model.runner import ModelRunner
from specedge_bench.curves import StepCurve
from specedge_bench.pace.forward_log import Forward, OnForward


class PacedRunner(ModelRunner):
    """Computes, then sleeps until as much time has passed since the forward began as the curve gives it.

    Where the computation itself takes longer the forward is late; what is told to `on_forward` shows it.

    Args:
        model, num_slots: as for ModelRunner.
        curve: how long a forward takes.
        on_forward: told about each one.
    """

    def __init__(self, model: Any, num_slots: int, *, curve: StepCurve, on_forward: OnForward | None = None) -> None:
        super().__init__(model, num_slots)
        self._curve = curve
        self._on_forward = on_forward

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        started_s, begin_s = time.time(), time.perf_counter()
        logits = self.compute(batch)
        computed_s = time.perf_counter() - begin_s
        kv_tokens = sum(len(segment.context_slots) for segment in batch.segments)
        paced_s = self._curve.seconds(len(batch.token_ids), kv_tokens, len(batch.segments))
        time.sleep(max(0.0, begin_s + paced_s - time.perf_counter()))
        if self._on_forward is not None:
            lasted_s = time.perf_counter() - begin_s
            num_rows, num_sessions = len(batch.token_ids), len(batch.segments)
            self._on_forward(Forward(started_s, num_rows, num_sessions, computed_s, paced_s, lasted_s))
        return logits

    def compute(self, batch: PackedBatch) -> torch.Tensor:
        """The logits of the wanted rows."""
        return super().forward(batch)
