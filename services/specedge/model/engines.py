"""What runs a model: plain C on the CPU (`native`), lean torch (`lean`), or the model's code in transformers.

`transformers` runs every model. The other two know the dense families of `specedge.model.lean.spec`, stored as
safetensors in a local folder or on the Hugging Face hub; the native engine needs a C compiler once, and computes in
float32 whatever weights, keys and values are stored in.
"""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from specedge.errors import ModelLoadError
from specedge.model.attention.choose import BackendName, choose_backend
from specedge.model.attention.interface import AttentionBackend, RecordableBackend
from specedge.model.checkpoint import check_model_folder, local_folder, stored_tensors
from specedge.model.config import load_config
from specedge.model.execution import Execution, graphs_of
from specedge.model.hub import NoSafetensors, fetch_config, fetch_weights
from specedge.model.kv_cache import KVCache, kv_shape
from specedge.model.lean.row_bucket import ROW_BUCKETS
from specedge.model.lean.runner import LeanRunner
from specedge.model.lean.shard import ModelShard, shard_of
from specedge.model.lean.spec import ModelSpec, spec_of
from specedge.model.lean.weights import (
    EMBED,
    STORED_DTYPES,
    CheckpointRefused,
    ModelWeights,
    load_weights,
    weight_bytes,
)
from specedge.model.loader import PROGRESS_FROM_BYTES, load_model, resolve_device, resolve_dtype
from specedge.model.memory import require_memory
from specedge.model.native import load_native
from specedge.model.native.engine import unsupported
from specedge.model.native.runner import NativeRunner
from specedge.model.ranks import Ranks
from specedge.model.runner import ModelRunner, TransformersRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Engine = Literal["auto", "native", "lean", "transformers"]

_NATIVE_DTYPES = ("auto", "float32", "bfloat16")
_PACKED_BYTES = 2  # of a value that the native engine packs beside the weights it reads, at least


@dataclass(frozen=True, slots=True)
class LeanCheckpoint:
    """A loaded model of a dense family.

    Attributes:
        config: transformers' configuration.
        spec, weights: the whole model's, or one tensor-parallel rank's; nothing else says how many heads there are.
        dtype: of keys and values.
        library: the native engine's, if that runs it.
        backend: of the lean engine's attention; None: the reference, session by session.
        graph_bytes: device memory that recorded forwards may take; 0: none are recorded.
        ranks: those that hold the other parts of the model.
    """

    config: Any
    spec: ModelSpec
    weights: ModelWeights
    dtype: torch.dtype
    device: torch.device
    library: ctypes.CDLL | None = None
    backend: AttentionBackend | None = None
    graph_bytes: int = 0
    ranks: Ranks | None = None


LoadedModel: TypeAlias = "LeanCheckpoint | PreTrainedModel"


class EngineRefused(ModelLoadError):
    """An engine does not take this model, device, number format or attention backend; another one may."""


