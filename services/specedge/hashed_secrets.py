"""Secrets of which a file holds only the hashes: API keys of an edge's users, tokens of a verifier's tenants.

A secret is 256 random bits, so nobody finds it by trying, and one SHA-256 hides it as well as a slow password hash
would. The hashes are compared in constant time, each presented secret with all of them.
"""

import hmac
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, TypeVar

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")

Owner = TypeVar("Owner")


def new_secret(prefix: str) -> str:
    """A fresh secret: 256 random bits after a prefix that says what it is for."""
    return prefix + secrets.token_urlsafe(32)


def find_owner(owners: Iterable[tuple[bytes, Owner]], secret: bytes) -> Owner | None:
    """Whose secret this is, by its SHA-256; it takes equally long for every secret."""
    digest = sha256(secret).digest()
    found = None
    for known, owner in owners:
        if hmac.compare_digest(known, digest):
            found = owner
    return found


def is_name(value: Any) -> bool:
    """Whether an owner may be called so."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def name_mistake(value: Any) -> str:
    """What is wrong with a name that `is_name` refuses."""
    return f"name = {value!r:.80} must be 1 to 64 letters, digits or . _ @ -, beginning with a letter or digit"


def is_digest(value: Any) -> bool:
    """Whether this spells a SHA-256."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def spell_digest(secret: str) -> str:
    """A secret's SHA-256 in hexadecimal digits."""
    return sha256(secret.encode()).hexdigest()
