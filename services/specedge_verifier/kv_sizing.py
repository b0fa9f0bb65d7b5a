"""How many KV blocks to allocate: enough for the running set, as far as memory reaches."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from specedge.errors import ModelLoadError
from specedge.model.engines import LoadedModel
from specedge.model.kv_cache import KVCache, kv_shape


@dataclass(frozen=True, slots=True)
class DraftKV:
    """What the KV cache of a draft model on the same device takes.

    Attributes:
        bytes_per_token: of keys and values.
        num_slots: tokens it holds; None: as many as the target's.
    """

    bytes_per_token: int
    num_slots: int | None

    @classmethod
    def of(cls, model: LoadedModel, num_slots: int | None) -> "DraftKV":
        """For a loaded draft model."""
        return cls(KVCache.bytes_per_slot(**kv_shape(model.config), dtype=model.dtype), num_slots)


def choose_num_blocks(
    config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    max_len: int,
    max_batch_size: int,
    max_tree_nodes: int,
    num_kv_blocks: int | None,
    memory_fraction: float,
    draft: DraftKV | None = None,
) -> int:
    """Number of blocks in the pool.

    Args:
        config: the target's transformers configuration.
        num_kv_blocks: the user's choice; None sizes the pool for `max_batch_size` sessions of `max_len` tokens and
            a full tree each, cut to `memory_fraction` of the memory that is free now.
        draft: shares that memory.

    Raises:
        ModelLoadError: not even one session of maximal length fits; says how much is short and what helps.
    """
    smallest = -(-(max_len + 1) // block_size)
    if num_kv_blocks is not None:
        if num_kv_blocks < smallest:
            raise ModelLoadError(
                f"num_kv_blocks {num_kv_blocks} of {block_size} tokens cannot hold one session of max_len {max_len}: "
                f"at least {smallest} are needed; raise num_kv_blocks or lower max_len"
            )
        return num_kv_blocks
    wanted = max_batch_size * -(-(max_len + 1 + max_tree_nodes) // block_size)
    block_bytes = block_size * KVCache.bytes_per_slot(**kv_shape(config), dtype=dtype)
    budget = int(memory_fraction * free_bytes(device))
    if draft is not None and draft.num_slots is None:
        block_bytes += block_size * draft.bytes_per_token
    elif draft is not None and draft.num_slots is not None:
        budget -= draft.num_slots * draft.bytes_per_token
    affordable = max(0, budget) // block_bytes
    if affordable < smallest:
        short = (smallest - affordable) * block_bytes
        raise ModelLoadError(
            f"KV blocks for one session of max_len {max_len} need {short / 2**20:.0f} MiB more memory on {device} than "
            f"kv_memory_fraction {memory_fraction} allows; lower max_len, raise kv_memory_fraction or take a smaller "
            "dtype"
        )
    return min(wanted, affordable)


def context_length(config: Any, max_len: int | None) -> int:
    """Longest prompt plus answer in tokens: the user's choice, or the model's own limit.

    Raises:
        ModelLoadError: the choice exceeds what the model was made for, or neither is known.
    """
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    if max_len is None:
        if own is None:
            raise ModelLoadError("the model's configuration names no context length; set max_len")
        return int(own)
    if own is not None and max_len > own:
        raise ModelLoadError(f"max_len {max_len} exceeds the model's own limit of {own} tokens; lower max_len")
    return max_len


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
