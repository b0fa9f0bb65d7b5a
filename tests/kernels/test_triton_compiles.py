# ruff: noqa: E402 (what follows needs Triton, in the mode that this file is about)
"""The Triton kernels compile to machine code of Ampere and Hopper, with tensor cores and asynchronous loads.

No GPU is needed: Triton brings its own assembler. `make test-kernels` runs these.
"""

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton: make test-kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles only where Triton is not interpreting", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specedge.model.attention.triton_backend import MERGE_ROWS, SPLIT_SIZE, tile_for
from specedge.model.attention.triton_kernel import attend_kernel, merge_kernel

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# The least that one program may have on any GPU since compute capability 8.0.
MAX_SHARED_BYTES = {80: 99 << 10, 90: 227 << 10}
INT32_TABLES = (
    "items",
    "merges",
    "row_starts",
    "context_starts",
    "context_slots",
    "num_tails",
    "is_chain",
    "positions",
    "tail_starts",
    "tail_positions",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from an earlier compilation."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(
    kernel: Any, capability: int, dtype: torch.dtype, constants: dict[str, Any], **options: int
) -> tuple[str, int]:
    """(PTX, bytes of shared memory), after the assembler has made machine code of it."""
    types = dict.fromkeys(INT32_TABLES, "*i32") | {
        **dict.fromkeys(("out", "q", "layer_keys", "layer_values"), "*" + NAMES[dtype]),
        **dict.fromkeys(("partial_accs", "partial_sums"), "*fp32"),
        **dict.fromkeys(("num_words", "window", "q_stride", "out_stride", "slot_stride"), "i32"),
        "mask_words": "*i64",
        "scale": "fp32",
    }
    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") or name.endswith("_stride")
    }
    binary = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert binary.asm["cubin"][:4] == b"\x7fELF"
    return binary.asm["ptx"], binary.metadata.shared


@pytest.mark.parametrize(
    ("capability", "head_dim", "dtype", "has_window"),
    [
        *product((80, 90), (64, 128, 256), (torch.bfloat16, torch.float16), (False,)),
        *product((80, 90), (128,), (torch.bfloat16,), (True,)),
        *product((80, 90), (80, 96), (torch.bfloat16,), (False,)),
    ],
)
def test_attend(capability: int, head_dim: int, dtype: torch.dtype, has_window: bool) -> None:
    tile = tile_for(head_dim, dtype, capability // 10)
    constants = {
        "G": 5,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
        "SPLIT": SPLIT_SIZE,
        "NUM_PARTS": tile.num_parts,
        "HAS_WINDOW": has_window,
        "PRECISION": "ieee",
    }
    ptx, num_shared = compiled(
        attend_kernel, capability, dtype, constants, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in ptx
    assert "cp.async.cg.shared.global" in ptx  # 16 bytes at a time, past the first-level cache
    assert num_shared <= MAX_SHARED_BYTES[capability]


@pytest.mark.parametrize(("capability", "head_dim"), [*product((80, 90), (64, 128, 256))])
def test_merge(capability: int, head_dim: int) -> None:
    tile = tile_for(head_dim, torch.bfloat16, capability // 10)
    constants = {
        "G": 5,
        "HEAD_DIM": head_dim,
        "BLOCK_D": head_dim,
        "BLOCK_M": tile.rows,
        "MERGE_ROWS": MERGE_ROWS,
    }
    ptx, _ = compiled(merge_kernel, capability, torch.bfloat16, constants, num_warps=4)
    assert "ld.global" in ptx


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_float32_fits_everywhere(head_dim: int) -> None:
    tile = tile_for(head_dim, torch.float32, 8)
    constants = {
        "G": 1,
        "HEAD_DIM": head_dim,
        "BLOCK_D": head_dim,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
        "SPLIT": SPLIT_SIZE,
        "NUM_PARTS": tile.num_parts,
        "HAS_WINDOW": False,
        "PRECISION": "ieee",
    }
    _, num_shared = compiled(
        attend_kernel, 80, torch.float32, constants, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    assert num_shared <= MAX_SHARED_BYTES[80]
