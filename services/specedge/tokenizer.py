"""Loads tokenizers, and tells whether two of them give the same tokens the same ids."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from specedge.errors import ModelLoadError, SpecEdgeError
from specedge.model.checkpoint import check_tokenizer_folder, local_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"

FINGERPRINT_HEX_DIGITS = 32
_FAMILIES_AS_SAVED = ("llama", "qwen3")
"""Model types for which transformers takes a folder's `TokenizersBackend` at its word."""


def load_tokenizer(path_or_id: str) -> Tokenizer:
    """The tokenizer, with its chat template, of a local folder or a Hugging Face id.

    Raises:
        ModelLoadError: names the folder or id, and the reason.
    """
    folder = local_folder(path_or_id)
    if folder is not None:
        check_tokenizer_folder(folder)
    try:
        tokenizer = cast(Tokenizer, _tokenizer_class(folder).from_pretrained(path_or_id))
        num_tokens = len(tokenizer.get_vocab())
    except SpecEdgeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"{path_or_id}: the tokenizer cannot be loaded: {reason[:300]}") from error
    if num_tokens <= len(tokenizer.all_special_tokens):
        raise ModelLoadError(f"{path_or_id}: the tokenizer has no vocabulary beyond {num_tokens} special tokens")
    return tokenizer


def _tokenizer_class(folder: Path | None) -> Any:
    """What loads a tokenizer: the class that transformers would choose, without the table of models that it asks."""
    if folder is not None and is_as_saved(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def is_as_saved(folder: Path) -> bool:
    """Whether `tokenizer.json` is the tokenizer, where others are built anew by a class of their model's."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")):
        return False
    model_type = read_json(folder / "config.json").get("model_type")
    own = read_json(folder / "tokenizer_config.json")
    is_own_class = own.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in own
    return is_own_class and model_type in _FAMILIES_AS_SAVED


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A digest of what gives ids their meaning: vocabulary, merges, added tokens and which of them are special.

    Equal for two copies of a tokenizer whatever folder, chat template, end-of-text role or length they were saved with.
    """
    added = sorted((token_id, str(token), bool(token.special)) for token_id, token in _added_tokens(tokenizer))
    content = {
        "vocabulary": sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items()),
        "merges": _merges(tokenizer),
        "added": added,
    }
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_HEX_DIGITS]


def _added_tokens(tokenizer: Tokenizer) -> list[tuple[int, Any]]:
    return list(getattr(tokenizer, "added_tokens_decoder", {}).items())


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    merges = json.loads(backend.to_str())["model"].get("merges", [])
    return [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges]
