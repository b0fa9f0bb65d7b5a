"""Configurations of models in local folders, without transformers where `config.json` leaves nothing to be filled in.

transformers fills in what a family's file may leave out, rewrites older spellings and checks values; importing that
takes seconds. A file that says everything in plain values needs none of it, and every other file goes there.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from specedge.model.checkpoint import read_json

_INT, _FLAG = (int,), (bool,)
_COMMON: Final[dict[str, tuple[type, ...]]] = {
    "vocab_size": _INT,
    "hidden_size": _INT,
    "intermediate_size": _INT,
    "num_hidden_layers": _INT,
    "num_attention_heads": _INT,
    "num_key_value_heads": _INT,
    "max_position_embeddings": _INT,
    "rms_norm_eps": (float,),
    "hidden_act": (str,),
    "tie_word_embeddings": _FLAG,
}
_WINDOWS: Final[dict[str, tuple[type, ...]]] = {
    "use_sliding_window": _FLAG,
    "sliding_window": (int, type(None)),
    "layer_types": (list,),
}
_FAMILIES: Final[dict[str, dict[str, tuple[type, ...]]]] = {
    "llama": {**_COMMON, "head_dim": _INT, "attention_bias": _FLAG, "mlp_bias": _FLAG},
    "mistral": {**_COMMON, "head_dim": _INT, "sliding_window": (int, type(None))},
    "qwen2": {**_COMMON, **_WINDOWS},
    "qwen3": {**_COMMON, **_WINDOWS, "head_dim": _INT, "attention_bias": _FLAG},
}
"""What a file must say, and as what; of a number it must be a positive one."""
_REWRITTEN: Final = frozenset(
    {"auto_map", "partial_rotary_factor", "per_layer_config", "quantization_config", "rope_scaling", "rope_theta"}
)
"""Keys that change what transformers makes of others."""


class PlainConfig(SimpleNamespace):
    """The fields of a `config.json`, under the names that a transformers configuration has."""

    def get_text_config(self) -> "PlainConfig":
        """Itself: a dense decoder is all text."""
        return self


def load_config(folder: Path) -> Any:
    """The configuration of a local model: a `PlainConfig`, or transformers' own.

    Raises:
        ModelLoadError: `config.json` is missing, or no JSON object.
        Exception: whatever transformers makes of a file that it refuses.
    """
    plain = plain_config(read_json(folder / "config.json"))
    if plain is not None:
        return plain
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def plain_config(content: Mapping[str, Any]) -> PlainConfig | None:
    """The configuration that `config.json` spells out; None where transformers has a part in what it means."""
    needed = _FAMILIES.get(str(content.get("model_type")))
    if needed is None or _REWRITTEN & content.keys():
        return None
    if not all(name in content and _is_plain(content[name], kinds) for name, kinds in needed.items()):
        return None
    if content["hidden_size"] % content["num_attention_heads"] or not _is_default_rope(content.get("rope_parameters")):
        return None
    if not _are_ids(content.get("eos_token_id")):
        return None
    has_window = content.get("use_sliding_window", True)
    return PlainConfig(**{"eos_token_id": None, **content, **({} if has_window else {"sliding_window": None})})


def _is_plain(value: Any, kinds: tuple[type, ...]) -> bool:
    """Exactly of one of the types (a flag is no number), and positive if it is a number."""
    return type(value) in kinds and (type(value) not in (int, float) or value > 0)


def _is_default_rope(parameters: Any) -> bool:
    return (
        isinstance(parameters, dict)
        and parameters.keys() == {"rope_type", "rope_theta"}
        and parameters["rope_type"] == "default"
        and _is_plain(parameters["rope_theta"], (int, float))
    )


def _are_ids(value: Any) -> bool:
    """What `eos_token_id` may be: nothing, a token id, or some."""
    return value is None or all(type(token_id) is int for token_id in (value if isinstance(value, list) else [value]))
