"""The sizes of a dense decoder that decide its speed, read from a Hugging Face `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specedge.errors import SettingsError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ShapeError(SettingsError):
    """A model configuration lacks a size, or describes something else than a dense decoder."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder: grouped-query attention, gated MLP, RMSNorm, rotary positions."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool = False
    has_qk_norm: bool = True
    has_qkv_bias: bool = False
    model_type: str = "qwen3"

    @property
    def num_matmul_parameters(self) -> int:
        """Parameters that every step multiplies with: layers and output head, without the input embedding."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * key)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size) + self.head_parameters

    @property
    def head_parameters(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def num_parameters(self) -> int:
        """All parameters but the norms and biases, which are too few to matter for speed."""
        return self.num_matmul_parameters + (0 if self.is_tied else self.head_parameters)

    def weight_bytes(self, dtype: str = "bfloat16") -> int:
        """Bytes of weights that one step reads."""
        return self.num_matmul_parameters * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes of keys and values of one token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes(dtype)

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> "ModelShape":
        """Read the sizes from the fields of a `config.json`.

        Raises:
            ShapeError: a field is missing or not a size, or the layers are a mixture of experts.
        """
        text = config.get("text_config") or config
        experts = next((key for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)), None)
        if experts is not None:
            raise ShapeError(f"{name}: {experts} is {text[experts]}; only dense decoders have a shape here")
        hidden_size, num_heads = _size(name, text, "hidden_size"), _size(name, text, "num_attention_heads")
        model_type = str(text.get("model_type", ""))
        return cls(
            name=name,
            hidden_size=hidden_size,
            intermediate_size=_size(name, text, "intermediate_size"),
            num_layers=_size(name, text, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_size(name, text, "num_key_value_heads", num_heads),
            head_dim=_size(name, text, "head_dim", hidden_size // num_heads),
            vocab_size=_size(name, text, "vocab_size"),
            is_tied=bool(text.get("tie_word_embeddings", False)),
            has_qk_norm=model_type.startswith("qwen3"),
            has_qkv_bias=bool(text.get("attention_bias", False)) or model_type == "qwen2",
            model_type=model_type,
        )

    def to_config(self) -> dict[str, Any]:
        """The fields of a `config.json` of this shape, as transformers reads them."""
        return {
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.is_tied,
            "max_position_embeddings": 40960,
        }


def _size(name: str, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ShapeError(f"{name}: {key} is {value!r}; a positive integer is needed")
    return value


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number.

    Raises:
        ShapeError: names the known types.
    """
    if dtype not in DTYPE_BYTES:
        raise ShapeError(f"dtype {dtype}: known are {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


QWEN3_0_6B = ModelShape("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128, 151936, is_tied=True)
QWEN3_1_7B = ModelShape("Qwen3-1.7B", 2048, 6144, 28, 16, 8, 128, 151936, is_tied=True)
QWEN3_14B = ModelShape("Qwen3-14B", 5120, 17408, 40, 40, 8, 128, 151936)
QWEN3_32B = ModelShape("Qwen3-32B", 5120, 25600, 64, 64, 8, 128, 151936)

BUILT_IN: dict[str, ModelShape] = {shape.name: shape for shape in (QWEN3_0_6B, QWEN3_1_7B, QWEN3_14B, QWEN3_32B)}


def find_shape(name: str) -> ModelShape | None:
    """The built-in shape of this name, in any case; None where there is none."""
    return next((shape for known, shape in BUILT_IN.items() if known.lower() == name.lower()), None)
