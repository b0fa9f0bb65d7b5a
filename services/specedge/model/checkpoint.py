"""Checks a local model folder before anything is built from it, so that a refusal names the file at fault."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from specedge.errors import ModelLoadError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def local_folder(path_or_id: str) -> Path | None:
    """The folder that `path_or_id` names, or None where it is a Hugging Face id.

    Raises:
        ModelLoadError: it can only be a path, and there is no such folder.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{path_or_id}: is a file; a model is a folder with config.json and weights")
    if path.is_absolute() or path_or_id.startswith(".") or path_or_id.count("/") > 1:
        raise ModelLoadError(f"{path_or_id}: no such folder")
    return None


def check_model_folder(folder: Path) -> int:
    """Check that the configuration can be read and that every weight file is whole.

    Returns:
        The size of the weights in bytes.

    Raises:
        ModelLoadError: names the file and what is wrong with it.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{folder / 'config.json'}: has no model_type, so its architecture is unknown")
    files = weight_files(folder)
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return sum(file.stat().st_size for file in files)


def check_tokenizer_folder(folder: Path) -> None:
    """Check that a tokenizer is there, since one is otherwise made up without a vocabulary."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelLoadError(f"{folder}: has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelLoadError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: holds no JSON object")
    return content


def weight_files(folder: Path) -> Sequence[Path]:
    """The files that hold the folder's weights."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        shards = [folder / name for name in shard_names(folder)]
        for shard in shards:
            if not shard.is_file():
                raise ModelLoadError(f"{shard}: is missing (named by {INDEX_FILE})")
        return shards
    pickles = [folder / name for name in PICKLE_FILES if (folder / name).is_file()]
    if not pickles:
        raise ModelLoadError(f"{folder}: has no weights (neither {SINGLE_FILE} nor {INDEX_FILE})")
    return pickles


def shard_names(folder: Path) -> list[str]:
    """The files that the folder's index names."""
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{folder / INDEX_FILE}: has no weight_map")
    return sorted(set(map(str, weight_map.values())))


def check_safetensors(file: Path) -> None:
    """Read the header, which also says how long the file must be."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ModelLoadError(f"{file}: is corrupt or cut off at {size} bytes ({error})") from None


def stored_tensors(folder: Path) -> Iterator[tuple[str, str, int]]:
    """(name, number format as safetensors writes it, number of values) of every tensor of a checked folder."""
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            for name, tensor in header.items():
                if name != "__metadata__":
                    yield name, tensor["dtype"], math.prod(tensor["shape"])
