"""What runs a model: plain C on the CPU (`native`), lean torch (`lean`), or the model's code in transformers.

`transformers` runs every model. The other two know the dense families of `specedge.model.lean.spec` in local folders;
the native engine needs a C compiler once, and computes in float32 whatever the checkpoint stores.
"""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias

import torch
from transformers import AutoConfig, PreTrainedModel

from specedge.errors import ModelLoadError
from specedge.model.attention.for_lean import backend_attention
from specedge.model.checkpoint import check_model_folder, local_folder
from specedge.model.lean.runner import LeanRunner
from specedge.model.lean.spec import ModelSpec, spec_of
from specedge.model.lean.weights import ModelWeights, load_weights
from specedge.model.loader import DTYPES, PROGRESS_FROM_BYTES, load_model, resolve_device
from specedge.model.native import load_native
from specedge.model.native.engine import unsupported
from specedge.model.native.runner import NativeRunner
from specedge.model.runner import ModelRunner, TransformersRunner

logger = logging.getLogger(__name__)

Engine = Literal["auto", "native", "lean", "transformers"]


@dataclass(frozen=True, slots=True)
class LeanCheckpoint:
    """A loaded model of a dense family.

    Attributes:
        config: transformers' configuration.
        dtype: of keys and values.
        library: the native engine's, if that runs it.
    """

    config: Any
    spec: ModelSpec
    weights: ModelWeights
    dtype: torch.dtype
    device: torch.device
    library: ctypes.CDLL | None


LoadedModel: TypeAlias = LeanCheckpoint | PreTrainedModel


def load_for(engine: Engine, path_or_id: str, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a model for an engine.

    Args:
        engine: auto is native where it can be had for a local model in float32 on the CPU, else transformers.
        path_or_id, device, dtype: as for `load_model`.

    Raises:
        ModelLoadError: the model cannot be loaded, or the engine named does not take it.
    """
    if engine == "transformers":
        return load_model(path_or_id, device, dtype)
    where, folder = resolve_device(device), local_folder(path_or_id)
    wants_native = engine == "native" or (engine == "auto" and where.type == "cpu" and dtype in ("auto", "float32"))
    if engine == "auto":
        if not wants_native or folder is None or (reason := _native_refusal(folder)):
            return load_model(path_or_id, device, dtype)
    elif folder is None:
        raise ModelLoadError(f"{path_or_id}: engine {engine} takes models in local folders")
    elif wants_native and (where.type != "cpu" or dtype not in ("auto", "float32")):
        raise ModelLoadError(f"engine native computes in float32 on the CPU, not in {dtype} on {where}")
    elif wants_native and (reason := _native_refusal(folder)):
        raise ModelLoadError(f"{path_or_id}: engine native cannot run it: {reason}")
    return _load_lean(folder, where, dtype, is_native=wants_native)


@cache
def _native_library() -> ctypes.CDLL | None:
    return load_native()


def _native_refusal(folder: Path) -> str:
    """Why the native engine does not run a model; empty where it does."""
    check_model_folder(folder)
    try:
        spec = spec_of(AutoConfig.from_pretrained(folder))
    except ModelLoadError as error:
        return str(error)
    return unsupported(spec) or ("" if _native_library() is not None else "there is no native library; see the log")


def _load_lean(folder: Path, device: torch.device, dtype: str, *, is_native: bool) -> LeanCheckpoint:
    started_s = monotonic()
    num_bytes = check_model_folder(folder)
    config = AutoConfig.from_pretrained(folder)
    spec = spec_of(config)
    wanted: torch.dtype | Literal["auto"] = DTYPES.get(dtype, "auto")
    if dtype == "auto" and device.type == "cpu":
        wanted = torch.float32
    weights = load_weights(
        folder,
        spec,
        dtype="auto" if is_native else wanted,  # it keeps what is bfloat16 as it is, and computes in float32
        device=device,
        progress=num_bytes > PROGRESS_FROM_BYTES,
    )
    library = _native_library() if is_native else None
    engine, seconds = "native" if is_native else "lean", monotonic() - started_s
    logger.info("loaded %s: %s engine, %s, %.1f s", folder, engine, device, seconds)
    kv_dtype = torch.float32 if is_native else weights.embed.dtype
    return LeanCheckpoint(config, spec, weights, kv_dtype, device, library)


def make_runner(model: LoadedModel, num_slots: int) -> ModelRunner:
    """What runs a loaded model, with a KV cache of so many tokens."""
    if not isinstance(model, LeanCheckpoint):
        return TransformersRunner(model, num_slots)
    if model.library is None:
        is_cuda = model.device.type == "cuda"
        return LeanRunner(model.spec, model.weights, num_slots, make_attention=backend_attention if is_cuda else None)
    return NativeRunner(model.library, model.spec, model.weights, num_slots)
