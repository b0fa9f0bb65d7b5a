"""Forwards that take as long as another device's: as a step-time curve says for their rows."""

import time
from typing import Any

import torch

from specedge.model.batch import IntArray, PackedBatch
from specedge.model.engines import make_runner
from specedge_bench.curves import StepCurve
from specedge_bench.pace.forward_log import Forward, OnForward


class PacedRunner:
    """Computes, then sleeps until as much time has passed since the forward began as the curve gives it.

    Where the computation itself takes longer the forward is late; what is told to `on_forward` shows it.

    Args:
        model, num_slots: as for `make_runner`.
        curve: how long a forward takes.
        on_forward: told about each one.
    """

    def __init__(self, model: Any, num_slots: int, *, curve: StepCurve, on_forward: OnForward | None = None) -> None:
        self._runner = make_runner(model, num_slots)
        self.device, self.vocab_size = self._runner.device, self._runner.vocab_size
        self.num_slots, self.cache = self._runner.num_slots, self._runner.cache
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
        return self._runner.forward(batch)

    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """As for any runner; takes no time of the pace."""
        self._runner.copy_kv(source_slots, target_slots)
