"""Before a verifier is ready its steps have run: on CUDA the largest first, whose memory may be missing."""

from typing import Any

import pytest
import torch

from specedge.errors import ModelLoadError
from specedge.model.batch import PackedBatch
from specedge_verifier.warm_up import measure_step_time


class Runner:
    """Notes (rows, wanted rows) of each forward."""

    num_slots = 1000

    def __init__(self, device: str, max_rows: int = 10_000) -> None:
        self.device = torch.device(device)
        self.seen: list[tuple[int, int]] = []
        self._max_rows = max_rows

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        if len(batch.token_ids) > self._max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append((len(batch.token_ids), len(batch.logits_rows)))
        return torch.zeros(len(batch.logits_rows), 5)


class Sampler:
    def choose(self, logits: torch.Tensor, groups: Any) -> None:
        assert len(logits) == sum(len(group.positions) for group in groups)


def measured(runner: Runner, max_rows: int) -> list[int]:
    return [rows for rows, _ in measure_step_time(runner, Sampler(), max_rows)]  # type: ignore[arg-type]


def test_sizes_up_to_the_largest_step_are_timed() -> None:
    runner = Runner("cpu")
    assert measured(runner, 100) == [1, 8, 32]
    assert runner.seen == [(rows, rows) for rows in (1, 8, 32) for _ in range(3)]


def test_on_cuda_the_largest_step_runs_before() -> None:
    runner = Runner("cuda")
    assert measured(runner, 512) == [1, 8, 32, 128]
    assert runner.seen[0] == (512, 128)
    runner = Runner("cuda")
    measured(runner, 4096)
    assert runner.seen[0] == (1000, 128), "the cache holds no more"


def test_no_memory_for_the_largest_step_is_refused_by_its_settings() -> None:
    with pytest.raises(
        ModelLoadError, match="for a step of 512 rows; lower max_num_batched_tokens, kv_memory_fraction"
    ):
        measured(Runner("cuda", max_rows=300), 512)
