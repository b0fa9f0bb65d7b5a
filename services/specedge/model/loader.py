"""Loads a causal language model from a local folder or the Hugging Face hub, or says why it cannot.

transformers' model code takes seconds to import, so only the functions that use it do.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from specedge.errors import ModelLoadError, SpecEdgeError
from specedge.model.checkpoint import check_model_folder, local_folder, read_json
from specedge.model.config import PlainConfig, load_config
from specedge.model.ranks import Ranks
from specedge.wire.messages import DefaultSampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)

PROGRESS_FROM_BYTES = 256 * 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's makers recommend for fields a request leaves out, and the tokens that end a text."""

    sampling: DefaultSampling
    eos_ids: tuple[int, ...]


def resolve_device(name: str) -> torch.device:
    """The device for a `device` setting: auto is the first CUDA device, or the CPU where there is none.

    Raises:
        ModelLoadError: the device is not in this machine, or there is none of this name.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        device = torch.device("cuda:0" if name == "cuda" else name)
    except RuntimeError:
        raise ModelLoadError(f"device {name}: allowed is auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelLoadError(f"device {name}: this machine has {count} usable CUDA devices")
    return device


def load_model(
    path_or_id: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "specedge_paged",
    ranks: Ranks | None = None,
) -> "PreTrainedModel":
    """Load a causal language model in evaluation mode.

    Args:
        path_or_id: a local folder, or a Hugging Face id.
        device: auto, cpu, cuda or cuda:N.
        dtype: float32, bfloat16, float16, or auto: the checkpoint's own on CUDA, float32 on the CPU.
        attention: name of a registered attention function.
        ranks: that divide the model as its makers' plan says, and all load it now; `device` is this one's own.

    Raises:
        ModelLoadError: names the folder or id, and the reason. A checkpoint that lacks weights is refused.
    """
    started = time.monotonic()
    target_device = resolve_device(device)
    size = _check_local(path_or_id)
    from transformers import AutoModelForCausalLM

    import specedge.model.transformers_attention  # noqa: F401  (registers the attention function)

    arguments: dict[str, Any] = {
        "dtype": resolve_dtype(dtype, target_device),
        "attn_implementation": attention,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if ranks is not None:
        arguments["distributed_config"] = _division(path_or_id, ranks, target_device)
    elif target_device.type == "cuda" and find_spec("accelerate") is not None:
        arguments["device_map"] = {"": target_device}
    logger.info("loading %s on %s", path_or_id, target_device)
    with _translated_errors(path_or_id), _transformers_output(show_progress=size is None or size > PROGRESS_FROM_BYTES):
        _refuse_encoder_decoder(path_or_id)
        model, report = cast(Any, AutoModelForCausalLM).from_pretrained(path_or_id, **arguments)
        _refuse_incomplete(path_or_id, report)
        placed = model.to(target_device) if ranks is None else model
        model = cast("PreTrainedModel", placed.eval().requires_grad_(False))
    logger.info(
        "loaded %s: %s, %.1f M parameters, %s, %.1f s",
        path_or_id,
        type(model).__name__,
        model.num_parameters() / 1e6,
        str(model.dtype).removeprefix("torch."),
        time.monotonic() - started,
    )
    return model


def _division(path_or_id: str, ranks: Ranks, device: torch.device) -> Any:
    """How transformers is to divide a model among all ranks."""
    if find_spec("accelerate") is None:
        raise ModelLoadError(
            f"{path_or_id}: tensor_parallel_size {ranks.size} with engine transformers needs accelerate; install it by "
            "pip install 'specedge[gpu]'"
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise ModelLoadError(
            f"{path_or_id}: transformers divides models among this machine's CUDA devices, not the CPU"
        )
    with _translated_errors(path_or_id):
        config = _auto_config(path_or_id)
        text = config.get_text_config()
        if not getattr(text, "base_model_tp_plan", None):
            raise ModelLoadError(
                f"{path_or_id}: transformers has no plan to divide a {text.model_type}; set tensor_parallel_size to 1"
            )
        for name in ("num_attention_heads", "num_key_value_heads"):
            if (count := getattr(text, name, None)) and count % ranks.size:
                raise ModelLoadError(
                    f"{path_or_id}: tensor_parallel_size {ranks.size} does not divide {name} {count}, which engine "
                    "transformers needs"
                )
        from transformers.distributed.configuration_utils import DistributedConfig

        return DistributedConfig(tp_size=ranks.size)


def load_generation_defaults(path_or_id: str, tokenizer: "PreTrainedTokenizerBase | None" = None) -> GenerationDefaults:
    """What the model's `generation_config` recommends; neutral where it says nothing or there is none.

    Args:
        path_or_id: a local folder, or a Hugging Face id.
        tokenizer: its end-of-text token joins the tokens that end a text.

    Raises:
        ModelLoadError: the configuration cannot be read.
    """
    with _translated_errors(path_or_id), _transformers_output(show_progress=False):
        folder = local_folder(path_or_id)
        if folder is not None and (folder / "generation_config.json").is_file():
            read_json(folder / "generation_config.json")
        model_config = load_config(folder) if folder is not None else _auto_config(path_or_id)
        from transformers import GenerationConfig

        try:
            config = GenerationConfig.from_pretrained(path_or_id)
        except OSError:
            is_plain = isinstance(model_config, PlainConfig)
            config = GenerationConfig() if is_plain else GenerationConfig.from_model_config(model_config)
    ends = [config.eos_token_id, model_config.eos_token_id, tokenizer.eos_token_id if tokenizer is not None else None]
    eos_ids = {token for end in ends if end is not None for token in (end if isinstance(end, list) else [end])}
    neutral = DefaultSampling()
    sampling = DefaultSampling(
        temperature=_or_default(config.temperature, neutral.temperature),
        top_p=_or_default(config.top_p, neutral.top_p),
        top_k=_or_default(config.top_k, neutral.top_k),
        min_p=_or_default(config.min_p, neutral.min_p),
        repetition_penalty=_or_default(config.repetition_penalty, neutral.repetition_penalty),
    )
    return GenerationDefaults(sampling, tuple(sorted(eos_ids)))


def _or_default(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _check_local(path_or_id: str) -> int | None:
    """The size of a local folder's weights in bytes, after checking it; None for a Hugging Face id."""
    folder = local_folder(path_or_id)
    return None if folder is None else check_model_folder(folder)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | Literal["auto"]:
    """The number format for a `dtype` setting: auto is the checkpoint's own on CUDA and float32 on the CPU.

    Raises:
        ModelLoadError: there is no such format.
    """
    if name == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name}: allowed is auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _auto_config(path_or_id: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path_or_id)


