"""What the Triton backend does not take is refused with the value and the limit."""

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: make test-kernels")

from specedge.model.attention.interface import AttentionUnavailable
from specedge.model.attention.triton_backend import TritonBackend

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [8, 257, 512])
def test_head_dimension(head_dim: int) -> None:
    with pytest.raises(AttentionUnavailable, match=f"from 16 to 256, not {head_dim}"):
        TritonBackend(CPU, torch.float16, num_heads=4, num_kv_heads=2, head_dim=head_dim)


def test_dtype() -> None:
    with pytest.raises(AttentionUnavailable, match=r"bfloat16, float16, float32, not torch\.float64"):
        TritonBackend(CPU, torch.float64, num_heads=4, num_kv_heads=2, head_dim=64)