def load_for(
    engine: Engine,
    path_or_id: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    attention: BackendName = "auto",
    graph_bytes: int = 0,
    ranks: Ranks | None = None,
) -> LoadedModel:
    """Load a model for an engine.

    Args:
        engine: auto is native where it can be had (float32 or bfloat16 on the CPU), else lean, and transformers for
            every model that those two do not take; why they do not is logged.
        path_or_id, device, dtype: as for `load_model`.
        attention: the backend that computes attention; native has its own, transformers has sdpa only.
        graph_bytes: device memory that CUDA graphs of the lean engine may take; 0: it runs without.
        ranks: those that load the other parts; `device` is this one's own. Native is not divided.

    Raises:
        ModelLoadError: the model cannot be loaded, divided or does not fit, or the engine named does not take it.
        AttentionUnavailable: the attention backend named cannot serve it.
    """
    place = resolve_device(device)
    if engine != "transformers":
        try:
            return _load_dense(path_or_id, place, dtype, engine, attention, graph_bytes, ranks)
        except EngineRefused as error:
            if engine != "auto":
                raise
            logger.warning("%s; engine transformers is used", error)
    if attention not in ("auto", "sdpa"):
        raise EngineRefused(f"{path_or_id}: engine transformers takes attention auto or sdpa, not {attention}")
    if (folder := local_folder(path_or_id)) is not None:
        file_bytes = check_model_folder(folder)
        whole_bytes = _weight_bytes(folder, resolve_dtype(dtype, place)) or file_bytes
        _require_room(path_or_id, whole_bytes // (1 if ranks is None else ranks.size), place)
    return load_model(path_or_id, device, dtype, ranks=ranks)


def _load_dense(
    path_or_id: str,
    device: torch.device,
    dtype: str,
    engine: Engine,
    attention: BackendName,
    graph_bytes: int,
    ranks: Ranks | None,
) -> LeanCheckpoint:
    """Read a checkpoint; for the native engine in float32, its weights as they are stored."""
    started_s = monotonic()
    if engine == "native":
        _refuse_for_native(device, dtype, attention)
        if ranks is not None:
            raise EngineRefused(f"engine native is not divided: tensor_parallel_size {ranks.size} takes lean")
    folder = local_folder(path_or_id)
    if folder is not None:
        check_model_folder(folder)
    config = _read_config(path_or_id, fetch_config(path_or_id) if folder is None else folder)
    try:
        spec = spec_of(config)
    except ModelLoadError as error:
        raise EngineRefused(f"{path_or_id}: engine {_dense(engine)} cannot run it: {error}") from error
    shard = None if ranks is None else _shard(path_or_id, spec, ranks)
    library = None
    if ranks is None and (engine == "native" or (engine == "auto" and _is_for_native(device, dtype, attention))):
        library = _library_for(path_or_id, spec, is_required=engine == "native")
    if folder is None:
        try:
            folder = fetch_weights(path_or_id)
        except NoSafetensors as error:
            raise EngineRefused(f"engine {_dense(engine)} reads safetensors: {error}") from error
    num_bytes = check_model_folder(folder)
    is_widened = library is not None and dtype != "bfloat16"
    weights_dtype = _stored_dtype(folder) if is_widened else resolve_dtype(dtype, device)
    if weights_dtype == "auto":
        weights_dtype = _stored_dtype(folder)
    backend = None
    if library is None and not (device.type == "cpu" and attention in ("auto", "sdpa")):
        own = spec if shard is None else shard.spec
        heads = {"num_heads": own.num_heads, "num_kv_heads": own.num_kv_heads}
        backend = choose_backend(device, weights_dtype, spec.head_dim, attention, **heads)
    tied_head = {"lm_head.weight"} if spec.is_tied else set()
    packed_bytes = 0 if library is None else _PACKED_BYTES
    if shard is None:
        needed = _weight_bytes(folder, weights_dtype, packed_bytes, tied_head)
    else:
        needed = weight_bytes(shard.spec, weights_dtype)
    _require_room(path_or_id, needed, device)
    try:
        weights = load_weights(
            folder,
            spec,
            dtype=weights_dtype,
            device=device,
            progress=num_bytes > PROGRESS_FROM_BYTES and (ranks is None or ranks.leads),
            shard=shard,
        )
    except CheckpointRefused as error:
        raise EngineRefused(f"engine {_dense(engine)} does not take the checkpoint: {error}") from error
    logger.info("loaded %s in %.1f s", path_or_id, monotonic() - started_s)
    is_recorded = ranks is None and device.type == "cuda" and isinstance(backend, RecordableBackend)
    return LeanCheckpoint(
        config,
        spec if shard is None else shard.spec,
        weights,
        torch.float32 if is_widened else weights_dtype,
        device,
        library,
        backend,
        graph_bytes if is_recorded else 0,
        ranks,
    )


def _shard(path_or_id: str, spec: ModelSpec, ranks: Ranks) -> ModelShard:
    try:
        return shard_of(spec, ranks.place.rank, ranks.size)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path_or_id}: {error}") from error


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What `load_for` would do with a local model, as far as its headers tell.

    Attributes:
        engine: that would compute it.
        reason: why no faster one would; empty where it is the fastest for the device.
        weight_bytes: of device memory.
        kv_bytes: a token's keys and values; 0 where only transformers knows.
        max_positions: the longest sequence that the model was made for, in tokens; None: unknown.
    """

    engine: str
    reason: str
    weight_bytes: int
    kv_bytes: int
    max_positions: int | None


def foresee(engine: Engine, folder: Path, device: str, dtype: str, attention: BackendName) -> Foreseen:
    """Say what would be loaded, without reading weights, building or testing anything; arguments as for `load_for`.

    Raises:
        ModelLoadError: a file is missing or damaged, or the engine named does not take the model.
    """
    place = resolve_device(device)
    file_bytes = check_model_folder(folder)
    config = _read_config(str(folder), folder)
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    number = resolve_dtype(dtype, place)
    try:
        if engine == "transformers":
            raise EngineRefused("the setting engine names it")
        if engine == "native":
            _refuse_for_native(place, dtype, attention)
        spec = spec_of(config)
        stored = _stored_dtype(folder)
    except ModelLoadError as error:
        if engine not in ("auto", "transformers"):
            raise
        return Foreseen("transformers", str(error), _weight_bytes(folder, number) or file_bytes, 0, positions)
    reason = unsupported(spec) or ""
    if reason and engine == "native":
        raise EngineRefused(f"{folder}: engine native cannot run it: {reason}")
    is_native = engine == "native" or (engine == "auto" and _is_for_native(place, dtype, attention) and not reason)
    is_widened = is_native and dtype != "bfloat16"
    weights_dtype = stored if is_widened or number == "auto" else number
    tied_head = {"lm_head.weight"} if spec.is_tied else set()
    cache_dtype = torch.float32 if is_widened else weights_dtype
    return Foreseen(
        "native" if is_native else "lean",
        reason if place.type == "cpu" else "",
        _weight_bytes(folder, weights_dtype, _PACKED_BYTES if is_native else 0, tied_head),
        KVCache.bytes_per_slot(len(spec.layers), spec.num_kv_heads, spec.head_dim, cache_dtype),
        positions,
    )


def _dense(engine: Engine) -> str:
    return "lean" if engine == "auto" else engine


def _is_for_native(device: torch.device, dtype: str, attention: BackendName) -> bool:
    return device.type == "cpu" and dtype in _NATIVE_DTYPES and attention == "auto"


def _refuse_for_native(device: torch.device, dtype: str, attention: BackendName) -> None:
    if device.type != "cpu" or dtype not in _NATIVE_DTYPES:
        raise EngineRefused(f"engine native runs models in float32 or bfloat16 on the CPU, not in {dtype} on {device}")
    if attention != "auto":
        raise EngineRefused(f"engine native has attention of its own: attention must be auto, not {attention}")


def _read_config(path_or_id: str, folder: Path) -> Any:
    try:
        return load_config(folder)
    # Whatever transformers makes of a configuration, the user gets one line.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(f"{path_or_id}: its configuration cannot be used: {reason}") from error


def _library_for(path_or_id: str, spec: ModelSpec, *, is_required: bool) -> ctypes.CDLL | None:
    """The native library, or None, with a warning, where it does not take the model or cannot be had."""
    reason = unsupported(spec)
    library = None if reason else _native_library()
    if library is None:
        reason = reason or "there is no native library; see the log"
        message = f"{path_or_id}: engine native cannot run it: {reason}"
        if is_required:
            raise EngineRefused(message)
        logger.warning("%s; engine lean is used", message)
    return library


@cache
def _native_library() -> ctypes.CDLL | None:
    return load_native()


def _stored_dtype(folder: Path) -> torch.dtype:
    """The checkpoint's number format: that of its embedding."""
    kind = next((kind for name, kind, _ in stored_tensors(folder) if name == EMBED), None)
    if kind not in STORED_DTYPES:
        found = f"the checkpoint lacks {EMBED}" if kind is None else f"{EMBED} is stored as {kind}"
        raise EngineRefused(f"{folder}: {found}; engines native and lean read {', '.join(STORED_DTYPES)}")
    return STORED_DTYPES[kind]


