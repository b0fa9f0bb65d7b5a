"""The keys that open the HTTP API: a YAML file of their hashes, read again when it changes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specedge.entry_file import EntryFile, read_list
from specedge.errors import SettingsError
from specedge.hashed_secrets import find_owner, is_digest, is_name, name_mistake, new_secret, spell_digest

KEY_PREFIX: Final = "sk-specedge-"
_WHAT: Final = "API keys"
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
        self._file = EntryFile(path, _WHAT, read_api_keys, check_interval_s, clock)

    def find(self, key: bytes) -> ApiKey | None:
        """The entry of a presented key; it takes equally long for every key."""
        return find_owner([(entry.digest, entry) for entry in self._file.entries], key)

    async def refresh(self) -> None:
        """Reads the file again if it has changed; a version that is wrong is logged once and changes nothing."""
        await self._file.refresh()


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """The entries of a key file.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """
    return tuple(_entry(entry) for entry in read_list(path, _WHAT, _mistakes))


def new_key() -> str:
    """A fresh key: 256 random bits."""
    return new_secret(KEY_PREFIX)


def spell_entry(name: str, key: str, requests_per_minute: int | None = None, max_concurrent: int | None = None) -> str:
    """A key's entry for the file, as YAML.

    Raises:
        SettingsError: the name or a limit is not allowed.
    """
    entry = {
        "name": name,
        "sha256": spell_digest(key),
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
        place = f"entry {number} ({name})" if is_name(name) else f"entry {number}"
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
    if not is_name(name):
        yield name_mistake(name)
    if not is_digest(entry.get("sha256", "")):
        # What stands there may be the key itself.
        yield "sha256 must be the 64 hexadecimal digits of the key's SHA-256"
    for field, (low, high) in _BOUNDS.items():
        value = entry.get(field, "")
        if value == "":
            continue
        is_whole = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 9
        if not is_whole or not low <= int(value) <= high:
            yield f"{field} = {value!r:.80} must be an integer from {low} to {high}"
