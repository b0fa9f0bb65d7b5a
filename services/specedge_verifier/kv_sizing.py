"""How many KV blocks to allocate: enough for the running set, as far as memory reaches."""

from dataclasses import dataclass
from typing import Any

import torch

from specedge.errors import ModelLoadError
from specedge.model.memory import free_bytes, mib


@dataclass(frozen=True, slots=True)
class DraftKV:
    """What the KV cache of a draft model on the same device takes.

    Attributes:
        bytes_per_token: of keys and values.
        num_slots: tokens it holds; None: as many as the target's.
    """

    bytes_per_token: int
    num_slots: int | None


def choose_num_blocks(
    *,
    bytes_per_token: int,
    device: torch.device,
    block_size: int,
    max_len: int,
    max_batch_size: int,
    max_tree_nodes: int,
    num_kv_blocks: int | None,
    memory_fraction: float,
    graph_bytes: int = 0,
    draft: DraftKV | None = None,
) -> int:
    """Number of blocks in the pool, to be asked when the weights are on the device.

    Args:
        bytes_per_token: of the target's keys and values (per tensor-parallel rank).
        num_kv_blocks: the user's choice; None sizes the pool for `max_batch_size` sessions of `max_len` tokens and
            a full tree each, cut to `memory_fraction` of the memory that is free now, less what graphs may take.
        graph_bytes: memory that CUDA graphs may take later, a draft model's included.
        draft: shares that memory.

    Raises:
        ModelLoadError: not even one session of maximal length fits; says how much is short and what helps.
    """
    smallest = -(-(max_len + 1) // block_size)
    if num_kv_blocks is not None and num_kv_blocks < smallest:
        raise ModelLoadError(
            f"num_kv_blocks {num_kv_blocks} of {block_size} tokens cannot hold one session of max_len {max_len}: "
            f"at least {smallest} are needed; raise num_kv_blocks or lower max_len"
        )
    fixed_bytes, block_bytes = 0, block_size * bytes_per_token
    if draft is not None and draft.num_slots is None:
        block_bytes += block_size * draft.bytes_per_token
    elif draft is not None and draft.num_slots is not None:
        fixed_bytes = draft.num_slots * draft.bytes_per_token
    free = free_bytes(device)
    if num_kv_blocks is not None:
        needed = num_kv_blocks * block_bytes + fixed_bytes + graph_bytes
        if needed > free:
            raise ModelLoadError(
                f"num_kv_blocks {num_kv_blocks} of {block_size} tokens need {mib(needed)}"
                f"{_of_which(graph_bytes, fixed_bytes)}, and beside the weights {device} has {mib(free)} free: "
                f"{mib(needed - free)} are short; lower {_settings('num_kv_blocks', graph_bytes, fixed_bytes)} or take "
                "a smaller dtype"
            )
        return num_kv_blocks
    needed = int((smallest * block_bytes + fixed_bytes) / memory_fraction) + graph_bytes
    if needed > free:
        raise ModelLoadError(
            f"KV blocks for one session of max_len {max_len} need {mib(needed)} of free memory at kv_memory_fraction "
            f"{memory_fraction}{_of_which(graph_bytes, fixed_bytes)}, and beside the weights {device} has {mib(free)} "
            f"free: {mib(needed - free)} are short; lower {_settings('max_len', graph_bytes, fixed_bytes)}, raise "
            "kv_memory_fraction or take a smaller dtype"
        )
    wanted = max_batch_size * -(-(max_len + 1 + max_tree_nodes) // block_size)
    budget = int(memory_fraction * (free - graph_bytes)) - fixed_bytes
    return min(wanted, max(smallest, budget // block_bytes))


def _of_which(graph_bytes: int, draft_bytes: int) -> str:
    parts = [f"{mib(graph_bytes)} graph_memory_mib"] if graph_bytes else []
    parts += [f"{mib(draft_bytes)} num_draft_slots"] if draft_bytes else []
    return f" (of which {' and '.join(parts)})" if parts else ""


def _settings(first: str, graph_bytes: int, draft_bytes: int) -> str:
    """Those that would free memory if they were lower."""
    names = [first, *(["graph_memory_mib"] if graph_bytes else []), *(["num_draft_slots"] if draft_bytes else [])]
    return " or ".join(names)


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
