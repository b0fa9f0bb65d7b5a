"""The journal's files: one for each answer, the oldest removed where they become too large or too old."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent.journal.metrics import RemovalReason
from specedge.errors import SettingsError

logger = logging.getLogger(__name__)

_SUFFIX: Final = ".answer"
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES: Final = 4096


class _File(NamedTuple):
    num_bytes: int
    written_s: float

    @property
    def num_disk_bytes(self) -> int:
        return -(-self.num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


class Removal(NamedTuple):
    """An answer that is not there any more."""

    name: str
    reason: RemovalReason


class JournalFolder:
    """Files by name. One process has the folder at a time; one thread uses it at a time.

    Args:
        path: the folder; made where it does not exist.
        max_bytes: that files take, counted in blocks of the disk.
        max_age_s: since a file was last written.
        clock: seconds since 1970.

    Raises:
        SettingsError: the folder cannot be used.
    """

    def __init__(self, path: Path, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._files: dict[str, _File] = {}  # the one written longest ago first
        self.num_bytes = 0  # on disk
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(f"journal_dir {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._list()
        except BlockingIOError as error:
            os.close(self._lock)
            raise SettingsError(f"journal_dir {path}: another process uses it; each edge needs its own") from error
        except OSError as error:
            os.close(self._lock)
            raise SettingsError(f"journal_dir {path}: {error.strerror}") from error

    def close(self) -> None:
        """Another process may have the folder."""
        os.close(self._lock)

    def read(self, name: str) -> bytes:
        """A file's content; empty where there is none. Raises OSError."""
        return self._place(name).read_bytes() if name in self._files else b""

    def write(self, name: str, data: bytes, start: int) -> None:
        """Puts data at a place of a file, which ends with it; at its beginning: makes it anew. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if start == 0 else 0)
        number = os.open(self._place(name), flags, 0o600)
        try:
            os.ftruncate(number, start)
            left = memoryview(data)
            while left:
                left = left[os.pwrite(number, left, start + len(data) - len(left)) :]
        finally:
            size = os.fstat(number).st_size
            os.close(number)
            self._keep(name, _File(size, self._clock()))

    def trim(self) -> list[Removal]:
        """Removes what is too old, and then the oldest until the rest is small enough."""
        removed = []
        while self._files:
            name, oldest = next(iter(self._files.items()))
            if oldest.written_s < self._clock() - self._max_age_s:
                removed.append(Removal(name, "age"))
            elif self.num_bytes > self._max_bytes:
                removed.append(Removal(name, "size"))
            else:
                break
            self.remove(name)
        return removed

    def remove(self, name: str) -> None:
        """Removes a file; one that cannot be removed is not counted any more, and is met again after a restart."""
        self._forget(name)
        try:
            self._place(name).unlink(missing_ok=True)
        except OSError as error:
            logger.error("journal: %s cannot be removed: %s", self._place(name), error.strerror)

    def _list(self) -> None:
        """Takes over what an earlier process left."""
        found = []
        for entry in os.scandir(self._path):
            name = entry.name.removesuffix(_SUFFIX)
            if name != entry.name and _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime, name, status.st_size))
        for written_s, name, num_bytes in sorted(found):
            self._keep(name, _File(num_bytes, written_s))

    def _keep(self, name: str, file: _File) -> None:
        self._forget(name)
        self._files[name] = file
        self.num_bytes += file.num_disk_bytes

    def _forget(self, name: str) -> None:
        if (known := self._files.pop(name, None)) is not None:
            self.num_bytes -= known.num_disk_bytes

    def _place(self, name: str) -> Path:
        return self._path / f"{name}{_SUFFIX}"
