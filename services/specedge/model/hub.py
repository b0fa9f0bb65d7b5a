"""Fetches from the Hugging Face hub, or finds in its cache, just the files that the lean and native engines read."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from specedge.errors import ModelLoadError
from specedge.model.checkpoint import INDEX_FILE, SINGLE_FILE, shard_names


class NoSafetensors(ModelLoadError):
    """A model's weights are not to be had as safetensors; perhaps in another form."""


def fetch_config(model_id: str) -> Path:
    """The folder of the cache that holds the model's config.json.

    Raises:
        ModelLoadError: there is no such model, or it cannot be had (no access, no network and not in the cache).
    """
    try:
        return Path(hf_hub_download(model_id, "config.json")).parent
    except Exception as error:
        raise _unavailable(model_id, error) from error


def fetch_weights(model_id: str) -> Path:
    """The folder of the cache that holds config.json and all safetensors; what is missing is downloaded.

    Raises:
        NoSafetensors: the hub's repository, or the cache where the hub cannot be asked, has none.
        ModelLoadError: they cannot be had for another reason.
    """
    try:
        for name in (SINGLE_FILE, INDEX_FILE):
            try:
                folder = Path(hf_hub_download(model_id, name)).parent
            except EntryNotFoundError:
                continue
            if name == INDEX_FILE:
                files = ["config.json", INDEX_FILE, *shard_names(folder)]
                folder = Path(snapshot_download(model_id, allow_patterns=files))
            return folder
    except ModelLoadError:
        raise
    except Exception as error:
        raise _unavailable(model_id, error) from error
    raise NoSafetensors(f"{model_id}: the Hugging Face hub, or its cache here, has no safetensors of it")


def _unavailable(model_id: str, error: Exception) -> ModelLoadError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines else type(error).__name__
    return ModelLoadError(
        f"{model_id}: there is no such local folder, and as a Hugging Face id it cannot be loaded: {reason}"
    )
