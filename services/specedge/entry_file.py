"""A YAML file that lists who may come in, read again when it changes."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import yaml

from specedge.errors import SettingsError
from specedge.settings_sources import StrictLoader

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES: Final = 2**20

Entry = TypeVar("Entry")


class EntryFile(Generic[Entry]):
    """The entries of a file, as they are now.

    Args:
        path: the file.
        what: what the entries are, in messages.
        read: reads the file.
        check_interval_s: how often at most the file is looked at.
        clock: steady time in seconds.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        read: Callable[[Path], tuple[Entry, ...]],
        check_interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._what = what
        self._read = read
        self._check_interval_s = check_interval_s
        self._clock = clock
        self._next_check_s = clock() + check_interval_s
        self._is_checking = False
        self._seen = version_of(path)
        self.entries = read(path)
        logger.info("%s: %d %s", path, len(self.entries), what)

    async def refresh(self) -> bool:
        """Reads the file again if it has changed; a version that is wrong is logged once and changes nothing.

        Returns:
            Whether the entries are new ones.
        """
        now_s = self._clock()
        if self._is_checking or now_s < self._next_check_s:
            return False
        self._next_check_s = now_s + self._check_interval_s
        self._is_checking = True
        try:
            return await asyncio.to_thread(self._check)
        finally:
            self._is_checking = False

    def _check(self) -> bool:
        version = version_of(self._path)
        if version == self._seen:
            return False
        self._seen = version
        try:
            self.entries = self._read(self._path)
        except SettingsError as error:
            logger.error("the %s stay as they were: %s", self._what, error)
            return False
        logger.info("%s has changed: %d %s", self._path, len(self.entries), self._what)
        return True


def read_list(path: Path, what: str, mistakes: Callable[[list[Any]], Iterable[str]]) -> list[dict[str, Any]]:
    """The entries of a file, every scalar as text.

    Args:
        path: the file.
        what: what the entries are, in messages.
        mistakes: what is wrong with a list of them; entries are mappings where it finds nothing.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"{path} ({what}) is larger than {_MAX_FILE_BYTES} bytes")
        entries = yaml.load(content.decode(), Loader=StrictLoader)
    except OSError as error:
        raise SettingsError(f"{path} ({what}) cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} ({what}) cannot be read: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} ({what}) cannot be read: {_without_excerpt(error)}") from None
    if not isinstance(entries, list):
        raise SettingsError(f"{path} ({what}) must hold a list of entries; [] is none")
    found = [*mistakes(entries)]
    if found:
        raise SettingsError("\n  ".join(f"{path} ({what}): {mistake}" for mistake in found))
    return entries


def _without_excerpt(error: yaml.YAMLError) -> str:
    """A YAML error without the text around it, which may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)


def version_of(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
