"""Answers by the key that their client gave: found again, and recorded while they are made.

Used on the event loop; the disk is touched by other threads.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from prometheus_client import CollectorRegistry

from edge_agent.committed_answer import Burst
from edge_agent.journal.entries import (
    AnswerHeader,
    RecordedAnswer,
    RecordedChoice,
    end_line,
    header_line,
    tokens_line,
)
from edge_agent.journal.folder import JournalFolder
from edge_agent.journal.frames import FileContent
from edge_agent.journal.key import JournalKey
from edge_agent.journal.metrics import JournalMetrics
from edge_agent.journal.writer import JournalWriter, Recording

logger = logging.getLogger(__name__)

_READ_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the journal: its bytes, what is good of them, and the answer in there."""

    data: bytes
    content: FileContent
    answer: RecordedAnswer


class Journal:
    """All answers of one edge agent.

    Args:
        folder: their files.
        key: encrypts them.
        metrics: written to.
    """

    def __init__(self, folder: JournalFolder, key: JournalKey, metrics: JournalMetrics) -> None:
        self.key = key
        self.metrics = metrics
        self._writer = JournalWriter(folder, key, metrics)
        self._readers = ThreadPoolExecutor(1, "journal-reader")

    @classmethod
    def open(cls, path: Path, key_file: Path, max_bytes: int, max_age_s: float, registry: CollectorRegistry) -> Self:
        """The journal in a folder.

        Raises:
            SettingsError: the folder or the key cannot be used.
        """
        key = JournalKey.read(key_file)
        folder = JournalFolder(path, max_bytes, max_age_s)
        return cls(folder, key, JournalMetrics(registry, lambda: folder.num_bytes))

    def close(self) -> None:
        """Writes what is left; to be called when nothing is recorded any more."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.close()

    async def find(self, name: str) -> Found | None:
        """What is recorded under a name; None where nothing can be used."""
        reading = asyncio.get_running_loop().run_in_executor(self._readers, self._read, name)
        try:
            return await asyncio.wait_for(reading, _READ_TIMEOUT_S)
        except TimeoutError:
            logger.error("journal: no answer could be read within %g s", _READ_TIMEOUT_S)
        except OSError as error:
            logger.error("journal: an answer cannot be read: %s", error)
        self.metrics.failures.labels("io").inc()
        return None

    def record(self, name: str, header: AnswerHeader, found: Found | None) -> "AnswerRecord":
        """What is to be recorded, after what was found of the same answer."""
        return AnswerRecord(self._writer, name, header, found)

    def _read(self, name: str) -> Found | None:
        data, content = self._writer.read(name)
        answer = None
        try:
            answer = RecordedAnswer.parse(content.texts)
        except (ValueError, TypeError, KeyError):  # whole, and written by a process that knew another form
            content = FileContent((), 0, True)
        if content.is_damaged:
            self.metrics.failures.labels("damaged").inc()
            logger.error("journal: %s is damaged or of another key after %d bytes", name, content.num_bytes)
        return None if answer is None else Found(data, content, answer)


class AnswerRecord:
    """One answer's place in the journal; nothing is written before its first token.

    Args:
        writer: the journal's.
        name: the file's.
        header: what the answer is.
        found: what is there of it; None: it begins anew.
    """

    def __init__(self, writer: JournalWriter, name: str, header: AnswerHeader, found: Found | None) -> None:
        self._writer = writer
        self._name = name
        self._header = header
        self._found = found
        self._recording: Recording | None = None

    def choices(self, num: int) -> "Sequence[ChoiceRecord]":
        """The places of so many choices."""
        told = {} if self._found is None else self._found.answer.choices
        return [ChoiceRecord(self, index, told.get(index, RecordedChoice())) for index in range(num)]

    def add(self, line: bytes) -> None:
        """Records a line."""
        if self._recording is None:
            self._recording = self._begin()
        self._recording.add(line)

    def close(self) -> None:
        """Nothing more is recorded."""
        if self._recording is not None:
            self._writer.end(self._recording)

    def _begin(self) -> Recording:
        if self._found is not None:
            return self._writer.go_on(self._name, self._found.data, self._found.content)
        recording = self._writer.begin(self._name)
        recording.add(header_line(self._header))
        return recording


@dataclass(frozen=True, slots=True)
class ChoiceRecord:
    """One choice's place in its answer's record.

    Attributes:
        answer: the answer's.
        index: the choice's.
        told: what was recorded before.
    """

    answer: AnswerRecord
    index: int
    told: RecordedChoice

    def keep(self, burst: Burst) -> None:
        """Records what is new."""
        self.answer.add(tokens_line(self.index, burst))

    def end(self) -> None:
        """The choice has all its tokens."""
        if not self.told.is_ended:
            self.answer.add(end_line(self.index))
