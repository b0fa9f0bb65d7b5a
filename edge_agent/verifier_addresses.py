"""Where verifiers are: a list of addresses, the records of a name in DNS, or the lines of a file."""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from pydantic import TypeAdapter, ValidationError

from specedge.background import start_in_background
from specedge.entry_file import version_of
from specedge.errors import SettingsError
from specedge.settings import Address
from specedge.tls.rules import is_loopback

logger = logging.getLogger(__name__)

MAX_VERIFIERS: Final = 64
DNS: Final = "dns:"
FILE: Final = "file:"
LOOK_UP_EVERY_S: Final = 5.0
LOOK_UP_TIMEOUT_S: Final = 5.0
_MAX_FILE_BYTES: Final = 2**16

_address: Final[TypeAdapter[str]] = TypeAdapter(Address)

Resolve = Callable[[str, int], Awaitable[Iterable[str]]]


class VerifierAddresses(Protocol):
    """A source of addresses."""

    @property
    def text(self) -> str:
        """As the user wrote it."""

    @property
    def tls_name(self) -> str | None:
        """The name that certificates must have where the addresses do not say it."""

    @property
    def is_fixed(self) -> bool:
        """Whether the addresses never change."""

    async def refresh(self, now_s: float) -> tuple[str, ...]:
        """The addresses as they are now; called again and again, and never for long."""


class FixedAddresses:
    """Those of the settings."""

    tls_name = None
    is_fixed = True

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)

    @property
    def text(self) -> str:
        """See `VerifierAddresses.text`."""
        return ", ".join(self._addresses)

    async def refresh(self, now_s: float) -> tuple[str, ...]:
        """See `VerifierAddresses.refresh`."""
        return self._addresses


