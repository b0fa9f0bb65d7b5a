"""Weights of a lean model, read from memory-mapped safetensors straight into the fused tensors that the blocks use."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from tqdm import tqdm  # type: ignore[import-untyped]

from specedge.errors import ModelLoadError
from specedge.model.checkpoint import check_safetensors, weight_files
from specedge.model.lean.shard import ModelShard
from specedge.model.lean.spec import ModelSpec

EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_RECOMPUTED = ".rotary_emb.inv_freq"  # old checkpoints store it; the configuration determines it


class CheckpointRefused(ModelLoadError):
    """A checkpoint is not what lean models read; transformers may take it or find more wrong with it."""


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer; matrices are [outputs, inputs]."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(num_heads + 2 num_kv_heads) * head_dim, hidden]: rows of q, then k, then v
    qkv_bias: torch.Tensor | None  # [(num_heads + 2 num_kv_heads) * head_dim]
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None  # [head_dim]
    o: torch.Tensor  # [hidden, num_heads * head_dim]
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 * intermediate, hidden]: rows of gate, then up
    down: torch.Tensor  # [hidden, intermediate]


@dataclass(slots=True)
class ModelWeights:
    """A whole model."""

    embed: torch.Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    final_norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocab, hidden]; the same tensor as embed when tied


def load_weights(
    folder: Path,
    spec: ModelSpec,
    *,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    progress: bool = False,
    shard: ModelShard | None = None,
) -> ModelWeights:
    """Read a checkpoint, in one file or several.

    Args:
        spec: of the whole model.
        dtype: of all tensors; auto is the checkpoint's own (that of its embedding).
        progress: show a bar.
        shard: the part to read; None: all of it.

    Raises:
        CheckpointRefused: names the tensor that is missing, is not known to the model, has another shape or holds no
            floating-point numbers.
        ModelLoadError: names the file that is damaged, or the tensor with numbers that are not finite in `dtype`.
    """
    with ExitStack() as stack:
        checkpoint = _Checkpoint(folder, stack)
        checkpoint.compare(_shapes(spec), is_tied=spec.is_tied)
        with torch.inference_mode():
            own = spec if shard is None else shard.spec
            weights = _allocate(own, checkpoint.dtype(EMBED) if dtype == "auto" else dtype, device)
            targets = dict(_targets(own, weights))
            num_bytes = sum(map(checkpoint.tensor_bytes, targets))
            with tqdm(desc=folder.name, total=num_bytes, unit="B", unit_scale=True, disable=not progress) as bar:
                for name, target in targets.items():
                    checkpoint.read(name, target, () if shard is None else shard.part(name))
                    bar.update(checkpoint.tensor_bytes(name))
            if spec.is_tied and _HEAD in checkpoint.names:
                checkpoint.refuse_other_head(weights.embed)
    return weights


class _Checkpoint:
    """The tensors of all weight files of a folder, by name; files stay mapped while `stack` is open."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        for file in weight_files(folder):
            if file.suffix != ".safetensors":
                raise CheckpointRefused(f"{file}: lean models read safetensors only")
            check_safetensors(file)
            opened = stack.enter_context(safe_open(file, framework="pt"))
            self._files |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def tensor_bytes(self, name: str) -> int:
        num_elements = 1
        for size in self.shape(name):
            num_elements *= size
        return num_elements * self.dtype(name).itemsize

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        stored = self._files[name].get_slice(name).get_dtype()
        if stored not in STORED_DTYPES:
            raise CheckpointRefused(
                f"{self._folder}: tensor {name} is stored as {stored}; lean models read {', '.join(STORED_DTYPES)}"
            )
        return STORED_DTYPES[stored]

    def compare(self, shapes: dict[str, tuple[int, ...]], *, is_tied: bool) -> None:
        """Refuse a checkpoint whose names, shapes or kinds of numbers are not the model's."""
        if missing := [name for name in shapes if name not in self._files]:
            raise CheckpointRefused(f"{self._folder}: the checkpoint lacks {len(missing)} tensors, first {missing[0]}")
        allowed = shapes.keys() | ({_HEAD} if is_tied else set())
        for name in [name for name in self._files if name.endswith(_RECOMPUTED)]:
            del self._files[name]
        if extra := sorted(self._files.keys() - allowed):
            raise CheckpointRefused(
                f"{self._folder}: the checkpoint has {len(extra)} tensors that its config.json does not use, first "
                f"{extra[0]}"
            )
        for name, shape in shapes.items():
            if self.shape(name) != shape:
                raise CheckpointRefused(
                    f"{self._folder}: tensor {name} has shape {list(self.shape(name))}, config.json asks for "
                    f"{list(shape)}"
                )
            self.dtype(name)

    def read(self, name: str, target: torch.Tensor, part: tuple[slice, ...] = ()) -> None:
        """Copy one tensor, or a part, to its place, converted; pages of the file are read as they are copied."""
        file = self._files[name]
        target.copy_(file.get_slice(name)[part] if part else file.get_tensor(name))
        least, greatest = target.aminmax()  # NaN propagates, and nothing of the tensor's size is allocated
        if not bool(least.isfinite() & greatest.isfinite()):
            dtype = str(target.dtype).removeprefix("torch.")
            raise ModelLoadError(f"{self._folder}: tensor {name} holds NaN or values that are infinite in {dtype}")

    def refuse_other_head(self, embed: torch.Tensor) -> None:
        """A tied head may be stored too, but then it must be the embedding."""
        head = self._files[_HEAD].get_tensor(_HEAD).to(embed)
        if head.shape != embed.shape or not torch.equal(head, embed):
            raise CheckpointRefused(
                f"{self._folder}: config.json ties {_HEAD} to {EMBED}, but the checkpoint has another {_HEAD}"
            )


