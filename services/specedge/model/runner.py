"""The one interface to model execution: a packed ragged batch in, float32 logits of the wanted rows out."""

from typing import Any, Protocol

import torch

from specedge.model.batch import IntArray, PackedBatch
from specedge.model.kv_cache import KVCache, kv_shape
from specedge.model.paged_attention import PagedContext
from specedge.model.row_tile import is_rounded, pad_rows


class ModelRunner(Protocol):
    """Runs one model over paged KV, whatever computes it."""

    @property
    def device(self) -> torch.device:
        """Where logits are."""

    @property
    def vocab_size(self) -> int:
        """Logits of a row."""

    @property
    def num_slots(self) -> int:
        """Tokens that the KV cache holds."""

    @property
    def cache(self) -> KVCache:
        """Keys and values."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute keys and values of all rows and the logits of the wanted ones, float32 [num_wanted, vocab_size]."""

    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """Move accepted tokens' keys and values to their final slots (keys carry their rotation with them)."""


class TransformersRunner:
    """Runs a causal language model of transformers.

    Args:
        model: loaded by `specedge.model.loader.load_model`, in eval mode on its device.
        num_slots: size of the KV cache, in tokens.
    """

    def __init__(self, model: Any, num_slots: int) -> None:
        self._model = model
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self._is_padded = is_rounded(parameter.dtype, self.device)
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.cache = KVCache(num_slots=num_slots, dtype=parameter.dtype, device=self.device, **kv_shape(model.config))

    @property
    def num_slots(self) -> int:
        return self.cache.num_slots

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute keys and values of all rows and the logits of the wanted ones.

        Returns:
            float32 [num_wanted, vocab_size] on the model's device.
        """
        context = PagedContext(batch, self.cache, self.device)
        token_ids, wanted = (
            torch.from_numpy(array).to(self.device, non_blocking=True) for array in (batch.token_ids, batch.logits_rows)
        )
        positions, num_wanted = context.positions, len(wanted)
        if self._is_padded:
            token_ids, positions, wanted = pad_rows(token_ids), pad_rows(positions), pad_rows(wanted)
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=wanted,
            paged=context,
        )
        return output.logits[0, :num_wanted].float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def copy_kv(self, source_slots: IntArray, target_slots: IntArray) -> None:
        """Move accepted tokens' keys and values to their final slots (keys carry their rotation with them)."""
        self.cache.copy(torch.from_numpy(source_slots).to(self.device), torch.from_numpy(target_slots).to(self.device))
