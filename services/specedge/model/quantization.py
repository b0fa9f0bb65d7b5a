"""Weight-only quantisation of a loaded draft model through torchao, which is optional.

The matrices of the layers are quantised one after the other, on the model's device; embedding, head, norms and biases
stay as they are. The only product of a quantised matrix is `torch.nn.functional.linear`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from specedge.errors import ModelLoadError
from specedge.model.lean.weights import ModelWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Quantization = Literal["int8", "int4"]

GROUP_SIZES = (128, 64, 32)  # inputs that share a 4-bit scale: the largest of these that divides a matrix's inputs

MakeConfig = Callable[[int], Any]
"""From a matrix's number of inputs to torchao's configuration; None where it cannot be quantised."""


def quantize_lean(weights: ModelWeights, quantization: Quantization) -> None:
    """Quantise the matrices of all layers of a lean model, in place.

    Raises:
        ModelLoadError: torchao is not installed, it cannot quantise on this device, or no matrix has a shape for it.
    """
    quantizer = _Quantizer(quantization, weights.embed.device)
    for layer in weights.layers:
        for field in fields(layer):
            matrix = getattr(layer, field.name)
            if matrix is not None and matrix.ndim == 2:
                setattr(layer, field.name, quantizer.quantized(matrix))
    quantizer.finish()


def quantize_modules(model: "PreTrainedModel", quantization: Quantization) -> None:
    """Quantise all linear modules of a model of transformers but its head, in place.

    Raises:
        ModelLoadError: as for `quantize_lean`, or the checkpoint is quantised already.
    """
    if (own := getattr(model.config, "quantization_config", None)) is not None:
        raise ModelLoadError(
            f"{model.name_or_path}: the checkpoint is quantised already ({own}); draft_quantization must be none"
        )
    quantizer, head = _Quantizer(quantization, model.device), model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight = nn.Parameter(quantizer.quantized(module.weight), requires_grad=False)
    quantizer.finish()


class _Quantizer:
    """Quantises the matrices of one model and says in the end what it made of them."""

    def __init__(self, quantization: Quantization, device: torch.device) -> None:
        self._quantization = quantization
        self._device = device
        with _missing_library(quantization):
            from torchao.quantization import quantize_  # type: ignore[import-untyped]

            self._quantize = quantize_
            self._make_config = _int8() if quantization == "int8" else _int4(device)
        self._num_matrices = self._num_quantized = self._bytes_before = self._bytes_after = 0

    @torch.inference_mode()
    def quantized(self, matrix: torch.Tensor) -> torch.Tensor:
        """The matrix [outputs, inputs] quantised, or as it is where its shape does not allow it."""
        self._num_matrices += 1
        self._bytes_before += matrix.nbytes
        config = self._make_config(matrix.shape[1])
        if config is not None:
            holder = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
            # The 4-bit kernel for CUDA takes bfloat16 only; rounding to it is small beside rounding to 4 bits.
            is_cast = self._quantization == "int4" and matrix.is_cuda
            holder.weight = nn.Parameter(matrix.bfloat16() if is_cast else matrix, requires_grad=False)
            try:
                with torch.cuda.device_of(matrix):  # type: ignore[no-untyped-call]
                    self._quantize(holder, config)
            except Exception as error:
                raise ModelLoadError(
                    f"draft_quantization {self._quantization}: torchao cannot quantise a matrix of shape "
                    f"{list(matrix.shape)}, {matrix.dtype}, on {self._device} ({error})"
                ) from error
            matrix = holder.weight.data
            self._num_quantized += 1
        self._bytes_after += _num_bytes(matrix)
        return matrix

    def finish(self) -> None:
        """Log what was saved.

        Raises:
            ModelLoadError: nothing was.
        """
        if not self._num_quantized:
            raise ModelLoadError(
                f"draft_quantization {self._quantization}: none of the draft model's {self._num_matrices} matrices can "
                f"be quantised; their number of inputs must be a multiple of {GROUP_SIZES[-1]}"
            )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the KV cache is sized by what the device has free
        logger.info(
            "quantised %d of %d matrices to %s: %.1f MB became %.1f MB",
            self._num_quantized,
            self._num_matrices,
            self._quantization,
            self._bytes_before / 1e6,
            self._bytes_after / 1e6,
        )


def _int8() -> MakeConfig:
    """One scale per output."""
    from torchao.quantization import Int8WeightOnlyConfig

    config = Int8WeightOnlyConfig(set_inductor_config=False)
    return lambda num_inputs: config


def _int4(device: torch.device) -> MakeConfig:
    """One scale and zero point per output and group of inputs, in the formats whose kernels come with torch itself."""
    if device.type == "cpu":
        from torchao.prototype.quantization.int4 import (  # type: ignore[import-untyped]
            PrototypeInt4WeightOnlyConfig,
        )

        make = partial(PrototypeInt4WeightOnlyConfig, set_inductor_config=False)
    else:
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4PackingFormat  # type: ignore[import-untyped]

        tiles = Int4PackingFormat.TILE_PACKED_TO_4D
        make = partial(Int4WeightOnlyConfig, int4_packing_format=tiles, set_inductor_config=False)

    def config(num_inputs: int) -> Any:
        size = next((size for size in GROUP_SIZES if num_inputs % size == 0), None)
        return None if size is None else make(group_size=size)

    return config


def _num_bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(_num_bytes(getattr(tensor, name)) for name in names)


@contextmanager
def _missing_library(quantization: Quantization) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelLoadError(
            f"draft_quantization {quantization} needs torchao >= 0.18 ({error}); install it with "
            "pip install 'specedge[quantized]'"
        ) from error
