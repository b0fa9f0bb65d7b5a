"""Loads a draft model for a target: the same tokenizer, warmed up, with KV slots for many sessions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.batch import chain
from specedge.model.embedded import resolve_model
from specedge.model.engines import (
    Engine,
    EngineRefused,
    LeanCheckpoint,
    LoadedModel,
    graph_bytes_of,
    kv_bytes_of,
    load_for,
    make_runner,
)
from specedge.model.memory import require_memory
from specedge.model.quantization import Quantization, quantize_lean, quantize_modules
from specedge.model.runner import ModelRunner
from specedge.tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint

MakeRunner = Callable[[Any, int], ModelRunner]
"""From a loaded model and a number of KV slots; benchmarks put their own here."""

_WARM_UP_ROWS = (1, 8, 32, 128)


def load_draft_model(settings: DrafterSettings, target_tokenizer: Tokenizer) -> LoadedModel:
    """Load the weights of the draft model that the settings name; they must name one.

    Args:
        settings: the process's.
        target_tokenizer: the draft model's must have the same fingerprint.

    Raises:
        ModelLoadError: it cannot be loaded, or the tokenizers differ.
    """
    assert settings.draft_model is not None, "without a draft model there is nothing to load"
    path = resolve_model(settings.draft_model, "draft")
    own, other = tokenizer_fingerprint(target_tokenizer), tokenizer_fingerprint(load_tokenizer(path))
    if own != other:
        raise ModelLoadError(
            f"the tokenizers of target_model {settings.target_model} ({own}) and draft_model {settings.draft_model} "
            f"({other}) differ; a draft model must share the target's tokenizer"
        )
    if settings.draft_quantization == "none":
        return _load(settings, path, settings.engine, settings.dtype)
    return _load_quantized(settings, path, settings.draft_quantization)


def _load(settings: DrafterSettings, path: str, engine: Engine, dtype: str) -> LoadedModel:
    return load_for(
        engine, path, settings.device, dtype, attention=settings.attention, graph_bytes=settings.graph_bytes
    )


def _load_quantized(settings: DrafterSettings, path: str, quantization: Quantization) -> LoadedModel:
    """Load a draft model for an engine that computes with torch, and quantise it."""
    if settings.engine == "native":
        raise ModelLoadError(
            f"draft_quantization {quantization}: engine native takes unquantised weights only; set engine to auto, "
            "lean or transformers"
        )
    # The 4-bit kernels compute in bfloat16; on the CPU they are many times slower in float32.
    dtype = "bfloat16" if quantization == "int4" and settings.dtype == "auto" else settings.dtype
    try:
        model = _load(settings, path, "lean" if settings.engine == "auto" else settings.engine, dtype)
    except EngineRefused:
        if settings.engine != "auto":
            raise
        model = _load(settings, path, "transformers", dtype)
    if isinstance(model, LeanCheckpoint):
        quantize_lean(model.weights, quantization)
    else:
        quantize_modules(model, quantization)
    return model


def draft_runner(
    model: LoadedModel, drafting: DraftingSettings, num_slots: int, make_runner: MakeRunner = make_runner
) -> tuple[ModelRunner, DraftingSettings]:
    """Give a draft model its KV cache and warm it up.

    Args:
        model: as loaded.
        drafting: how sessions are to draft.
        num_slots: KV slots, in tokens.
        make_runner: makes the runner.

    Returns:
        The runner, and `drafting` held to the positions that the model knows.

    Raises:
        ModelLoadError: its KV cache and graphs do not fit the device.
    """
    require_memory(
        num_slots * kv_bytes_of(model) + graph_bytes_of(model),
        model.device,
        f"num_draft_slots {num_slots} and graph_memory_mib of the draft model need",
        "lower num_draft_slots or graph_memory_mib",
    )
    runner = make_runner(model, num_slots)
    for num_rows in _WARM_UP_ROWS:
        if num_rows <= runner.num_slots:
            runner.forward(chain(num_rows))
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return runner, drafting if positions is None else replace(drafting, max_positions=positions)