def _allocate(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def layer() -> LayerWeights:
        num_qkv = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        return LayerWeights(
            input_norm=empty(spec.hidden_size),
            qkv=empty(num_qkv, spec.hidden_size),
            qkv_bias=empty(num_qkv) if spec.has_qkv_bias else None,
            q_norm=empty(spec.head_dim) if spec.has_qk_norm else None,
            k_norm=empty(spec.head_dim) if spec.has_qk_norm else None,
            o=empty(spec.hidden_size, spec.num_heads * spec.head_dim),
            post_norm=empty(spec.hidden_size),
            gate_up=empty(2 * spec.intermediate_size, spec.hidden_size),
            down=empty(spec.hidden_size, spec.intermediate_size),
        )

    embed = empty(spec.vocab_size, spec.hidden_size)
    head = embed if spec.is_tied else empty(spec.vocab_size, spec.hidden_size)
    return ModelWeights(embed, [layer() for _ in spec.layers], empty(spec.hidden_size), head)


def _targets(spec: ModelSpec, weights: ModelWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint with the part of the weights that it fills."""
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield EMBED, weights.embed
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        yield prefix + "input_layernorm.weight", layer.input_norm
        for name, part in zip("qkv", torch.split(layer.qkv, [query, key, key]), strict=True):
            yield f"{prefix}self_attn.{name}_proj.weight", part
        if layer.qkv_bias is not None:
            for name, part in zip("qkv", torch.split(layer.qkv_bias, [query, key, key]), strict=True):
                yield f"{prefix}self_attn.{name}_proj.bias", part
        if layer.q_norm is not None and layer.k_norm is not None:
            yield prefix + "self_attn.q_norm.weight", layer.q_norm
            yield prefix + "self_attn.k_norm.weight", layer.k_norm
        yield prefix + "self_attn.o_proj.weight", layer.o
        yield prefix + "post_attention_layernorm.weight", layer.post_norm
        for name, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
            yield f"{prefix}mlp.{name}_proj.weight", part
        yield prefix + "mlp.down_proj.weight", layer.down
    yield "model.norm.weight", weights.final_norm
    if not spec.is_tied:
        yield _HEAD, weights.head


def weight_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What the weights of a model, or of a part, take in memory."""
    weights = _allocate(spec, dtype, torch.device("meta"))
    return sum(target.nbytes for _, target in _targets(spec, weights))


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    shapeless = _allocate(spec, torch.float32, torch.device("meta"))
    return {name: tuple(target.shape) for name, target in _targets(spec, shapeless)}
