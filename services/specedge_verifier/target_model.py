"""The target model as the engine sees it: a schedule in, the target's tokens out."""

from collections.abc import Sequence

import numpy as np
import torch

from specedge.model.out_of_memory import as_memory_error
from specedge.model.runner import ModelRunner
from specedge.node_store import IntArray
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.pending_tokens import KnownTokens, PendingTokens
from specedge_verifier.scheduler import Schedule
from specedge_verifier.step_logprobs import prompt_rows
from specedge_verifier.token_logprobs import PendingLogprobs, ScoredStep


class TargetModel:
    """The target behind the engine's `StepModel` interface; want of memory is MemoryError.

    Args:
        runner: the loaded model with its KV cache.
        sampler: decides tokens from logits.
    """

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler

    @as_memory_error()
    def launch(self, schedule: Schedule) -> PendingTokens:
        """Compute the planned rows; on a GPU, begin to."""
        batch = pack(schedule)
        logits = self._runner.forward(batch)
        groups = row_groups(schedule)
        if not schedule.wants_logprobs:
            return self._choose(logits, groups)
        prompt = None
        if (scored := prompt_rows(schedule)) is not None:
            is_scored = np.isin(batch.logits_rows, scored.rows)
            prompt = PendingLogprobs(logits, is_scored.nonzero()[0], scored.token_ids, scored.num_top)
            logits = logits.index_select(0, torch.from_numpy((~is_scored).nonzero()[0]).to(logits.device))
        return ScoredStep(self._choose(logits, groups), logits, prompt)

    def _choose(self, logits: torch.Tensor, groups: Sequence[RowGroup]) -> PendingTokens:
        if not groups:
            return KnownTokens(np.empty(0, dtype=np.int64))
        if self._runner.device.type != "cuda":
            return UnsampledTokens(self._sampler, logits, groups)
        return self._sampler.launch(logits, groups)

    @as_memory_error()
    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Copy keys and values between slots in all layers."""
        self._runner.copy_kv(np.asarray(source_slots, dtype=np.int64), np.asarray(target_slots, dtype=np.int64))


class UnsampledTokens:
    """Implements `PendingTokens` on the CPU: the rows are computed, sampling waits until it is asked for."""

    is_ready = True

    def __init__(self, sampler: Sampler, logits: torch.Tensor, groups: Sequence[RowGroup]) -> None:
        self._sampler = sampler
        self.logits = logits
        self._groups = groups

    @as_memory_error()
    def tokens(self) -> IntArray:
        """Samples."""
        return self._sampler.choose(self.logits, self._groups)
