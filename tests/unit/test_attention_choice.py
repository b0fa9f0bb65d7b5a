"""Choosing a backend: what is refused by name, and what a failing self-test says before it falls back."""

import logging
from typing import Any

import pytest
import torch

from specedge.model.attention.choose import checked_backend, choose_backend
from specedge.model.attention.interface import AttentionUnavailable
from specedge.model.attention.sdpa import SdpaBackend

CPU = torch.device("cpu")
SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


class OtherBackend(SdpaBackend):
    """The reference, with its output passed through a function."""

    name = "other"

    def __init__(self, change: Any) -> None:
        self._change = change

    def attend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._change(super().attend(*args, **kwargs))  # type: ignore[no-any-return]


def with_one_wrong_row(output: torch.Tensor) -> torch.Tensor:
    output[-1, 0, 0] += 0.25
    return output


def raising(output: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_backend_is_kept(dtype: torch.dtype) -> None:
    backend = OtherBackend(lambda output: output)
    assert checked_backend(backend, CPU, dtype, **SHAPE) is backend


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_one_wrong_row, "'other' differs from 'sdpa' by 0.25 on cpu with head dimension 16"),
        (lambda output: output * float("nan"), "'other' differs from 'sdpa' by inf"),
        (raising, "'other' failed its self-test, 'sdpa' is used: no kernel image is available"),
    ],
)
def test_a_wrong_backend_is_replaced(change: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert checked_backend(OtherBackend(change), CPU, torch.float32, **SHAPE).name == "sdpa"
    assert message in caplog.text


def test_the_cpu_has_the_reference() -> None:
    for wanted in ("auto", "sdpa"):
        assert choose_backend(CPU, torch.float32, 16, wanted, num_heads=4, num_kv_heads=2).name == "sdpa"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "message"), [("triton", "needs a CUDA device, not cpu"), ("flash", "needs a CUDA device, not cpu")]
)
def test_what_cannot_serve_is_refused_by_name(wanted: Any, message: str) -> None:
    with pytest.raises(AttentionUnavailable, match=message):
        choose_backend(CPU, torch.float32, 16, wanted, num_heads=4, num_kv_heads=2)
