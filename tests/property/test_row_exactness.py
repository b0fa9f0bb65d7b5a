"""Torch models in 16 bits on the CPU: a row is the same bits alone, in a tree, and beside other sessions."""

from random import Random

import pytest
import torch
from native_support import NUM_SLOTS, plain_decoding, prefill, sessions, tree_batch

from benchmarks.exactness.operations import shares_of
from specedge.model.embedded import resolve_model
from specedge.model.engines import Engine, load_for, make_runner
from specedge.model.row_tile import ROW_TILE, pad_rows

TARGET = resolve_model("demo", "target")
SHAPES = [(0, 5), (3, 9), (31, 1), (100, 24), (290, 5)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("engine", ["lean", "transformers"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tree_rows_equal_plain_decoding(engine: Engine, dtype: str) -> None:
    draw = Random(4)
    items = sessions(draw, 4096, SHAPES)
    model = load_for(engine, TARGET, "cpu", dtype)
    together, alone = make_runner(model, NUM_SLOTS), make_runner(model, NUM_SLOTS)
    for item in items:
        prefill(together, item, 512)
        prefill(alone, item, draw.choice([7, 16, 100]))
    found = together.forward(tree_batch(items))
    assert found.dtype is torch.float32
    assert found.equal(torch.cat([plain_decoding(alone, item) for item in items]))
    assert len(found.unique(dim=0)) > len(found) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padded_products_and_float64_attention_make_rows_independent(dtype: torch.dtype) -> None:
    shares = shares_of(dtype)
    remedies = {name: share for name, share in shares.items() if "padded" in name or "float64" in name}
    assert len(remedies) == 6
    assert set(remedies.values()) == {1.0}


def test_rows_are_padded_to_whole_tiles() -> None:
    rows = torch.arange(1, 2 * ROW_TILE)
    padded = pad_rows(rows)
    assert len(padded) == 2 * ROW_TILE and padded[-1] == 0 and padded[:-1].equal(rows)
    assert pad_rows(padded) is padded
    assert pad_rows(torch.ones(3, 2)).shape == (ROW_TILE, 2)
    assert pad_rows(rows[:0]).shape == (0,)
