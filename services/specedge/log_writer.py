"""The log's way out: a thread of its own writes it, so that nobody who logs waits for whoever reads the log."""

import logging
import queue
import threading
from typing import Any, TextIO

MAX_WAITING = 10_000
"""Records that wait to be written; further ones are dropped and counted."""

_FLUSH_S = 1.0


class LogWriter(logging.Handler):
    """Writes records to a stream, a line each. What a full disk or a closed or blocked pipe does not take is dropped.

    Args:
        stream: such as standard error; written below its buffers, which would keep what could not be written.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._out: Any = getattr(stream.buffer, "raw", stream.buffer)
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._num_dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Has the record written."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._num_dropped += 1
        except Exception:  # its arguments do not fit its text
            self.handleError(record)

    def flush(self) -> None:
        """Returns once everything has been written, or after a second."""
        done = self._lines.all_tasks_done
        with done:
            done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_S)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._write(line)
                if num_dropped := self._num_dropped:
                    self._write(self.format(_dropped(num_dropped)))
                    self._num_dropped -= num_dropped
            except (OSError, ValueError):  # ValueError: the stream has been closed
                self._num_dropped += 1
            finally:
                self._lines.task_done()

    def _write(self, line: str) -> None:
        rest = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        while rest:
            rest = rest[self._out.write(rest) :]


def _dropped(count: int) -> logging.LogRecord:
    text = "%d log records before this one are missing: they could not be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)
