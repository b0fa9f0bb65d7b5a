"""The folder of one run: rows are appended and flushed one by one, so an interrupted run keeps what it measured."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from specedge.errors import SettingsError
from specedge_bench.json_file import read_object
from specedge_bench.records import (
    BadRecord,
    CellRecord,
    RecordT,
    RequestRecord,
    RunInfo,
    StepRecord,
    from_json,
    to_json,
)

INFO_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
STEPS_FILE = "steps.jsonl"
CELLS_FILE = "cells.jsonl"
REPORT_MARKDOWN = "report.md"
REPORT_HTML = "report.html"


class RunFolderError(SettingsError):
    """A run folder cannot be made or read; names the path and the reason."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a run folder holds."""

    info: RunInfo
    requests: tuple[RequestRecord, ...]
    steps: tuple[StepRecord, ...]
    cells: tuple[CellRecord, ...]
    num_torn_rows: int = 0
    """Last lines that were cut off while being written; they are left out."""


class RunFolder:
    """Writes a run's files; `load` reads them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = {name: (path / name).open("a") for name in (REQUESTS_FILE, STEPS_FILE, CELLS_FILE)}

    @classmethod
    def create(cls, path: str | Path, info: RunInfo) -> Self:
        """Make a folder for a new run.

        Raises:
            RunFolderError: the folder holds a run already, or cannot be written.
        """
        path = Path(path)
        if (path / INFO_FILE).exists():
            raise RunFolderError(f"{path} holds a run already; name another folder, nothing is overwritten")
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            folder.write_info(info)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error
        return folder

    def write_info(self, info: RunInfo) -> None:
        """Replace the run's facts, for what is known only later (the bound, the skipped prompts)."""
        scratch = self.path / (INFO_FILE + ".part")
        scratch.write_text(json.dumps(to_json(info), indent=2) + "\n")
        scratch.replace(self.path / INFO_FILE)

    def append_request(self, record: RequestRecord) -> None:
        self._append(REQUESTS_FILE, [record])

    def append_steps(self, records: Iterable[StepRecord]) -> None:
        self._append(STEPS_FILE, records)

    def append_cell(self, record: CellRecord) -> None:
        self._append(CELLS_FILE, [record])

    def _append(self, name: str, records: Iterable[RequestRecord | StepRecord | CellRecord]) -> None:
        file = self._files[name]
        for record in records:
            file.write(json.dumps(to_json(record), separators=(",", ":")) + "\n")
        file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def load(path: str | Path) -> Run:
        """Read a run folder.

        Raises:
            RunFolderError: there is no run in it, or a file of it is no JSON.
            SchemaTooNew: it was written by a newer release.
            BadRecord: a row lacks a field.
        """
        path = Path(path)
        info_path = path / INFO_FILE
        if not info_path.exists():
            raise RunFolderError(f"{path} holds no run: {INFO_FILE} is missing")
        row = read_object(info_path, RunFolderError)
        # The version is judged before any row: a newer release may have changed every field.
        info = from_json(RunInfo, row, str(info_path))
        requests, torn_requests = _rows(path / REQUESTS_FILE, RequestRecord)
        steps, torn_steps = _rows(path / STEPS_FILE, StepRecord)
        cells, torn_cells = _rows(path / CELLS_FILE, CellRecord)
        return Run(info, requests, steps, cells, torn_requests + torn_steps + torn_cells)


def _rows(path: Path, kind: type[RecordT]) -> tuple[tuple[RecordT, ...], int]:
    """The file's records, and 1 if its last line was cut off."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return (), 0
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
    *lines, last = text.split("\n")
    records = [from_json(kind, _object(line, f"{path}:{number}"), f"{path}:{number}") for number, line in _full(lines)]
    return tuple(records), int(bool(last.strip()))


def _full(lines: list[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadRecord(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadRecord(f"{where} holds a {type(row).__name__}, wanted an object")
    return row
