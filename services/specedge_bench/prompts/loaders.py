"""Data sets by name: the project's own prompts, or a public set from a local file or the Hugging Face Hub."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from specedge_bench.prompts.dataset import Prompt, Selection
from specedge_bench.prompts.errors import EmptyPromptSet, PromptSetError, UnknownPromptSet
from specedge_bench.prompts.formats import (
    Format,
    read_gsm8k,
    read_own,
    read_questions,
    read_sharegpt,
    read_texts,
)
from specedge_bench.prompts.hub import Hub, HuggingFaceHub, fetch
from specedge_bench.prompts.oasst import read_oasst
from specedge_bench.prompts.rows import read_rows

OWN: Final = "own"
OWN_FILE: Final = Path(__file__).parent / "own.jsonl"

FORMATS: Final[dict[str, Format]] = {
    OWN: read_own,
    "c4": read_texts,
    "gsm8k": read_gsm8k,
    "mtbench": read_questions,
    "oasst": read_oasst,
    "sharegpt": read_sharegpt,
    "specbench": read_questions,
    "wikitext": read_texts,
}


def load_prompts(
    name: str = OWN,
    path: str | Path | None = None,
    hf_id: str | None = None,
    selection: Selection | None = None,
    hub: Hub | None = None,
) -> list[Prompt]:
    """The selected prompts of a data set.

    Args:
        name: a key of FORMATS; it says how rows are read. "own" needs no file.
        path: a local .jsonl, .json, .txt or .parquet file, all but the last also as .gz.
        hf_id: instead of a path, "owner/name" or "owner/name:path/of/file" of a data set on the Hub.
        selection: which prompts and in what order; all in a shuffled order if None.
        hub: where `hf_id` is looked up.

    Raises:
        PromptSetError: names the data set, file or row and what is wrong with it.
    """
    read = FORMATS.get(name)
    if read is None:
        raise UnknownPromptSet(_unknown(name))
    if path is not None and hf_id is not None:
        raise PromptSetError(f"data set {name!r} has both a path ({path}) and a Hub id ({hf_id}); give one")
    if hf_id is not None:
        file = fetch(hf_id, hub or HuggingFaceHub())
    elif path is not None:
        file = Path(path)
    elif name == OWN:
        file = OWN_FILE
    else:
        raise PromptSetError(f"data set {name!r} is not part of the project; give a path or a Hugging Face id")
    try:
        return (selection or Selection()).pick(_distinct(read(name, read_rows(file))))
    except EmptyPromptSet as error:
        raise EmptyPromptSet(f"{file}: {error}") from error


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The same prompts, with ids that were used before numbered: files of several sets repeat theirs."""
    num_seen: dict[str, int] = {}
    for prompt in prompts:
        num_seen[prompt.id] = number = num_seen.get(prompt.id, 0) + 1
        yield prompt if number == 1 else Prompt(f"{prompt.id}#{number}", prompt.kind, prompt.messages, prompt.text)


def _unknown(name: str) -> str:
    known = ", ".join(FORMATS)
    close = difflib.get_close_matches(name.lower(), FORMATS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown data set {name!r}; known are {known}{hint}"
