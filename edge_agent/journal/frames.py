"""A file of the journal: a head, and frames that are appended and never changed.

    head   magic, 16 bytes of salt
    frame  u32 length of what follows, 12 bytes of nonce, the text in AES-256-GCM with its 16-byte tag

The tag is the checksum. It also covers the file's name and the frame's number, so that a frame counts in its own place
only. What is torn at the end, or not what was written, ends the file there.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_agent.journal.key import JournalKey

MAGIC: Final = b"specedge journal 1\n"
HEAD_BYTES: Final = len(MAGIC) + 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
FRAME_OVERHEAD_BYTES: Final = 4 + _NONCE_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file holds.

    Attributes:
        texts: the frames' texts, as far as they are whole.
        num_bytes: how many bytes of the file these take, its head included; 0 without a head.
        is_damaged: a frame is all there and not what was written, or the file is of another key.
    """

    texts: Sequence[bytes]
    num_bytes: int
    is_damaged: bool


class FrameWriter:
    """Makes the bytes of one file, in order.

    Args:
        key: the journal's.
        name: the file's.
        salt: the file's; None draws one for a new file.
        num_frames: that the file has already.
    """

    def __init__(self, key: JournalKey, name: str, salt: bytes | None = None, num_frames: int = 0) -> None:
        self._head = b"" if salt is not None else MAGIC + secrets.token_bytes(HEAD_BYTES - len(MAGIC))
        self._cipher = AESGCM(key.file_key(salt or self._head[len(MAGIC) :]))
        self._name = name
        self._num_frames = num_frames

    def frame(self, text: bytes) -> bytes:
        """The next bytes of the file; the first of a new one begin with its head."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, text, _place(self._name, self._num_frames))
        head, self._head = self._head, b""
        self._num_frames += 1
        return head + len(sealed).to_bytes(4, "big") + sealed


def read_frames(data: bytes, key: JournalKey, name: str) -> FileContent:
    """What is good of a file from its beginning."""
    if len(data) < HEAD_BYTES or not data.startswith(MAGIC):
        return FileContent((), 0, not MAGIC.startswith(data[: len(MAGIC)]))
    cipher = AESGCM(key.file_key(salt_of(data)))
    texts: list[bytes] = []
    start = HEAD_BYTES
    while len(data) - start >= FRAME_OVERHEAD_BYTES:
        end = start + 4 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            break
        nonce, sealed = data[start + 4 : start + 4 + _NONCE_BYTES], data[start + 4 + _NONCE_BYTES : end]
        try:
            texts.append(cipher.decrypt(nonce, sealed, _place(name, len(texts))))
        except (InvalidTag, ValueError):  # the latter for what is too short for a nonce or a tag
            return FileContent(texts, start, True)
        start = end
    return FileContent(texts, start, False)


def salt_of(data: bytes) -> bytes:
    """The salt in the head of a file."""
    return data[len(MAGIC) : HEAD_BYTES]


def _place(name: str, number: int) -> bytes:
    return f"{name} {number}".encode()
