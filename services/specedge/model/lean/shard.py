"""Which part of a dense model a tensor-parallel rank holds: some heads, and some of the MLP's inner values.

Key/value heads are divided among the ranks; where there are more ranks than such heads, several ranks hold the same one
and divide the queries that read it. Embedding and norms are whole on every rank, the head is on rank 0 alone.
"""

from dataclasses import dataclass, replace

from specedge.errors import ModelLoadError
from specedge.model.lean.spec import ModelSpec

_WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class ModelShard:
    """A rank's part.

    Attributes:
        spec: of the part alone; without a head of its own it counts as tied.
        queries: rows of the query projection, columns of the output projection.
        keys: rows of the key projection, and of the value projection.
        inner: rows of gate and up, columns of down.
    """

    spec: ModelSpec
    queries: slice
    keys: slice
    inner: slice

    def part(self, name: str) -> tuple[slice, ...]:
        """What of a checkpoint's tensor belongs to this rank; empty: all of it."""
        match name.split(".")[-2]:
            case "q_proj":
                return (self.queries,)
            case "k_proj" | "v_proj":
                return (self.keys,)
            case "o_proj":
                return (_WHOLE, self.queries)
            case "gate_proj" | "up_proj":
                return (self.inner,)
            case "down_proj":
                return (_WHOLE, self.inner)
        return ()


def shard_of(spec: ModelSpec, rank: int, size: int) -> ModelShard:
    """The part of one of `size` ranks.

    Raises:
        ModelLoadError: the heads cannot be divided among so many ranks; names the numbers.
    """
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    if kv_heads % size and size % kv_heads:
        raise ModelLoadError(
            f"tensor_parallel_size {size} neither divides num_key_value_heads {kv_heads} nor is a multiple of it"
        )
    if size > heads:
        raise ModelLoadError(f"tensor_parallel_size {size} is above num_attention_heads {heads}")
    group = heads // kv_heads
    sharing = max(1, size // kv_heads)  # ranks that hold the same key/value head
    first_kv, num_kv = (rank * kv_heads // size, max(1, kv_heads // size))
    own = share(group * num_kv, rank % sharing, sharing)
    first_query = first_kv * group
    inner = share(spec.intermediate_size, rank, size)
    return ModelShard(
        replace(
            spec,
            num_heads=own.stop - own.start,
            num_kv_heads=num_kv,
            intermediate_size=inner.stop - inner.start,
            is_tied=spec.is_tied or rank > 0,
        ),
        queries=slice((first_query + own.start) * spec.head_dim, (first_query + own.stop) * spec.head_dim),
        keys=slice(first_kv * spec.head_dim, (first_kv + num_kv) * spec.head_dim),
        inner=inner,
    )


def share(count: int, rank: int, size: int) -> slice:
    """One of `size` parts of so many things, which differ by one at most."""
    return slice(rank * count // size, (rank + 1) * count // size)
