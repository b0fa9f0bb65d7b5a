"""Files of data sets on the Hugging Face Hub."""

from pathlib import Path
from typing import Protocol

from specedge_bench.prompts.errors import HubUnavailable
from specedge_bench.prompts.rows import data_suffix

_MAX_SHOWN = 8  # file names in a message


class Hub(Protocol):
    """What is asked of the Hub."""

    def files(self, dataset: str) -> list[str]:
        """Names of the data set's files."""

    def download(self, dataset: str, file: str) -> Path:
        """The local copy of one file."""


class HuggingFaceHub:
    """The real Hub through huggingface_hub, with its cache and its settings (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).

    The library is imported when it is needed: that takes long, and most runs need no Hub.
    """

    def files(self, dataset: str) -> list[str]:
        """See Hub."""
        from huggingface_hub import list_repo_files

        return list(list_repo_files(dataset, repo_type="dataset"))

    def download(self, dataset: str, file: str) -> Path:
        """See Hub."""
        from huggingface_hub import hf_hub_download

        return Path(str(hf_hub_download(dataset, file, repo_type="dataset")))


def fetch(hf_id: str, hub: Hub) -> Path:
    """The local copy of the file that `hf_id` names.

    Args:
        hf_id: "owner/name" of a data set with one data file, or "owner/name:path/of/file".
        hub: where it comes from.

    Raises:
        HubUnavailable: the Hub is out of reach, does not know the id, or has several files under it.
    """
    dataset, _, file = hf_id.partition(":")
    # The Hub's client also raises the errors of its HTTP library, and which library that is depends on its version.
    try:
        if not file:
            file = _only_data_file(dataset, hub.files(dataset))
        return hub.download(dataset, file)
    except HubUnavailable:
        raise
    except ImportError as error:
        message = f"data set {hf_id!r} needs huggingface_hub (pip install huggingface_hub); or give a local path"
        raise HubUnavailable(message) from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        message = f"cannot get {hf_id!r} from the Hugging Face Hub: {reason} (offline? give a local path)"
        raise HubUnavailable(message) from error


def _only_data_file(dataset: str, names: list[str]) -> str:
    found = sorted(name for name in names if data_suffix(name) is not None and "/." not in f"/{name}")
    if len(found) == 1:
        return found[0]
    if not found:
        raise HubUnavailable(f"{dataset!r} on the Hugging Face Hub has no .jsonl, .json, .txt or .parquet file")
    shown = ", ".join(found[:_MAX_SHOWN]) + (", ..." if len(found) > _MAX_SHOWN else "")
    raise HubUnavailable(
        f"{dataset!r} on the Hugging Face Hub has {len(found)} data files; name one as {dataset}:FILE ({shown})"
    )
