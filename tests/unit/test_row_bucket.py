"""Recorded forwards equal unrecorded ones, keep to their memory, and are given up where they cannot be trusted."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lean_models import FAMILIES, VOCAB_SIZE, load_lean, save_model
from packed_batches import NUM_SLOTS, mixed_batches
from recordable import RecordableSdpa

from specedge.model.attention.interface import RecordableBackend
from specedge.model.attention.sdpa import SdpaBackend
from specedge.model.batch import PackedBatch, Segment, chain
from specedge.model.lean import row_bucket
from specedge.model.lean.row_bucket import FixedForward, Replay, record_forwards
from specedge.model.lean.runner import LeanRunner


def outputs(runner: LeanRunner, batches: list[PackedBatch]) -> torch.Tensor:
    return torch.cat([runner.forward(batch) for batch in batches])


def recorded(folder: Path, row_buckets: tuple[int, ...], num_slots: int = NUM_SLOTS) -> LeanRunner:
    return LeanRunner(*load_lean(folder), num_slots, backend=RecordableSdpa(), row_buckets=row_buckets)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(FAMILIES["qwen3"], tmp_path)
    return tmp_path


def test_what_can_be_recorded_says_so() -> None:
    assert isinstance(RecordableSdpa(), RecordableBackend)
    assert not isinstance(SdpaBackend(), RecordableBackend)


@pytest.mark.parametrize("family", ["llama-tied", "qwen2-sliding", "qwen3", "mistral-sliding"])
def test_padding_to_a_bucket_changes_no_row(family: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    batches = mixed_batches(VOCAB_SIZE)
    plain = LeanRunner(*load_lean(tmp_path), NUM_SLOTS)
    bucketed = recorded(tmp_path, (4, 16))  # 18 rows run without a bucket
    taken = [bucketed._buckets.run(batch) is not None for batch in batches]  # type: ignore[union-attr]
    assert taken == [True, True, False, True]
    torch.testing.assert_close(outputs(bucketed, batches), outputs(plain, batches), atol=1e-5, rtol=1e-5)
    filled = np.unique(np.concatenate([batch.slots for batch in batches]))
    for layer in range(3):
        for mine, others in zip(bucketed.cache.layer(layer), plain.cache.layer(layer), strict=True):
            torch.testing.assert_close(mine[filled], others[filled], atol=1e-5, rtol=1e-5)


def test_padding_writes_to_a_slot_that_no_session_has(folder: Path) -> None:
    runner = recorded(folder, (16,))
    assert runner.num_slots == NUM_SLOTS
    before = [layer[0].clone() for layer in map(runner.cache.layer, range(3))]
    slots = np.arange(40, 45)
    runner.forward(PackedBatch(slots, np.arange(5), slots, (Segment(5, slots),), np.array([4])))
    for layer, old in enumerate(before):
        changed = (runner.cache.layer(layer)[0] != old).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(range(40, 45)) <= set(changed) <= {*range(40, 45), NUM_SLOTS}
        assert not old.isnan()[:NUM_SLOTS].any() and not runner.cache.layer(layer)[0][:NUM_SLOTS].isnan().any()


def test_rows_in_one_bucket_do_not_depend_on_what_ran_in_it_before(folder: Path) -> None:
    runner = recorded(folder, (8,))
    first = runner.forward(chain(3))
    runner.forward(PackedBatch(np.full(8, 50), np.arange(8), np.arange(20, 28), chain(8).segments, np.arange(8)))
    assert torch.equal(runner.forward(chain(3)), first)


def test_the_smallest_bucket_that_holds_the_rows_is_taken(folder: Path) -> None:
    buckets = recorded(folder, (8, 2, 4))._buckets
    assert buckets is not None and buckets.row_counts == (2, 4, 8)
    for num_rows, expected in ((1, 2), (2, 2), (3, 4), (5, 8), (8, 8), (9, None)):
        assert buckets.bucket_rows(num_rows) == expected


def test_no_bucket_is_larger_than_the_cache(folder: Path) -> None:
    assert recorded(folder, (4, 64), num_slots=32).row_buckets == (4,)


def test_a_plan_beyond_the_room_runs_without_a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bucket, "_MAX_CONTEXT", 16)
    batches = mixed_batches(VOCAB_SIZE)
    runner, plain = recorded(folder, (16,)), LeanRunner(*load_lean(folder), NUM_SLOTS)
    torch.testing.assert_close(outputs(runner, batches), outputs(plain, batches), atol=1e-5, rtol=1e-5)
    assert runner._buckets is not None
    assert [runner._buckets.run(batch) is not None for batch in batches] == [True, True, False, False]


def test_no_row_wanted_still_stores_keys_and_values(folder: Path) -> None:
    rows = np.arange(5)
    runner, plain = recorded(folder, (8,)), LeanRunner(*load_lean(folder), NUM_SLOTS)
    batch = PackedBatch(rows, rows, rows, (Segment(5, rows),), rows[:0])
    assert runner.forward(batch).shape == plain.forward(batch).shape == (0, VOCAB_SIZE)
    torch.testing.assert_close(runner.cache.layer(2)[0][:5], plain.cache.layer(2)[0][:5])


def fixed_forward(folder: Path, max_rows: int) -> FixedForward:
    runner = LeanRunner(*load_lean(folder), NUM_SLOTS)
    return FixedForward(runner.model, runner.cache, RecordableSdpa(), max_rows)


def test_buckets_beyond_the_memory_allowed_are_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = iter([1000, 900, 650, 640])  # before, after 1 row, after 2 rows, at the end
    monkeypatch.setattr(row_bucket, "unheld_bytes", lambda device: next(free))
    with caplog.at_level(logging.INFO):
        assert list(record_forwards(fixed_forward(folder, 4), (1, 2, 4), max_bytes=300)) == [1]
    assert "graphs of 2 rows and more" in caplog.text and "recorded row buckets 1:" in caplog.text


def test_what_cannot_be_recorded_runs_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = row_bucket.record

    def record_up_to_two(forward: FixedForward, num_rows: int, *pool: Any) -> Replay:
        if num_rows > 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(forward, num_rows, *pool)

    monkeypatch.setattr(row_bucket, "record", record_up_to_two)
    runner, plain = recorded(folder, (1, 2, 4, 8)), LeanRunner(*load_lean(folder), NUM_SLOTS)
    assert runner.row_buckets == (1, 2)
    assert "4 rows and more run without graphs" in caplog.text and "not permitted" in caplog.text
    batches = mixed_batches(VOCAB_SIZE)
    torch.testing.assert_close(outputs(runner, batches), outputs(plain, batches), atol=1e-5, rtol=1e-5)


def test_a_recording_that_does_not_read_its_inputs_anew_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a graph would be that holds the batch it was recorded with, or one that is never written."""
    record = row_bucket.record

    def stale(forward: FixedForward, num_rows: int, *pool: Any) -> Replay:
        held = record(forward, num_rows, *pool)().clone()
        return lambda: held

    monkeypatch.setattr(row_bucket, "record", stale)
    assert recorded(folder, (2, 4)).row_buckets == ()
    assert "could not be recorded: a replay differs by" in caplog.text
    caplog.clear()
    monkeypatch.setattr(row_bucket, "record", lambda *_: lambda: torch.full((4, 32), float("nan")))
    assert recorded(folder, (4,)).row_buckets == ()
    assert "a replay differs by nan" in caplog.text
