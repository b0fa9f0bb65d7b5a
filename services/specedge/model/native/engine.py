"""The native library's functions over packed weights and a KV cache."""

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from specedge.errors import ModelLoadError, SpecEdgeError
from specedge.model.attention_plan import plan_of
from specedge.model.batch import PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import ModelWeights
from specedge.model.native.rotary import RotaryTable

PANEL = 32  # outputs that lie together in packed weights, as in native.h
LANES = 16
MAX_GROUP = 96
MAX_THREADS = 256
INSTRUCTION_SETS = ("plain", "avx2", "avx512")


class BatchRefused(SpecEdgeError):
    """A packed batch contradicts itself, the model or the cache; names the row and the limit."""


class _Matrix(Structure):
    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("num_outputs", c_int32),
        ("num_inputs", c_int32),
        ("is_bf16", c_int32),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm", "keys", "values")),
        ("window", c_int32),
    )


_SIZES = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")


class _Model(Structure):
    _fields_ = (
        *((name, c_int32) for name in (*_SIZES, "num_layers", "num_slots")),
        ("rms_eps", c_float),
        ("embed_is_bf16", c_int32),
        ("cache_is_bf16", c_int32),
        ("embed", c_void_p),
        ("final_norm", c_void_p),
        ("layers", POINTER(_Layer)),
        ("head", _Matrix),
    )


_COUNTS = ("num_rows", "num_segments", "num_wanted", "num_words", "num_positions", "total_context", "total_tail")
_PLAN = ("positions", "row_starts", "context_starts", "context_slots", "num_tails", "tail_starts", "tail_positions")


class _Batch(Structure):
    _fields_ = (
        *((name, c_int32) for name in _COUNTS),
        *((name, c_void_p) for name in ("token_ids", "slots", "wanted")),
        *((name, c_void_p) for name in _PLAN),
        *((name, c_void_p) for name in ("is_chain", "mask_words", "cosines", "sines")),
    )


def declare(library: ctypes.CDLL) -> None:
    """Give the library's functions their types."""
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "specedge_new": (c_void_p, (POINTER(_Model), c_float, c_int32, c_int32)),
        "specedge_free": (None, (c_void_p,)),
        "specedge_forward": (c_int32, (c_void_p, POINTER(_Batch), c_void_p)),
        "specedge_message": (c_char_p, (c_void_p,)),
        "specedge_kernels": (c_char_p, (c_void_p,)),
        "specedge_num_threads": (c_int32, (c_void_p,)),
        "specedge_is_bf16": (c_int32, (c_void_p, c_int64)),
        "specedge_pack": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32, c_int32, c_void_p)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def unsupported(spec: ModelSpec) -> str | None:
    """Why the native engine does not take a model; None where it does."""
    group = spec.num_heads // spec.num_kv_heads
    if spec.num_heads % spec.num_kv_heads:
        return f"{spec.num_heads} heads are no multiple of {spec.num_kv_heads} KV heads"
    if group > MAX_GROUP:
        return f"{group} heads share a KV head; the limit is {MAX_GROUP}"
    if spec.head_dim % 2:
        return f"head dim {spec.head_dim} is odd"
    return None


