"""The native engine behind the interface of ModelRunner."""

import ctypes
import logging
from threading import Lock

import torch

from specedge.errors import ModelLoadError
from specedge.model.batch import IntArray, PackedBatch
from specedge.model.kv_cache import KVCache
from specedge.model.lean.spec import ModelSpec
from specedge.model.lean.weights import ModelWeights
from specedge.model.native.engine import INSTRUCTION_SETS, LANES, NativeEngine, unsupported

logger = logging.getLogger(__name__)

KV_DTYPES = (torch.float32, torch.bfloat16)


class NativeRunner:
    """Runs a dense decoder over paged KV; every row's result is the same bits in every batch.

    Args:
        library: from `load_native`.
        spec, weights: of the model.
        num_slots: size of the KV cache, in tokens.
        kv_dtype: what keys and values are rounded to, float32 or bfloat16; all arithmetic is float32.
        num_threads: None: as many as torch uses.
        limit: the widest instruction set to use.

    Raises:
        ModelLoadError: the engine does not take such a model.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        library: ctypes.CDLL,
        spec: ModelSpec,
        weights: ModelWeights,
        num_slots: int,
        *,
        kv_dtype: torch.dtype = torch.float32,
        num_threads: int | None = None,
        limit: str = INSTRUCTION_SETS[-1],
    ) -> None:
        if reason := unsupported(spec):
            raise ModelLoadError(f"the native engine does not take this model: {reason}")
        if kv_dtype not in KV_DTYPES:
            raise ModelLoadError(f"native engine: keys and values in {kv_dtype}; allowed are float32 and bfloat16")
        self.vocab_size = spec.vocab_size
        self.num_slots = num_slots
        # Values are read in whole vectors: where heads are no multiple of one, the last slot's must not be the end.
        num_spare = LANES if spec.head_dim % LANES else 0
        self.cache = KVCache(
            num_layers=len(spec.layers),
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            num_slots=num_slots + num_spare,
            dtype=kv_dtype,
            device=self.device,
        )
        self._lock = Lock()
        self.engine = NativeEngine(
            library,
            spec,
            weights,
            self.cache,
            num_usable=num_slots,
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            limit=limit,
        )

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute keys and values of all rows and the logits of the wanted ones.

        Returns:
            float32 [num_wanted, vocab_size].

        Raises:
            BatchRefused: the batch contradicts itself, the model or the cache.
        """
        logits = torch.empty((len(batch.logits_rows), self.vocab_size), dtype=torch.float32)
        with self._lock:
            self.engine.forward(batch, logits)
        return logits

    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """Move accepted tokens' keys and values to their final slots (keys carry their rotation with them)."""
        self.cache.copy(torch.from_numpy(source_slots), torch.from_numpy(target_slots))
