"""Rows of a data set's file: JSON lines, a JSON list, plain text or Parquet, the first three also gzipped."""

import gzip
import importlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from specedge_bench.prompts.errors import MalformedRow, UnreadablePromptFile

SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Args:
        number: 1 for the first row.
        place: file and line or row, for messages.
        value: a line of a text file, or what JSON or Parquet had.
    """

    number: int
    place: str
    value: Any


def read_rows(path: Path) -> Iterator[Row]:
    """The file's rows, read as they are asked for; blank lines are none.

    Raises:
        UnreadablePromptFile: the file is missing, corrupt or of an unknown kind, or Parquet without pyarrow.
        MalformedRow: a line is not JSON.
    """
    suffix = data_suffix(path.name)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise UnreadablePromptFile(f"{path}: a prompt file must end in one of {known}, or in .gz after one of them")
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with _opened(path) as file:
            if suffix == ".txt":
                yield from _text_rows(path, file)
            elif suffix == ".json" and _is_list(file):
                yield from _list_rows(path, file)
            else:
                yield from _json_lines(path, file)
    except UnicodeDecodeError as error:
        raise UnreadablePromptFile(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadablePromptFile(f"cannot read prompt file {path}: {reason}") from error


def data_suffix(name: str) -> str | None:
    """The suffix that tells how a file is read, without .gz; None for a file that is no data."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES and not name.lower().endswith(".parquet.gz") else None


def _opened(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _text_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield Row(number, f"{path} line {number}", line.strip())


def _json_lines(path: Path, file: TextIO) -> Iterator[Row]:
    for row in _text_rows(path, file):
        try:
            value = json.loads(row.value)
        except (ValueError, RecursionError) as error:
            raise MalformedRow(row.place, f"not JSON ({error}): {_shown(row.value)}") from error
        yield Row(row.number, row.place, value)


def _is_list(file: TextIO) -> bool:
    # Some public sets (C4) name their JSON lines .json, so the content decides.
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    file.seek(0)
    return first == "["


def _list_rows(path: Path, file: TextIO) -> Iterator[Row]:
    try:
        values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise MalformedRow(str(path), f"not JSON ({error})") from error
    for number, value in enumerate(values, start=1):
        yield Row(number, f"{path} row {number}", value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        message = f"{path}: reading Parquet needs pyarrow (pip install pyarrow); JSON lines need nothing"
        raise UnreadablePromptFile(message) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(number, f"{path} row {number}", value)
    except pyarrow.ArrowException as error:
        raise UnreadablePromptFile(f"cannot read prompt file {path}: {error}") from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