class NativeEngine:
    """A model packed for the native library.

    Args:
        library: from `build.load_library`, declared.
        spec, weights: of the model; what is not packed (embedding, norms) is shared.
        cache: float32 or bfloat16, on the CPU.
        num_usable: slots that a batch may name.
        num_threads: including the calling one.
        limit: the widest instruction set to use.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        spec: ModelSpec,
        weights: ModelWeights,
        cache: KVCache,
        *,
        num_usable: int,
        num_threads: int,
        limit: str = INSTRUCTION_SETS[-1],
    ) -> None:
        self._handle: int | None = None
        if not 1 <= num_threads <= MAX_THREADS:
            raise ModelLoadError(f"native engine: {num_threads} threads; allowed are 1 to {MAX_THREADS}")
        self._library = library
        self._spec = spec
        self._kept: list[torch.Tensor] = []
        self._rotary = RotaryTable(spec.inv_freq, spec.rope_scale)
        layers = (_Layer * len(spec.layers))()
        for index, layer in enumerate(spec.layers):
            own = weights.layers[index]
            keys, values = cache.layer(index)
            layers[index] = _Layer(
                qkv=self._pack(own.qkv, own.qkv_bias),
                o=self._pack(own.o),
                gate_up=self._pack(own.gate_up, is_gated=True),
                down=self._pack(own.down),
                input_norm=self._vector(own.input_norm),
                post_norm=self._vector(own.post_norm),
                q_norm=self._vector(own.q_norm),
                k_norm=self._vector(own.k_norm),
                keys=keys.data_ptr(),
                values=values.data_ptr(),
                window=layer.sliding_window or 0,
            )
        embed = self._plain(weights.embed)
        self._layers = layers
        self._model = _Model(
            **{name: getattr(spec, name) for name in _SIZES},
            num_layers=len(layers),
            num_slots=num_usable,
            rms_eps=spec.rms_eps,
            embed_is_bf16=embed.dtype is torch.bfloat16,
            cache_is_bf16=cache.layer(0)[0].dtype is torch.bfloat16,
            embed=embed.data_ptr(),
            final_norm=self._vector(weights.final_norm),
            layers=layers,
            head=self._pack(weights.head),
        )
        handle = library.specedge_new(self._model, spec.head_dim**-0.5, num_threads, INSTRUCTION_SETS.index(limit))
        if not handle:
            raise ModelLoadError(f"native engine: no memory for {num_threads} threads")
        self._handle, self._process = handle, os.getpid()

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # modules may be gone when the process ends
        if self._handle is not None and self._process == getpid():  # threads do not live on in a forked child
            self._library.specedge_free(self._handle)

    @property
    def instruction_set(self) -> str:
        """The one in use: plain, avx2 or avx512."""
        return str(self._library.specedge_kernels(self._handle).decode().removeprefix("specedge_"))

    @property
    def num_threads(self) -> int:
        """Those the system granted, the calling one included."""
        return int(self._library.specedge_num_threads(self._handle))

    @property
    def num_bytes(self) -> int:
        """What weights take in memory, shared ones included."""
        return sum(tensor.nbytes for tensor in self._kept)

    def forward(self, batch: PackedBatch, logits: torch.Tensor) -> None:
        """Compute keys and values of all rows, and the wanted rows' logits into `logits` [num_wanted, vocab_size].

        Raises:
            BatchRefused: the batch contradicts itself, the model or the cache.
        """
        _check_shapes(batch, logits, self._spec.vocab_size)
        plan = plan_of(batch)
        self._rotary.reserve(min(int(plan.positions.max(initial=-1)) + 1, self._model.num_slots))
        token_ids, slots, wanted = (
            np.ascontiguousarray(array, dtype=np.int64) for array in (batch.token_ids, batch.slots, batch.logits_rows)
        )
        is_chain, mask_words = plan.is_chain.view(np.uint8), np.ascontiguousarray(plan.mask_words)
        fields = _Batch(
            plan.num_rows,
            plan.num_segments,
            len(wanted),
            mask_words.shape[1],
            len(self._rotary.cosines),
            len(plan.context_slots),
            len(plan.tail_positions),
            *_addresses((token_ids, slots, wanted)),
            *_addresses([getattr(plan, name) for name in _PLAN]),
            *_addresses((is_chain, mask_words, self._rotary.cosines, self._rotary.sines)),
        )
        if not self._library.specedge_forward(self._handle, fields, logits.data_ptr()):
            raise BatchRefused(self._library.specedge_message(self._handle).decode())

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None, is_gated: bool = False) -> _Matrix:
        """Weights in panels: as bfloat16 where that loses nothing, which halves what a step reads."""
        weight = self._plain(weight, keep=False)
        num_outputs, num_inputs = weight.shape
        is_bf16 = weight.dtype is torch.bfloat16
        to_bf16 = is_bf16 or bool(self._library.specedge_is_bf16(weight.data_ptr(), weight.numel()))
        num_panels = -(-num_outputs // 2 // LANES) if is_gated else -(-num_outputs // PANEL)
        panels = torch.empty(num_panels * num_inputs * PANEL, dtype=torch.bfloat16 if to_bf16 else torch.float32)
        self._kept.append(panels)
        self._library.specedge_pack(
            weight.data_ptr(), is_bf16, num_outputs, num_inputs, to_bf16, is_gated, panels.data_ptr()
        )
        packed_outputs = num_panels * PANEL if is_gated else num_outputs
        if bias is not None:
            bias = torch.nn.functional.pad(bias.float(), (0, num_panels * PANEL - num_outputs))
        return _Matrix(panels.data_ptr(), self._vector(bias), packed_outputs, num_inputs, to_bf16)

    def _plain(self, weight: torch.Tensor, keep: bool = True) -> torch.Tensor:
        """A contiguous tensor on the CPU, float32 or bfloat16."""
        weight = weight.detach().to("cpu", torch.bfloat16 if weight.dtype is torch.bfloat16 else torch.float32)
        weight = weight.contiguous()
        if keep:
            self._kept.append(weight)
        return weight

    def _vector(self, vector: torch.Tensor | None) -> int | None:
        """Address of a float32 copy; None stays None."""
        if vector is None:
            return None
        self._kept.append(vector.detach().to("cpu", torch.float32).contiguous())
        return self._kept[-1].data_ptr()


def _addresses(arrays: Sequence[npt.NDArray[Any]]) -> list[int]:
    return [array.__array_interface__["data"][0] for array in arrays]


def _check_shapes(batch: PackedBatch, logits: torch.Tensor, vocab_size: int) -> None:
    num_rows = len(batch.token_ids)
    if sum(segment.num_rows for segment in batch.segments) != num_rows or not num_rows:
        raise BatchRefused(f"the segments have {sum(s.num_rows for s in batch.segments)} rows, the batch {num_rows}")
    if batch.positions.shape != (num_rows,) or batch.slots.shape != (num_rows,):
        raise BatchRefused(f"{len(batch.positions)} positions and {len(batch.slots)} slots for {num_rows} rows")
    for index, segment in enumerate(batch.segments):
        mask, tail = segment.mask, segment.tail_positions
        num_tail = segment.num_rows if mask is None else mask.shape[-1]
        if mask is not None and mask.shape != (segment.num_rows, num_tail):
            raise BatchRefused(f"segment {index}: a mask of shape {mask.shape} for {segment.num_rows} rows")
        if (segment.num_rows if tail is None else len(tail)) != num_tail:
            raise BatchRefused(f"segment {index}: {num_tail} tail tokens do not all have a position")
    if logits.shape != (len(batch.logits_rows), vocab_size) or not logits.is_contiguous():
        raise BatchRefused(f"logits of shape {tuple(logits.shape)} for {len(batch.logits_rows)} wanted rows")
