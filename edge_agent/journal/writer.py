"""The thread that writes the journal. The event loop only hands over lines; a failing disk never fails an answer.

What is handed over is written within a moment, in one frame for each answer, and left to the operating system: a killed
process loses the last moment, a power cut what the system had not written yet. Neither costs exactness: tokens that are
lost are computed again, and are the same.
"""

import errno
import logging
import threading
from typing import Final

from edge_agent.journal.folder import JournalFolder
from edge_agent.journal.frames import FileContent, FrameWriter, read_frames, salt_of
from edge_agent.journal.key import JournalKey
from edge_agent.journal.metrics import FailureReason, JournalMetrics

logger = logging.getLogger(__name__)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_PENDING_BYTES: Final = 8 * 2**20
_TRIM_EVERY_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 5.0


class Recording:
    """What is being written about one answer.

    Args:
        name: the file's.
        writer: writes it.
        frames: makes the file's bytes.
        num_bytes: of the file that stay.
    """

    def __init__(self, name: str, writer: "JournalWriter", frames: FrameWriter, num_bytes: int = 0) -> None:
        self.name = name
        self.frames = frames
        self.num_bytes = num_bytes
        self.is_on = True
        self.pending: list[bytes] = []  # these two belong to the writer's lock
        self.num_pending = 0
        self._writer = writer

    def add(self, line: bytes) -> None:
        """Has a line written soon; returns at once."""
        if self.is_on:
            self._writer.take(self, line)


class JournalWriter:
    """Writes recordings in batches.

    Args:
        folder: the files.
        key: the journal's.
        metrics: written to.
        interval_s: how long lines are gathered.
    """

    def __init__(
        self, folder: JournalFolder, key: JournalKey, metrics: JournalMetrics, interval_s: float = 0.1
    ) -> None:
        self._folder = folder
        self._key = key
        self._metrics = metrics
        self._interval_s = interval_s
        self._handing = threading.Condition()  # guards pending lines; never held while the disk is waited for
        self._disk = threading.Lock()  # guards the folder
        self._waiting: dict[str, Recording] = {}  # by name, with pending lines
        self._open: dict[str, Recording] = {}  # by name; changed under _disk
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what is left and ends the thread."""
        self._is_stopping.set()
        with self._handing:
            self._handing.notify()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._folder.close()

    def read(self, name: str) -> tuple[bytes, FileContent]:
        """A file's bytes and what they say; whatever was handed over for it is written before. Raises OSError."""
        with self._disk:
            self._write_out(name)
            data = self._folder.read(name)
        return data, read_frames(data, self._key, name)

    def begin(self, name: str) -> Recording:
        """A file is made anew."""
        return self._opened(Recording(name, self, FrameWriter(self._key, name)))

    def go_on(self, name: str, data: bytes, content: FileContent) -> Recording:
        """A file is continued after what is good of it."""
        frames = FrameWriter(self._key, name, salt_of(data), len(content.texts))
        return self._opened(Recording(name, self, frames, content.num_bytes))

    def end(self, recording: Recording) -> None:
        """Nothing more is handed over for it."""
        with self._handing:
            if self._open.get(recording.name) is recording:
                del self._open[recording.name]

    def take(self, recording: Recording, line: bytes) -> None:
        """Has a line written soon."""
        with self._handing:
            recording.pending.append(line)
            recording.num_pending += len(line)
            is_too_much = recording.num_pending > _MAX_PENDING_BYTES
            if not self._waiting:
                self._handing.notify()
            self._waiting[recording.name] = recording
        if is_too_much:
            self._turn_off(recording, "slow", f"the disk has not taken {_MAX_PENDING_BYTES} bytes in time")

    def _opened(self, recording: Recording) -> Recording:
        """From now on the file is this one's; another one that has it is written no further."""
        with self._handing:
            former = self._open.get(recording.name)
            self._open[recording.name] = recording
        if former is not None:
            self._drop(former)
        return recording

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            with self._handing:
                self._handing.wait_for(lambda: self._waiting or self._is_stopping.is_set(), _TRIM_EVERY_S)
            self._is_stopping.wait(self._interval_s)
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        try:
            with self._handing:
                names = [*self._waiting]
            for name in names:
                with self._disk:
                    self._write_out(name)
            with self._disk:
                self._trim()
        except Exception:
            logger.exception("journal: not everything could be written")

    def _write_out(self, name: str) -> None:
        with self._handing:
            recording = self._waiting.pop(name, None)
            if recording is None or not recording.is_on:
                return
            lines, recording.pending, recording.num_pending = recording.pending, [], 0
        try:
            data = recording.frames.frame(b"".join(lines))
            self._folder.write(name, data, recording.num_bytes)
        except Exception as error:  # after any gap, what follows would be another answer
            is_full = isinstance(error, OSError) and error.errno in _FULL
            self._turn_off(recording, "disk_full" if is_full else "io", str(error))
        else:
            recording.num_bytes += len(data)

    def _trim(self) -> None:
        for name, reason in self._folder.trim():
            self._metrics.removed.labels(reason).inc()
            with self._handing:
                recording = self._open.get(name)
            if recording is not None and recording.is_on:
                self._turn_off(recording, "too_large", "it was the oldest when journal_max_mib was reached")

    def _turn_off(self, recording: Recording, reason: FailureReason, why: str) -> None:
        if recording.is_on:
            self._drop(recording)
            self._metrics.failures.labels(reason).inc()
            logger.error("journal: an answer is not recorded any further (%s): %s", reason, why)

    def _drop(self, recording: Recording) -> None:
        with self._handing:
            recording.is_on = False
            recording.pending.clear()
            recording.num_pending = 0
            if self._waiting.get(recording.name) is recording:
                del self._waiting[recording.name]
