"""What runs a model: plain C on the CPU (`native`), lean torch (`lean`), or the model's code in transformers.

`transformers` runs every model. The other two know the dense families of `specedge.model.lean.spec` in local folders;
the native engine needs a C compiler once, and computes in float32 whatever the checkpoint stores.
"""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from specedge.errors import ModelLoadError
from specedge.model.attention.for_lean import backend_attention
from specedge.model.checkpoint import check_model_folder, local_folder
from specedge.model.config import load_config
from specedge.model.lean.runner import LeanRunner
from specedge.model.lean.spec import ModelSpec, spec_of
from specedge.model.lean.weights import ModelWeights, load_weights
from specedge.model.loader import PROGRESS_FROM_BYTES, load_model, resolve_device, resolve_dtype
from specedge.model.native import load_native
from specedge.model.native.engine import unsupported
from specedge.model.native.runner import NativeRunner
from specedge.model.runner import ModelRunner, TransformersRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


LoadedModel: TypeAlias = "LeanCheckpoint | PreTrainedModel"


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
    try:
        return _load_lean(path_or_id, resolve_device(device), dtype, "native" if engine == "auto" else engine)
    except _Refused:
        if engine != "auto":
            raise
        return load_model(path_or_id, device, dtype)


class _Refused(ModelLoadError):
    """An engine does not take this model, device or number format; another one may."""


def _load_lean(path_or_id: str, device: torch.device, dtype: str, engine: str) -> LeanCheckpoint:
    """Read a checkpoint; for the native engine as it is stored, with keys and values in float32."""
    started_s, is_native = monotonic(), engine == "native"
    folder = local_folder(path_or_id)
    if folder is None:
        raise _Refused(f"{path_or_id}: engine {engine} takes models in local folders")
    if is_native and (device.type != "cpu" or dtype not in ("auto", "float32")):
        raise _Refused(f"engine native computes in float32 on the CPU, not in {dtype} on {device}")
    num_bytes = check_model_folder(folder)
    config = load_config(folder)
    try:
        spec = spec_of(config)
    except ModelLoadError as error:
        raise _Refused(f"{path_or_id}: engine {engine} cannot run it: {error}") from error
    library = _native_library_for(path_or_id, spec) if is_native else None
    weights = load_weights(
        folder,
        spec,
        dtype="auto" if is_native else resolve_dtype(dtype, device),
        device=device,
        progress=num_bytes > PROGRESS_FROM_BYTES,
    )
    logger.info("loaded %s: %s engine, %s, %.1f s", folder, engine, device, monotonic() - started_s)
    kv_dtype = torch.float32 if is_native else weights.embed.dtype
    return LeanCheckpoint(config, spec, weights, kv_dtype, device, library)


def _native_library_for(path_or_id: str, spec: ModelSpec) -> ctypes.CDLL:
    if reason := unsupported(spec):
        raise _Refused(f"{path_or_id}: engine native cannot run it: {reason}")
    if (library := _native_library()) is None:
        raise _Refused(f"{path_or_id}: engine native cannot run it: there is no native library; see the log")
    return library


@cache
def _native_library() -> ctypes.CDLL | None:
    return load_native()


def make_runner(model: LoadedModel, num_slots: int) -> ModelRunner:
    """What runs a loaded model, with a KV cache of so many tokens."""
    if not isinstance(model, LeanCheckpoint):
        return TransformersRunner(model, num_slots)
    if model.library is None:
        is_cuda = model.device.type == "cuda"
        return LeanRunner(model.spec, model.weights, num_slots, make_attention=backend_attention if is_cuda else None)
    return NativeRunner(model.library, model.spec, model.weights, num_slots)
