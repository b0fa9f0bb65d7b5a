"""The tenants of a verifier: a YAML file of who may call and how much, read again when it changes."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Final

from specedge.entry_file import EntryFile, read_list
from specedge.errors import SettingsError
from specedge.hashed_secrets import find_owner, is_digest, is_name, name_mistake, new_secret, spell_digest
from specedge_verifier.tenant_account import Tenant, TenantAccount

__all__ = ["Caller", "Tenant", "TenantEntry", "Tenants", "new_token", "read_tenants", "spell_tenant"]

TOKEN_PREFIX: Final = "te-specedge-"
_WHAT: Final = "tenants"
_WHOLE: Final = {
    "max_sessions": (1, 1_000_000),
    "max_verified_tokens_per_second": (1, 1_000_000_000),
    "max_prompt_tokens": (1, 2**31 - 1),
}
_FRACTIONS: Final = {"weight": (0.001, 1000.0), "kv_share": (0.001, 1.0)}
_FIELDS: Final = ("name", "tokens", "certificates", *_FRACTIONS, *_WHOLE)
_MAX_NAME_CHARS: Final = 253


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """One entry of the file.

    Args:
        limits: what the tenant may take.
        digests: SHA-256 of each of its tokens, 32 bytes.
        certificates: names in client certificates that are the tenant's.
    """

    limits: Tenant
    digests: tuple[bytes, ...] = ()
    certificates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """What a caller has shown: a token, or the names in a certificate that TLS has verified; a token counts first.

    Nothing of it is ever logged.
    """

    token: bytes = b""
    certificate_names: tuple[str, ...] = ()


class Tenants:
    """The tenants of a file, as they are now.

    Args:
        path: the file.
        check_interval_s: how often at most the file is looked at.

    Attributes:
        accounts: of every tenant that the file has had, by name.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """

    def __init__(self, path: Path, check_interval_s: float = 1.0) -> None:
        self.check_interval_s = check_interval_s
        self.accounts: dict[str, TenantAccount] = {}
        self._file = EntryFile(path, _WHAT, read_tenants, check_interval_s)
        self._owners: list[tuple[bytes, TenantAccount]] = []
        self._account_of_name: dict[str, TenantAccount] = {}
        self._take_over()

    async def refresh(self) -> bool:
        """Reads the file again if it has changed; returns whether there are new entries."""
        if not await self._file.refresh():
            return False
        self._take_over()
        return True

    def find(self, caller: Caller) -> TenantAccount | None:
        """Whose call this is; it takes equally long for every token."""
        if caller.token:
            return find_owner(self._owners, caller.token)
        found = (self._account_of_name.get(name) for name in caller.certificate_names)
        return next((account for account in found if account is not None), None)

    def _take_over(self) -> None:
        owners: list[tuple[bytes, TenantAccount]] = []
        account_of_name: dict[str, TenantAccount] = {}
        for entry in self._file.entries:
            account = self.accounts.get(entry.limits.name)
            if account is None:
                account = TenantAccount(entry.limits, secrets.token_bytes(16))
                self.accounts[account.name] = account
            account.limits = entry.limits
            owners += [(digest, account) for digest in entry.digests]
            account_of_name |= dict.fromkeys(entry.certificates, account)
        self._owners, self._account_of_name = owners, account_of_name


def read_tenants(path: Path) -> tuple[TenantEntry, ...]:
    """The entries of a tenants file.

    Raises:
        SettingsError: the file cannot be read, or is wrong; one line for each mistake.
    """
    return tuple(_entry(entry) for entry in read_list(path, _WHAT, _mistakes))


def new_token() -> str:
    """A fresh token: 256 random bits."""
    return new_secret(TOKEN_PREFIX)


def spell_tenant(name: str, token: str, limits: dict[str, str] | None = None) -> str:
    """A tenant's entry for the file, as YAML.

    Args:
        name: the tenant's.
        token: of which the entry has the hash.
        limits: further fields, as they are to be written.

    Raises:
        SettingsError: the name or a limit is not allowed.
    """
    digest = spell_digest(token)
    limits = limits or {}
    mistakes = [*_mistakes([{"name": name, "tokens": [digest], **limits}])]
    if mistakes:
        raise SettingsError("\n  ".join(mistake.partition(": ")[2] for mistake in mistakes))
    # The quotes keep YAML from reading a name or a hash of digits as a number.
    lines = [f'- name: "{name}"', "  tokens:", f'    - "{digest}"', *(f"  {key}: {limits[key]}" for key in limits)]
    return "\n".join(lines) + "\n"


def _entry(entry: dict[str, Any]) -> TenantEntry:
    limits: dict[str, Any] = {field: int(entry[field]) for field in _WHOLE if entry.get(field)}
    limits |= {field: float(entry[field]) for field in _FRACTIONS if entry.get(field)}
    digests = tuple(bytes.fromhex(digest) for digest in entry.get("tokens") or ())
    return TenantEntry(Tenant(entry["name"], **limits), digests, tuple(entry.get("certificates") or ()))


def _mistakes(entries: list[Any]) -> Iterable[str]:
    """What is wrong with the entries; their values are text."""
    taken: dict[tuple[str, str], str] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            yield f"entry {number}: must have the field name, and tokens or certificates"
            continue
        name = entry.get("name", "")
        place = f"entry {number} ({name})" if is_name(name) else f"entry {number}"
        for mistake in _field_mistakes(entry):
            yield f"{place}: {mistake}"
        identities = [("name", name), *_items(entry, "tokens"), *_items(entry, "certificates")]
        for kind, value in identities:
            if not isinstance(value, str):
                continue
            # What stands under tokens may be a token itself: the message does not show it.
            identity = kind, sha256(value.lower().encode()).hexdigest()
            if identity in taken:
                yield f"{place}: {taken[identity]} has the same {kind}"
            taken.setdefault(identity, place)


def _items(entry: dict[str, Any], field: str) -> list[tuple[str, Any]]:
    items = entry.get(field)
    return [(field.removesuffix("s"), item) for item in items] if isinstance(items, list) else []


def _field_mistakes(entry: dict[str, Any]) -> Iterable[str]:
    for field in entry:
        if field not in _FIELDS:
            yield f"there is no field {field!r}; known are {', '.join(_FIELDS)}"
    if not is_name(entry.get("name", "")):
        yield name_mistake(entry.get("name", ""))
    for field, is_allowed, what in (
        ("tokens", is_digest, "the 64 hexadecimal digits of a token's SHA-256"),
        ("certificates", _is_certificate_name, f"a name in a certificate, 1 to {_MAX_NAME_CHARS} characters"),
    ):
        items = entry.get(field) or []
        if not isinstance(items, list) or not all(is_allowed(item) for item in items):
            yield f"{field} must be a list, each {what}"
    if not entry.get("tokens") and not entry.get("certificates"):
        yield "must have tokens or certificates, or nobody can be this tenant"
    for field, (low, high) in _WHOLE.items():
        value = entry.get(field, "")
        is_whole = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10
        if value != "" and not (is_whole and low <= int(value) <= high):
            yield f"{field} = {value!r:.80} must be an integer from {low} to {high}"
    for field, (least, most) in _FRACTIONS.items():
        value = entry.get(field, "")
        if value != "" and not least <= _number(value) <= most:
            yield f"{field} = {value!r:.80} must be a number from {least:g} to {most:g}"


def _number(value: Any) -> float:
    """What the text spells; below every bound where that is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return -1.0
    return number if isfinite(number) else -1.0


def _is_certificate_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARS and value.isprintable()
