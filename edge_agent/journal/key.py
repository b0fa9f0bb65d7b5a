"""The journal's secret: read from a file, and never used itself but for deriving others."""

import base64
import binascii
import hmac
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from specedge.errors import SettingsError

KEY_BYTES: Final = 32
_HOW: Final = "make one with: openssl rand -base64 32"


class JournalKey:
    """What is derived from the secret: names of files, seeds, and a key for each file.

    Args:
        secret: 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._naming = self._derive(b"names of files")
        self._seeding = self._derive(b"seeds of answers")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key in a file, in base64.

        Raises:
            SettingsError: the file cannot be read, or does not hold a key.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"journal_key_file {path}: {error.strerror}; {_HOW}") from error
        try:
            secret = base64.b64decode(text.strip(), validate=True)
        except binascii.Error:
            secret = b""  # what stands there may be a secret: nothing of it is shown
        if len(secret) != KEY_BYTES:
            raise SettingsError(f"journal_key_file {path}: does not hold {KEY_BYTES} bytes in base64; {_HOW}")
        return cls(secret)

    def name_of(self, *parts: bytes) -> str:
        """A file's name, from which nobody without the secret learns what it is for."""
        return _mac(self._naming, *parts).hex()

    def seed_of(self, *parts: bytes) -> int:
        """A seed below 2**63, always the same for the same parts."""
        return int.from_bytes(_mac(self._seeding, *parts)[:8], "big") >> 1

    def file_key(self, salt: bytes) -> bytes:
        """The 32 bytes that encrypt one file."""
        return self._derive(b"frames", salt)

    def _derive(self, purpose: bytes, salt: bytes | None = None) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt, b"specedge journal: " + purpose).derive(self._secret)


def _mac(key: bytes, *parts: bytes) -> bytes:
    """Of a row of byte strings, unambiguously."""
    mac = hmac.new(key, digestmod=sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "big") + part)
    return mac.digest()
