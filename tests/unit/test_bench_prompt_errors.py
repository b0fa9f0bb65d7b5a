"""Prompts of the bench: what bad names, files, rows and a missing Hub are told."""

import builtins
import gzip
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specedge.errors import SpecEdgeError
from specedge_bench.prompts.dataset import Selection
from specedge_bench.prompts.errors import (
    EmptyPromptSet,
    HubUnavailable,
    MalformedRow,
    PromptSetError,
    UnknownPromptSet,
    UnreadablePromptFile,
)
from specedge_bench.prompts.loaders import FORMATS, load_prompts


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | list[Any]], Path]:
    def write_file(name: str, content: str | list[Any]) -> Path:
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write_file


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownPromptSet, match=r"'mtbnch'; known are .*; did you mean 'mtbench'\?") as caught:
        load_prompts("mtbnch")
    assert all(name in str(caught.value) for name in FORMATS)
    assert isinstance(caught.value, SpecEdgeError)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"own"}))
def test_public_sets_need_a_file(name: str) -> None:
    with pytest.raises(PromptSetError, match=f"'{name}' is not part of the project"):
        load_prompts(name)


def test_path_and_hub_id_exclude_each_other(write: Callable[..., Path]) -> None:
    with pytest.raises(PromptSetError, match="has both a path"):
        load_prompts("c4", "x.jsonl", "a/b")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.jsonl", None, "No such file"),
        ("q.csv", b"a,b", r"must end in one of \.jsonl"),
        ("q.jsonl", b'{"turns": ["\xff"]}', "not UTF-8"),
        ("q.jsonl.gz", b"no gzip", "Not a gzipped file"),
        ("q.jsonl.gz", gzip.compress(b'{"turns": ["a"]}' * 500, mtime=0)[:-12], "ended before"),
    ],
)
def test_unreadable_files_say_why(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UnreadablePromptFile, match=message) as caught:
        load_prompts("mtbench", tmp_path / file)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mtbench", '{"turns": ["a"]}\n{"turns": [', "line 2: not JSON"),
        ("mtbench", "[1", r"line 1: not JSON"),
        ("mtbench", '{"prompt": "a"}', "line 1: has no 'turns'; it has 'prompt'"),
        ("mtbench", '{"turns": "a"}', "'turns' is not a list"),
        ("mtbench", '{"turns": [" "]}', "first of its turns must be a text"),
        ("specbench", '"a"', "not a JSON object with 'turns'"),
        ("gsm8k", '{"question": 3}', "'question' is not a text"),
        ("gsm8k", '{"question": ""}', "'question' is empty"),
        ("gsm8k", '{"question": "\\ud800"}', "half a surrogate pair"),
        ("c4", '{"url": "a"}', "has no 'text'"),
        ("sharegpt", '{"conversations": [{"from": "gpt"}]}', r"conversations\[0\] has no text under 'value'"),
        ("sharegpt", '{"conversations": [{"from": "cat", "value": "a"}]}', "'from' is 'cat'; known roles are human"),
        ("oasst", '{"text": "a", "parent_id": null}', "'role' is None"),
        ("oasst", '{"role": "prompter"}', "has no 'text'"),
        ("oasst", '{"prompt": {"text": "a", "role": "prompter", "replies": 3}}', "'replies' is not a list"),
        ("own", '{"text": "a"}', "has no 'id'"),
        ("own", '{"id": "a", "messages": []}', "last of its messages must be the user's"),
        ("own", '{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}', "line 2: id 'a' was used before"),
    ],
)
def test_malformed_rows_are_named(name: str, content: str, message: str, write: Callable[..., Path]) -> None:
    with pytest.raises(MalformedRow, match=message) as caught:
        load_prompts(name, write("rows.jsonl", content))
    assert "rows.jsonl" in str(caught.value)


def test_malformed_json_list_is_named(write: Callable[..., Path]) -> None:
    with pytest.raises(MalformedRow, match=r"list\.json: not JSON .*line 2"):
        load_prompts("gsm8k", write("list.json", '[{"question": "a"},\n oh]'))
    with pytest.raises(MalformedRow, match=r"list\.json row 2: has no 'question'"):
        load_prompts("gsm8k", write("list.json", '[{"question": "a"}, {}]'))


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_empty_data_sets_are_refused(content: str, write: Callable[..., Path]) -> None:
    with pytest.raises(EmptyPromptSet, match=r"empty\.json: the data set has no prompt"):
        load_prompts("mtbench", write("empty.json", content))


def test_offset_past_the_end_is_refused(write: Callable[..., Path]) -> None:
    path = write("q.jsonl", [{"question": "a"}, {"question": "b"}])
    with pytest.raises(EmptyPromptSet, match="req_offset is 2, but the data set has only 2 prompts"):
        load_prompts("gsm8k", path, selection=Selection(req_offset=2))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UnreadablePromptFile, match="needs pyarrow"):
        load_prompts("c4", tmp_path / "a.parquet")


# The Hub


class LocalHub:
    """A Hub whose files lie in a folder."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self._folder = folder
        self._error = error

    def files(self, dataset: str) -> list[str]:
        if self._error is not None:
            raise self._error
        return [path.name for path in self._folder.iterdir()]

    def download(self, dataset: str, file: str) -> Path:
        if self._error is not None:
            raise self._error
        return self._folder / file


def test_hub_id_of_one_data_file(write: Callable[..., Path]) -> None:
    folder = write("README.md", "about").parent
    write("question.jsonl", [{"turns": ["a"]}])
    assert [prompt.id for prompt in load_prompts("mtbench", hf_id="owner/set", hub=LocalHub(folder))] == ["mtbench-1"]


def test_hub_id_of_several_files_must_name_one(write: Callable[..., Path]) -> None:
    folder = write("a.jsonl", [{"turns": ["a"]}]).parent
    write("b.jsonl", [{"turns": ["b"]}])
    hub = LocalHub(folder)
    with pytest.raises(HubUnavailable, match=r"2 data files; name one as owner/set:FILE \(a\.jsonl, b\.jsonl\)"):
        load_prompts("mtbench", hf_id="owner/set", hub=hub)
    prompts = load_prompts("mtbench", hf_id="owner/set:b.jsonl", hub=hub)
    assert prompts[0].messages == (("user", "b"),)


def test_hub_without_data_files(write: Callable[..., Path]) -> None:
    folder = write("README.md", "about").parent
    with pytest.raises(HubUnavailable, match=r"no \.jsonl"):
        load_prompts("mtbench", hf_id="owner/set", hub=LocalHub(folder))


@pytest.mark.parametrize("hf_id", ["owner/set", "owner/set:a.jsonl"])
def test_hub_out_of_reach(hf_id: str, tmp_path: Path) -> None:
    hub = LocalHub(tmp_path, ConnectionError("Name or service not known"))
    with pytest.raises(HubUnavailable, match=r"Name or service not known \(offline\? give a local path\)"):
        load_prompts("mtbench", hf_id=hf_id, hub=hub)


def test_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_hub(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    with pytest.raises(HubUnavailable, match="needs huggingface_hub"):
        load_prompts("mtbench", hf_id="owner/set")
