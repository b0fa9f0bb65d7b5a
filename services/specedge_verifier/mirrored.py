"""One model on several ranks: rank 0 says what is computed, all ranks compute it.

Rule 1  Whatever touches the KV cache is a forward or a move; rank 0 broadcasts each before it does it, and every rank
        does the same in the same order.
Rule 2  Only rank 0 has logits. Sampling, acceptance, scheduling and the block pool are on rank 0 alone.
Rule 3  A rank that fails cannot be waited for, and the others' caches no longer agree with its own: all end.
"""

import logging
from enum import IntEnum

import numpy as np
import torch

from specedge.errors import EngineDead
from specedge.model.batch import IntArray, PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.ranks import Int32Array, Ranks
from specedge.model.runner import ModelRunner
from specedge_verifier.batch_message import decode_batch, encode_batch

logger = logging.getLogger(__name__)


class Task(IntEnum):
    """The first number of every message."""

    FORWARD = 1
    MOVE = 2
    STOP = 3


class MirroredRunner:
    """Implements `ModelRunner` on rank 0: every call is carried out by all ranks.

    Args:
        runner: rank 0's part of the model.
        ranks: all of them; the others are in `follow`.
    """

    def __init__(self, runner: ModelRunner, ranks: Ranks) -> None:
        self._runner = runner
        self._ranks = ranks
        self.device: torch.device = runner.device
        self.vocab_size: int = runner.vocab_size
        self.num_slots: int = runner.num_slots
        self.cache: KVCache = runner.cache

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """See `ModelRunner`.

        Raises:
            EngineDead: a rank is gone, or this one could not compute its part.
        """
        try:
            self._ranks.send(message(Task.FORWARD, encode_batch(batch)))
            return self._runner.forward(batch)
        except (RuntimeError, MemoryError) as error:  # of the group or the device; the others compute it all the same
            raise EngineDead(f"a forward of {self._ranks.size} ranks has failed: {error}") from error

    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """See `ModelRunner`.

        Raises:
            EngineDead: as for `forward`.
        """
        try:
            self._ranks.send(message(Task.MOVE, np.concatenate((source_slots, target_slots))))
            self._runner.copy_kv(source_slots, target_slots)
        except RuntimeError as error:
            raise EngineDead(f"a move of {self._ranks.size} ranks has failed: {error}") from error


def stop_followers(ranks: Ranks) -> None:
    """End `follow` on all other ranks."""
    ranks.send(message(Task.STOP, np.empty(0, dtype=np.int64)))


def follow(runner: ModelRunner, ranks: Ranks) -> None:
    """On every rank but 0: do what rank 0 says until it says stop."""
    while True:
        received = ranks.receive()
        task, content = Task(int(received[0])), received[1:]
        if task is Task.STOP:
            return
        if task is Task.FORWARD:
            runner.forward(decode_batch(content))
        else:
            source, target = content.astype(np.int64).reshape(2, -1)
            runner.copy_kv(source, target)


def message(task: Task, content: IntArray | Int32Array) -> Int32Array:
    """A task and what it is about."""
    return np.concatenate(((task,), content), dtype=np.int32, casting="same_kind")
