"""Token trees and their plain decoding, for tests of the native engine."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from specedge.model.batch import BoolArray, IntArray, PackedBatch, Segment
from specedge.model.embedded import resolve_model
from specedge.model.lean.spec import spec_of
from specedge.model.lean.weights import load_weights
from specedge.model.native import load_native
from specedge.model.native.build import COMPILERS
from specedge.model.native.runner import NativeRunner
from specedge.model.native.self_test import tiny_model
from specedge.model.runner import ModelRunner

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a C compiler")
NUM_SLOTS = 1200


@cache
def library() -> Any:
    """Built and self-tested; a machine with a compiler must have it."""
    loaded = load_native()
    assert loaded is not None
    return loaded


@cache
def embedded_weights(role: Any) -> Any:
    """ModelSpec and ModelWeights of an embedded model, in the checkpoint's dtype."""
    folder = resolve_model("demo", role)
    spec = spec_of(AutoConfig.from_pretrained(folder))
    return spec, load_weights(Path(folder), spec, dtype="auto", device=torch.device("cpu"))


def runner_of(model: str, **options: Any) -> NativeRunner:
    """model: target, draft (the embedded pair) or tiny (random, with windows and an unusual head size)."""
    spec, weights = tiny_model(torch.float32) if model == "tiny" else embedded_weights(model)
    return NativeRunner(library(), spec, weights, NUM_SLOTS, **options)


@dataclass
class Session:
    """A text whose prefix is computed and a tree below it: node 0 is the root, the first token not yet computed.

    `slots` are those of the prefix and then of the nodes.
    """

    prefix: IntArray
    tokens: IntArray  # of the nodes
    parents: list[int]
    slots: IntArray
    depths: list[int] = field(default_factory=list)
    mask: BoolArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.bool_))

    def __post_init__(self) -> None:
        num = len(self.parents)
        self.mask = np.eye(num, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
            if parent >= 0:
                self.mask[node] |= self.mask[parent]

    @property
    def positions(self) -> IntArray:
        return len(self.prefix) + np.array(self.depths, dtype=np.int64)

    def path_slots(self, node: int) -> IntArray:
        """Slots of a node's ancestors and itself, from the first token of the text on."""
        return np.concatenate((self.slots[: len(self.prefix)], self.slots[len(self.prefix) :][self.mask[node]]))


def sessions(draw: Random, vocab_size: int, shapes: Sequence[tuple[int, int]]) -> list[Session]:
    """Random trees, one per (prefix length, nodes), in slots that lie anywhere."""
    free = list(range(NUM_SLOTS))
    draw.shuffle(free)
    made = []
    for num_prefix, num_nodes in shapes:
        text = np.array([draw.randrange(vocab_size) for _ in range(num_prefix + num_nodes)])
        parents = [-1, *(draw.randrange(max(0, node - 5), node) for node in range(1, num_nodes))]
        slots = np.array([free.pop() for _ in text], dtype=np.int64)
        made.append(Session(text[:num_prefix], text[num_prefix:], parents, slots))
    return made


def prefill(runner: ModelRunner, session: Session, chunk: int) -> None:
    """Computes the prefix, `chunk` tokens at a time."""
    for first in range(0, len(session.prefix), chunk):
        rows = np.arange(first, min(first + chunk, len(session.prefix)))
        segment = Segment(len(rows), session.slots[: rows[-1] + 1])
        runner.forward(PackedBatch(session.prefix[rows], rows, session.slots[rows], (segment,), rows[:0]))


def tree_batch(items: Sequence[Session]) -> PackedBatch:
    """All nodes of all sessions, with all logits."""
    segments = tuple(Segment(len(item.tokens), item.slots, item.mask) for item in items)
    return PackedBatch(
        np.concatenate([item.tokens for item in items]),
        np.concatenate([item.positions for item in items]),
        np.concatenate([item.slots[len(item.prefix) :] for item in items]),
        segments,
        np.arange(sum(len(item.tokens) for item in items)),
    )


def plain_decoding(runner: ModelRunner, item: Session) -> torch.Tensor:
    """Every node alone, after its ancestors, as if it were the next token of a text: logits [num_nodes, vocab]."""
    rows = []
    for node, token in enumerate(item.tokens):
        slots = item.path_slots(node)
        batch = PackedBatch(
            np.array([token]), item.positions[node : node + 1], slots[-1:], (Segment(1, slots),), np.array([0])
        )
        rows.append(runner.forward(batch))
    return torch.cat(rows)
