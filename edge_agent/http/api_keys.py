"""The keys that open the HTTP API: a YAML file of their hashes, read again when it changes.

A key is 256 random bits, so nobody finds it by trying, and one SHA-256 hides it as well as a slow password hash would.
The hashes are compared in constant time, each presented key with all of them.
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import yaml

from specedge.errors import SettingsError
from specedge.settings_sources import StrictLoader

logger = logging.getLogger(__name__)

KEY_PREFIX: Final = "sk-specedge-"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_MAX_FILE_BYTES: Final = 2**20
_BOUNDS: Final = {"requests_per_minute": (1, 1_000_000), "max_concurrent": (1, 65_536)}
_FIELDS: Final = ("name", "sha256", *_BOUNDS)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One entry of the file.

    Args:
        name: who the key is for, in metrics and in this file.
        digest: SHA-256 of the key, 32 bytes.
        requests_per_minute: most requests in a minute; None is any number.
        max_concurrent: most requests at a time; None is any number.
    """

    name: str
    digest: bytes
    requests_per_minute: int | None = None
    max_concurrent: int | None = None


class ApiKeyFile:
    """The keys of a file, as they are now.

    Args:
        path: the file.
        check_interval_s: how often at most the file is looked at.
        clock: steady time in seconds.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """

    def __init__(self, path: Path, check_interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._check_interval_s = check_interval_s
        self._clock = clock
        self._next_check_s = clock() + check_interval_s
        self._is_checking = False
        self._seen = _version_of(path)
        self._keys = read_api_keys(path)
        logger.info("%s: %d API keys", path, len(self._keys))

    def find(self, key: bytes) -> ApiKey | None:
        """The entry of a presented key; it takes equally long for every key."""
        digest = sha256(key).digest()
        found = None
        for entry in self._keys:
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found

    async def refresh(self) -> None:
        """Reads the file again if it has changed; a version that is wrong is logged once and changes nothing."""
        now_s = self._clock()
        if self._is_checking or now_s < self._next_check_s:
            return
        self._next_check_s = now_s + self._check_interval_s
        self._is_checking = True
        try:
            await asyncio.to_thread(self._check)
        finally:
            self._is_checking = False

    def _check(self) -> None:
        version = _version_of(self._path)
        if version == self._seen:
            return
        self._seen = version
        try:
            self._keys = read_api_keys(self._path)
        except SettingsError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("%s has changed: %d API keys", self._path, len(self._keys))


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """The entries of a key file.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"{path} (API keys) is larger than {_MAX_FILE_BYTES} bytes")
        entries = yaml.load(content.decode(), Loader=StrictLoader)
    except OSError as error:
        raise SettingsError(f"{path} (API keys) cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} (API keys) cannot be read: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} (API keys) cannot be read: {_without_excerpt(error)}") from None
    if not isinstance(entries, list):
        raise SettingsError(f"{path} (API keys) must hold a list of entries; [] is none")
    mistakes = [*_mistakes(entries)]
    if mistakes:
        raise SettingsError("\n  ".join(f"{path} (API keys): {mistake}" for mistake in mistakes))
    return tuple(_entry(entry) for entry in entries)


def new_key() -> str:
    """A fresh key: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def spell_entry(name: str, key: str, requests_per_minute: int | None = None, max_concurrent: int | None = None) -> str:
    """A key's entry for the file, as YAML.

    Raises:
        SettingsError: the name or a limit is not allowed.
    """
    entry = {
        "name": name,
        "sha256": sha256(key.encode()).hexdigest(),
        "requests_per_minute": requests_per_minute,
        "max_concurrent": max_concurrent,
    }
    given = {field: str(value) for field, value in entry.items() if value is not None}
    mistakes = [*_mistakes([given])]
    if mistakes:
        raise SettingsError("\n  ".join(mistake.partition(": ")[2] for mistake in mistakes))
    # The quotes keep YAML from reading a name or a hash of digits as a number.
    lines = [
        f'{field}: "{value}"' if field in ("name", "sha256") else f"{field}: {value}" for field, value in given.items()
    ]
    return "- " + "\n  ".join(lines) + "\n"


def _entry(entry: dict[str, str]) -> ApiKey:
    limits = {field: int(entry[field]) for field in _BOUNDS if entry.get(field)}
    return ApiKey(entry["name"], bytes.fromhex(entry["sha256"]), **limits)


def _mistakes(entries: list[Any]) -> Iterable[str]:
    """What is wrong with the entries; their values are text."""
    taken: dict[tuple[str, str], str] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            yield f"entry {number}: must have the fields name and sha256"
            continue
        name = entry.get("name")
        place = f"entry {number} ({name})" if isinstance(name, str) and _NAME.fullmatch(name) else f"entry {number}"
        for mistake in _field_mistakes(entry):
            yield f"{place}: {mistake}"
        for field in ("name", "sha256"):
            identity = field, str(entry.get(field)).lower()
            if field in entry and identity in taken:
                yield f"{place}: {taken[identity]} has the same {field}"
            taken.setdefault(identity, place)


def _field_mistakes(entry: dict[str, Any]) -> Iterable[str]:
    for field in entry:
        if field not in _FIELDS:
            yield f"there is no field {field!r}; known are {', '.join(_FIELDS)}"
    name = entry.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"name = {name!r:.80} must be 1 to 64 letters, digits or . _ @ -, beginning with a letter or digit"
    digest = entry.get("sha256", "")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        # What stands there may be the key itself.
        yield "sha256 must be the 64 hexadecimal digits of the key's SHA-256"
    for field, (low, high) in _BOUNDS.items():
        value = entry.get(field, "")
        if value == "":
            continue
        is_whole = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 9
        if not is_whole or not low <= int(value) <= high:
            yield f"{field} = {value!r:.80} must be an integer from {low} to {high}"


def _without_excerpt(error: yaml.YAMLError) -> str:
    """A YAML error without the text around it, which may be a key."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)


def _version_of(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
