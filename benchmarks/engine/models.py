"""The engines with the same weights: a checkpoint, or random numbers at the shape of a real model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specedge.errors import SettingsError
from specedge.model.attention.choose import choose_backend
from specedge.model.attention.interface import RecordableBackend
from specedge.model.embedded import Role, resolve_model
from specedge.model.engines import LeanCheckpoint, load_for, make_runner
from specedge.model.lean.spec import ModelSpec, spec_of
from specedge.model.lean.weights import LayerWeights, ModelWeights
from specedge.model.native import load_native
from specedge.model.runner import ModelRunner, TransformersRunner
from specedge.model.transformers_attention import ATTENTION_NAME
from specedge_bench.model_shape import BUILT_IN, ModelShape
from specedge_bench.shapes import read_model

EngineName = Literal["transformers", "lean", "native"]
ENGINES: tuple[EngineName, ...] = ("transformers", "lean", "native")
WEIGHT_STD = 0.02
GRAPH_BYTES = 2 << 30  # as the setting graph_memory_mib has it
TINY = ModelShape("tiny", 64, 128, 2, 4, 2, 16, 256, is_tied=True)
SHAPES = {shape.name.lower(): shape for shape in (*BUILT_IN.values(), TINY)}


class EngineRefused(SettingsError):
    """An engine or a shape that cannot be measured here; names it and what is known."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model behind several engines.

    Attributes:
        weight_dtype: as the checkpoint stores it, which is the least that has to be read.
        make: the runner of an engine, with so many KV slots.
    """

    name: str
    shape: ModelShape
    max_positions: int
    weight_dtype: torch.dtype
    make: Callable[[EngineName, int], ModelRunner]


def check_engines(engines: Sequence[EngineName], device: torch.device) -> None:
    """Refuse what cannot run on a device.

    Raises:
        EngineRefused: the native engine on a GPU.
    """
    if "native" in engines and device.type != "cpu":
        raise EngineRefused(f"engine native computes on the CPU, not on {device}; measure transformers and lean there")


def find(name: str) -> ModelShape:
    """A shape by its name, in any case.

    Raises:
        EngineRefused: names the known ones.
    """
    if (shape := SHAPES.get(name.lower())) is None:
        raise EngineRefused(f"shape {name}: known are {', '.join(SHAPES)}")
    return shape


def embedded(role: Role, device: torch.device, dtype: str) -> Loaded:
    """A model of the embedded pair, from its checkpoint."""
    folder = resolve_model("demo", role)
    shape, _ = read_model(folder)
    config = AutoConfig.from_pretrained(folder)

    def make(engine: EngineName, num_slots: int) -> ModelRunner:
        wanted = "auto" if engine == "native" else dtype
        return make_runner(load_for(engine, folder, str(device), wanted, graph_bytes=GRAPH_BYTES), num_slots)

    return Loaded(f"embedded {role}", shape, int(config.max_position_embeddings), config.dtype, make)


def random_model(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Random weights, in memory once for all engines."""
    fields = {key: value for key, value in shape.to_config().items() if key != "model_type"}
    config = AutoConfig.for_model(shape.model_type, **fields)
    spec = spec_of(config)
    weights = random_weights(spec, device, dtype)

    def make(engine: EngineName, num_slots: int) -> ModelRunner:
        if engine == "transformers":
            return TransformersRunner(_in_transformers(config, spec, weights), num_slots)
        library = load_native() if engine == "native" else None
        if engine == "native" and library is None:
            raise EngineRefused("engine native: there is no native library here; see the log")
        if library is not None:
            return make_runner(LeanCheckpoint(config, spec, weights, torch.float32, device, library), num_slots)
        backend = None
        if device.type == "cuda":
            heads = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads}
            backend = choose_backend(device, dtype, spec.head_dim, "auto", **heads)
        graph_bytes = GRAPH_BYTES if isinstance(backend, RecordableBackend) else 0
        return make_runner(
            LeanCheckpoint(config, spec, weights, dtype, device, backend=backend, graph_bytes=graph_bytes), num_slots
        )

    return Loaded(shape.name, shape, int(config.max_position_embeddings), dtype, make)


def random_weights(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> ModelWeights:
    """Normal numbers, made on the device; norms are one."""

    def matrix(num_outputs: int, num_inputs: int) -> torch.Tensor:
        return torch.empty((num_outputs, num_inputs), device=device, dtype=dtype).normal_(std=WEIGHT_STD)

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, device=device, dtype=dtype)

    def layer() -> LayerWeights:
        num_qkv = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        return LayerWeights(
            input_norm=ones(spec.hidden_size),
            qkv=matrix(num_qkv, spec.hidden_size),
            qkv_bias=None,
            q_norm=ones(spec.head_dim) if spec.has_qk_norm else None,
            k_norm=ones(spec.head_dim) if spec.has_qk_norm else None,
            o=matrix(spec.hidden_size, spec.num_heads * spec.head_dim),
            post_norm=ones(spec.hidden_size),
            gate_up=matrix(2 * spec.intermediate_size, spec.hidden_size),
            down=matrix(spec.hidden_size, spec.intermediate_size),
        )

    torch.manual_seed(0)
    embed = matrix(spec.vocab_size, spec.hidden_size)
    head = embed if spec.is_tied else matrix(spec.vocab_size, spec.hidden_size)
    return ModelWeights(embed, [layer() for _ in spec.layers], ones(spec.hidden_size), head)


def _in_transformers(config: Any, spec: ModelSpec, weights: ModelWeights) -> Any:
    """transformers' model over the same memory: its parameters are parts of the fused ones."""
    with torch.device("meta"):
        model = cast(Any, AutoModelForCausalLM).from_config(config, attn_implementation=ATTENTION_NAME)
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    parts = {"model.embed_tokens": weights.embed, "model.norm": weights.final_norm, "lm_head": weights.head}
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        gate, up = layer.gate_up.chunk(2)
        queries, keys, values = torch.split(layer.qkv, [query, key, key])
        parts |= {
            f"{prefix}.self_attn.q_proj": queries,
            f"{prefix}.self_attn.k_proj": keys,
            f"{prefix}.self_attn.v_proj": values,
            f"{prefix}.input_layernorm": layer.input_norm,
            f"{prefix}.post_attention_layernorm": layer.post_norm,
            f"{prefix}.self_attn.o_proj": layer.o,
            f"{prefix}.mlp.gate_proj": gate,
            f"{prefix}.mlp.up_proj": up,
            f"{prefix}.mlp.down_proj": layer.down,
        }
        if layer.q_norm is not None and layer.k_norm is not None:
            parts |= {f"{prefix}.self_attn.q_norm": layer.q_norm, f"{prefix}.self_attn.k_norm": layer.k_norm}
    for name, tensor in parts.items():
        model.get_submodule(name).weight = torch.nn.Parameter(tensor, requires_grad=False)
    # Frequencies are computed, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(weights.embed.device)
    return model.eval()