def _weight_bytes(
    folder: Path, dtype: torch.dtype | Literal["auto"], extra_bytes: int = 0, without: set[str] | None = None
) -> int:
    """What a folder's tensors take in memory; 0 where they are not stored as safetensors.

    Args:
        dtype: of all of them; auto: as each is stored.
        extra_bytes: for each value, besides.
        without: tensors that are not kept.
    """
    num_bytes = 0
    for name, kind, num_values in stored_tensors(folder):
        if without is None or name not in without:
            stored = STORED_DTYPES.get(kind)
            item_bytes = 1 if stored is None else stored.itemsize if dtype == "auto" else dtype.itemsize
            num_bytes += num_values * (item_bytes + extra_bytes)
    return num_bytes


def _require_room(path_or_id: str, num_bytes: int, device: torch.device) -> None:
    require_memory(
        num_bytes,
        device,
        f"{path_or_id}: the weights need",
        "take a smaller dtype, another device or a smaller model",
    )


def make_runner(model: LoadedModel, num_slots: int) -> ModelRunner:
    """What runs a loaded model, with a KV cache of so many tokens."""
    if not isinstance(model, LeanCheckpoint):
        return TransformersRunner(model, num_slots)
    if model.library is not None:
        return NativeRunner(model.library, model.spec, model.weights, num_slots, kv_dtype=model.dtype)
    return LeanRunner(
        model.spec,
        model.weights,
        num_slots,
        backend=model.backend,
        row_buckets=ROW_BUCKETS if model.graph_bytes else (),
        max_graph_bytes=model.graph_bytes,
        ranks=model.ranks,
    )


def graph_bytes_of(model: LoadedModel) -> int:
    """Device memory that `make_runner` may record forwards in."""
    return model.graph_bytes if isinstance(model, LeanCheckpoint) else 0


def kv_bytes_of(model: LoadedModel) -> int:
    """What a token's keys and values take in the runner's cache, in bytes."""
    if isinstance(model, LeanCheckpoint):
        spec = model.spec
        return KVCache.bytes_per_slot(len(spec.layers), spec.num_kv_heads, spec.head_dim, model.dtype)
    return KVCache.bytes_per_slot(**kv_shape(model.config), dtype=model.dtype)


def execution_of(model: LoadedModel, runner: object, quantization: str = "none") -> Execution:
    """What was chosen for a model, to be shown.

    Args:
        runner: what runs it.
        quantization: of its weights.
    """
    engine, attention = "transformers", "sdpa"
    if isinstance(model, LeanCheckpoint) and model.library is not None:
        engine, attention = "native", "native"
    elif isinstance(model, LeanCheckpoint):
        engine, attention = "lean", "sdpa" if model.backend is None else model.backend.name
    return Execution(
        engine=engine,
        attention=attention,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        graphs=graphs_of(runner.row_buckets if isinstance(runner, LeanRunner) else ()),
        quantization=quantization,
    )
