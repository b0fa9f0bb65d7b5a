"""The token that makes this edge a tenant of its verifier."""

import logging
from pathlib import Path
from typing import Final

from specedge.entry_file import version_of
from specedge.errors import SettingsError
from specedge.wire.status import Metadata

logger = logging.getLogger(__name__)

_MAX_CHARS: Final = 4096


class VerifierToken:
    """What is sent with every call to the verifier; a token from a file is read again when the file changes.

    Args:
        token: itself, or empty.
        path: the file that holds it alone; None where it is given.

    Raises:
        SettingsError: the token, or the file, cannot be used.
    """

    def __init__(self, token: str = "", path: Path | None = None) -> None:
        self._path = path
        self._seen = None if path is None else version_of(path)
        self._metadata = _metadata_of(token if path is None else _read(path), "verifier_token")

    def __call__(self) -> Metadata:
        """The metadata of a call that begins now."""
        if self._path is not None and (version := version_of(self._path)) != self._seen:
            self._seen = version
            try:
                self._metadata = _metadata_of(_read(self._path), "verifier_token_file")
            except SettingsError as error:
                logger.error("the verifier's token stays as it was: %s", error)
            else:
                logger.info("%s has changed: the next calls carry its token", self._path)
        return self._metadata


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            token = file.read(_MAX_CHARS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"verifier_token_file: {path} cannot be read: {reason}") from None
    if not token:
        raise SettingsError(f"verifier_token_file: {path} is empty; it must hold a token")
    return token


def _metadata_of(token: str, setting: str) -> Metadata:
    if not token:
        return ()
    if len(token) > _MAX_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        # The value is not shown: it is a secret, if a mistyped one.
        raise SettingsError(f"{setting} must be 1 to {_MAX_CHARS} visible ASCII characters")
    return (("authorization", f"Bearer {token}"),)
