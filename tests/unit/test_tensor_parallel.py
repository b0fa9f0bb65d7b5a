"""A model divided among two ranks computes what it computes alone; here rank 0 is this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from unittest.mock import create_autospec

import numpy as np
import pytest
import rank_one
import torch
from lean_models import FAMILIES, VOCAB_SIZE, save_model
from packed_batches import NUM_SLOTS, mixed_batches
from processes import HOST, quiet_port
from pydantic import ValidationError

from specedge.errors import EngineDead, ModelLoadError, SettingsError
from specedge.model.batch import PackedBatch, Segment
from specedge.model.embedded import resolve_model
from specedge.model.engines import load_for, make_runner
from specedge.model.lean.shard import shard_of
from specedge.model.ranks import RankPlace, Ranks, rank_device, refuse_several
from specedge.model.runner import ModelRunner
from specedge_verifier.mirrored import MirroredRunner, stop_followers
from specedge_verifier.rank_pulse import RankPulse
from specedge_verifier.settings import VerifierSettings

TIMEOUT_S = 60.0


@contextmanager
def second_rank(engine: str, *folders: Path) -> Iterator[tuple[Ranks, subprocess.Popen[bytes]]]:
    """This process as rank 0 of two, and the process that follows it through the models of `folders`."""
    environment = {"MASTER_ADDR": HOST, "MASTER_PORT": str(quiet_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = [engine, str(NUM_SLOTS), *map(str, folders)]
    other = subprocess.Popen(
        [sys.executable, rank_one.__file__, *arguments], env=os.environ | environment | {"RANK": "1", "LOCAL_RANK": "1"}
    )
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in (environment | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                patched.setenv(name, value)
            ranks = Ranks(RankPlace.of(os.environ, 2), torch.device("cpu"))
        yield ranks, other
    finally:
        other.kill()
        other.wait(TIMEOUT_S)


def logits_of(runner: ModelRunner) -> torch.Tensor:
    """Of batches with prompts, trees and tails, then of a row that reads keys which were moved."""
    found = [runner.forward(batch) for batch in mixed_batches(VOCAB_SIZE)]
    rows = np.arange(6, dtype=np.int64)
    scattered = np.array([90, 70, 71, 72, 100], dtype=np.int64)
    runner.forward(PackedBatch(rows[:5] + 7, rows[:5], scattered, (Segment(5, scattered),), rows[:0]))
    runner.copy_kv(scattered, rows[:5] + 20)
    context = rows + 20
    found.append(runner.forward(PackedBatch(rows[5:], rows[5:], context[5:], (Segment(1, context),), rows[:1])))
    return torch.cat(found)


def test_two_ranks_of_the_lean_engine(tmp_path: Path, one_thread: None) -> None:
    families = ("llama", "qwen2-sliding", "qwen3-sliding", "mistral-sliding")
    folders = [tmp_path / family for family in families]
    for family, folder in zip(families, folders, strict=True):
        save_model(FAMILIES[family], folder)
    folders.append(Path(resolve_model("demo", "target")))
    with second_rank("lean", *folders) as (ranks, other):
        for folder in folders:
            alone = make_runner(load_for("lean", str(folder), "cpu"), NUM_SLOTS)
            part = make_runner(load_for("lean", str(folder), "cpu", ranks=ranks), NUM_SLOTS)
            is_embedded = folder is folders[-1]
            # The embedded target has one key/value head, which both ranks hold; the others have two.
            assert part.cache.num_bytes * (1 if is_embedded else 2) == alone.cache.num_bytes
            expected = logits_of(alone)
            torch.testing.assert_close(logits_of(MirroredRunner(part, ranks)), expected, atol=1e-4, rtol=1e-5)
            assert expected.std() > 0.5
            stop_followers(ranks)
        pulse = RankPulse(TIMEOUT_S, lambda reason: pytest.fail(reason))
        pulse.stop()
        ranks.leave()
        assert other.wait(TIMEOUT_S) == 0


def test_a_frozen_rank_is_noticed() -> None:
    with second_rank("lean") as (_, other):
        reasons: Queue[str] = Queue()
        RankPulse(1.0, reasons.put)
        other.send_signal(signal.SIGSTOP)
        assert "Timed out" in reasons.get(timeout=TIMEOUT_S)


def test_two_ranks_of_transformers(tmp_path: Path, one_thread: None) -> None:
    """By its own plan, which divides the vocabulary too."""
    pytest.importorskip("accelerate")
    save_model(FAMILIES["qwen3-sliding"], tmp_path)
    with second_rank("transformers", tmp_path) as (ranks, other):
        alone = make_runner(load_for("transformers", str(tmp_path), "cpu"), NUM_SLOTS)
        part = make_runner(load_for("transformers", str(tmp_path), "cpu", ranks=ranks), NUM_SLOTS)
        assert 2 * part.cache.num_bytes == alone.cache.num_bytes
        torch.testing.assert_close(logits_of(MirroredRunner(part, ranks)), logits_of(alone), atol=1e-4, rtol=1e-5)
        stop_followers(ranks)
        with pytest.raises(ModelLoadError, match="tensor_parallel_size 2 does not divide num_attention_heads 3"):
            load_for("transformers", resolve_model("demo", "target"), "cpu", ranks=ranks)
        pulse = RankPulse(TIMEOUT_S, lambda reason: pytest.fail(reason))
        pulse.stop()
        ranks.leave()
        assert other.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("error", [MemoryError("the device is full"), RuntimeError("a rank is gone")])
def test_a_forward_that_one_rank_lacks_is_the_end(error: Exception) -> None:
    runner = create_autospec(ModelRunner, instance=True, device=None, vocab_size=1, num_slots=1, cache=None)
    runner.forward.side_effect = error
    rows = np.zeros(1, dtype=np.int64)
    batch = PackedBatch(rows, rows, rows, (Segment(1, rows),), rows)
    with pytest.raises(EngineDead, match=str(error)):
        MirroredRunner(runner, create_autospec(Ranks, instance=True, size=2)).forward(batch)


@pytest.mark.parametrize("size", [2, 3])
def test_parts_make_the_whole(size: int) -> None:
    """Of the embedded target, whose one key/value head all ranks hold."""
    model = load_for("lean", resolve_model("demo", "target"), "cpu")
    spec = model.spec  # type: ignore[union-attr]
    shards = [shard_of(spec, rank, size) for rank in range(size)]
    for name, count in (("queries", spec.num_heads * spec.head_dim), ("inner", spec.intermediate_size)):
        parts = [getattr(shard, name) for shard in shards]
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == count
    assert all(shard.keys == slice(0, spec.head_dim) for shard in shards)
    assert [shard.spec.num_heads for shard in shards] == {2: [1, 2], 3: [1, 1, 1]}[size]


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("llama", 3, "tensor_parallel_size 3 neither divides num_key_value_heads 2 nor is a multiple of it"),
        ("llama", 8, "tensor_parallel_size 8 is above num_attention_heads 4"),
    ],
)
def test_a_size_that_does_not_divide_the_heads(family: str, size: int, message: str, tmp_path: Path) -> None:
    save_model(FAMILIES[family], tmp_path)
    spec = load_for("lean", str(tmp_path), "cpu").spec  # type: ignore[union-attr]
    with pytest.raises(ModelLoadError, match=message):
        shard_of(spec, 0, size)


def test_who_is_who_comes_from_torchrun() -> None:
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    place = RankPlace.of(environment, 4)
    assert place == RankPlace(rank=3, local_rank=1, size=4, num_local=2)
    with pytest.raises(SettingsError, match="tensor_parallel_size is 2, and torchrun has started 4 ranks"):
        RankPlace.of(environment, 2)
    with pytest.raises(
        SettingsError, match="this process is none of 2 ranks; start it by `torchrun --nproc-per-node 2"
    ):
        RankPlace.of({}, 2)
    with pytest.raises(SettingsError, match="torchrun has started 4 ranks, and tensor_parallel_size is 1"):
        refuse_several(environment)
    refuse_several({})
    with pytest.raises(SettingsError, match="device cuda:0 names one device, and tensor_parallel_size is 4"):
        rank_device(place, "cuda:0")
    assert rank_device(place, "cpu") == torch.device("cpu")


def test_engine_native_is_not_divided() -> None:
    with pytest.raises(ValidationError, match=r"native is not divided among ranks, and \w+ is 2"):
        VerifierSettings(engine="native", tensor_parallel_size=2)