def _refuse_encoder_decoder(path_or_id: str) -> None:
    config = _auto_config(path_or_id)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(f"{path_or_id}: {config.model_type} is an encoder-decoder; only decoders can be served")


def _refuse_incomplete(path_or_id: str, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would have filled with random numbers."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ModelLoadError(
            f"{path_or_id}: {len(mismatched)} weights do not have the shape that config.json asks for, first {name}: "
            f"{list(found)} instead of {list(expected)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(f"{path_or_id}: the checkpoint lacks {len(missing)} weights, first {missing[0]}")
    if report.get("error_msgs"):
        raise ModelLoadError(f"{path_or_id}: {report['error_msgs'][0]}")
    if unexpected := sorted(report["unexpected_keys"]):
        logger.warning(
            "%s: the checkpoint has %d weights that its config.json does not use, first %s",
            path_or_id,
            len(unexpected),
            unexpected[0],
        )


@contextmanager
def _translated_errors(path_or_id: str) -> Iterator[None]:
    """Everything transformers, safetensors and the hub raise becomes a ModelLoadError that names the model."""
    try:
        yield
    except SpecEdgeError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(f"{path_or_id}: does not fit into the device's memory ({_first_line(error)})") from error
    except Exception as error:
        is_hub_name = local_folder(path_or_id) is None
        where = "there is no such local folder, and as a Hugging Face id it cannot be loaded: " if is_hub_name else ""
        raise ModelLoadError(f"{path_or_id}: {where}{_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):  # an activation or rope type, looked up in a table
        return f"transformers does not know {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


@contextmanager
def _transformers_output(show_progress: bool) -> Iterator[None]:
    """Silence transformers' own reports, which our errors and log lines replace; keep its bar for large models."""
    from transformers.utils import logging as transformers_logging

    verbosity, was_bar_on = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not show_progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if was_bar_on:
            transformers_logging.enable_progress_bar()