class DnsAddresses:
    """All A and AAAA records of a name, looked up again every few seconds; while that fails, the last ones that came.

    Args:
        name, port: of the verifiers.
        resolve: gives the IP addresses of a name.
        dice: spreads the times at which edges ask.
    """

    is_fixed = False

    def __init__(self, name: str, port: int, resolve: Resolve | None = None, dice: random.Random | None = None) -> None:
        self.tls_name = name
        self._port = port
        self._resolve = resolve or _resolve
        self._dice = dice or random.Random()
        self._addresses: tuple[str, ...] = ()
        self._next_s = 0.0
        self._lookup: asyncio.Future[Iterable[str]] | None = None
        self._is_failing = False

    @property
    def text(self) -> str:
        """See `VerifierAddresses.text`."""
        return f"{DNS}{self.tls_name}:{self._port}"

    async def refresh(self, now_s: float) -> tuple[str, ...]:
        """See `VerifierAddresses.refresh`. A slow lookup goes on, and its records count when they come."""
        if self._lookup is None:
            if now_s < self._next_s:
                return self._addresses
            self._next_s = now_s + LOOK_UP_EVERY_S * self._dice.uniform(0.75, 1.25)
            self._lookup = asyncio.ensure_future(self._resolve(self.tls_name, self._port))
        await asyncio.wait({self._lookup}, timeout=0.0 if self._is_failing else LOOK_UP_TIMEOUT_S)
        if self._lookup.done():
            self._take(self._lookup)
            self._lookup = None
        else:
            self._fail(f"no answer within {LOOK_UP_TIMEOUT_S:g} s")
        return self._addresses

    def _take(self, lookup: "asyncio.Future[Iterable[str]]") -> None:
        try:
            found = sorted({f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}" for ip in lookup.result()})
        except OSError as error:
            self._fail(str(error.strerror or error))
            return
        if not found:
            self._fail("it has no addresses")
            return
        self._is_failing = False
        if tuple(found[:MAX_VERIFIERS]) != self._addresses:
            if len(found) > MAX_VERIFIERS:
                logger.warning("%s: the first %d of %d are used", self.text, MAX_VERIFIERS, len(found))
            self._addresses = tuple(found[:MAX_VERIFIERS])
            logger.info("%s: %s", self.text, ", ".join(self._addresses))

    def _fail(self, reason: str) -> None:
        if not self._is_failing:
            kept = f"; going on with {', '.join(self._addresses)}" if self._addresses else ""
            logger.warning("%s cannot be looked up: %s%s", self.tls_name, reason, kept)
            self._is_failing = True


class FileAddresses:
    """The lines of a file, read again when it changes; a version that is wrong is logged once and changes nothing.

    Args:
        path: the file, an address a line; what follows a # is a remark.
        allows_plaintext: whether verifiers on other machines may be asked without TLS.

    Raises:
        SettingsError: the file cannot be read, or is wrong.
    """

    tls_name = None
    is_fixed = False

    def __init__(self, path: Path, allows_plaintext: bool) -> None:
        self._path = path
        self._allows_plaintext = allows_plaintext
        self._seen = version_of(path)
        self._addresses = read_addresses(path, allows_plaintext)

    @property
    def text(self) -> str:
        """See `VerifierAddresses.text`."""
        return f"{FILE}{self._path}"

    async def refresh(self, now_s: float) -> tuple[str, ...]:
        """See `VerifierAddresses.refresh`."""
        if (version := version_of(self._path)) != self._seen:
            self._seen = version
            try:
                self._addresses = read_addresses(self._path, self._allows_plaintext)
            except SettingsError as error:
                logger.error("the verifiers stay as they were: %s", error)
            else:
                logger.info("%s has changed: %s", self._path, ", ".join(self._addresses))
        return self._addresses


def read_addresses(path: Path, allows_plaintext: bool) -> tuple[str, ...]:
    """The addresses in a file; raises SettingsError, which names the first line that is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"verifier_address: {path} cannot be read: {reason}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise SettingsError(f"verifier_address: {path} is larger than {_MAX_FILE_BYTES} bytes")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        address = line.partition("#")[0].strip()
        if not address:
            continue
        where = f"verifier_address: {path}, line {number}: {address[:200]!r}"
        if not _is_address(address):
            raise SettingsError(f"{where} is no HOST:PORT or unix:PATH")
        if not allows_plaintext and not is_loopback(address):
            raise SettingsError(f"{where} is on another machine; set verifier_ca_file or allow_plaintext")
        found.append(address)
    if not found or (mistake := _mistake(found)):
        raise SettingsError(f"verifier_address: {path}: {mistake if found else 'it names no verifier'}")
    return tuple(found)


def check_addresses(text: str) -> str:
    """The setting as it is; raises ValueError when it names no verifiers."""
    if text.startswith(DNS):
        name, _, port = text[len(DNS) :].rpartition(":")
        if not _is_address(f"{name}:{port}") or name.startswith("["):
            raise ValueError(f"{text!r} is no dns:NAME:PORT")
    elif text.startswith(FILE):
        if not text[len(FILE) :].strip():
            raise ValueError(f"{text!r} is no file:PATH")
    else:
        addresses = split_addresses(text)
        for address in addresses:
            if not _is_address(address):
                raise ValueError(f"{address!r} is no HOST:PORT or unix:PATH")
        if mistake := _mistake(addresses):
            raise ValueError(mistake)
    return text


def split_addresses(text: str) -> tuple[str, ...]:
    """The addresses of a comma list; none where they are elsewhere."""
    return () if text.startswith((DNS, FILE)) else tuple(part.strip() for part in text.split(","))


def plaintext_hosts(text: str) -> tuple[str, ...]:
    """Which parts of the setting are on another machine; of a file each line is checked when it is read."""
    if text.startswith(DNS):
        return () if is_loopback(text[len(DNS) :]) else (text,)
    return tuple(address for address in split_addresses(text) if not is_loopback(address))


def address_source(text: str, allows_plaintext: bool) -> VerifierAddresses:
    """What the setting means; raises SettingsError when a file it names is missing or wrong."""
    if text.startswith(DNS):
        name, _, port = text[len(DNS) :].rpartition(":")
        return DnsAddresses(name, int(port))
    if text.startswith(FILE):
        return FileAddresses(Path(text[len(FILE) :].strip()), allows_plaintext)
    return FixedAddresses(split_addresses(text))


def _mistake(addresses: Sequence[str]) -> str:
    """What is wrong with a list of them; empty for nothing."""
    if len(addresses) > MAX_VERIFIERS:
        return f"{len(addresses)} verifiers; {MAX_VERIFIERS} are the most"
    twice = next((address for index, address in enumerate(addresses) if address in addresses[:index]), None)
    return "" if twice is None else f"{twice} is named twice"


def _is_address(text: str) -> bool:
    try:
        _address.validate_python(text)
    except ValidationError:
        return False
    return text.startswith("unix:") or int(text.rpartition(":")[2]) <= 65535


async def _resolve(name: str, port: int) -> list[str]:
    # On a thread that is not waited for when the process ends, which may be long before the resolver gives up.
    look_up = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
    found = await start_in_background(look_up, "resolver")
    return [str(address[0]) for *_, address in found]
