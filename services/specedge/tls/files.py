"""The PEM files of one end of a connection: read, checked, and read again when they change."""

import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from specedge.errors import SettingsError

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 2**20
_TIME = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file and the setting that names it; both stand in messages."""

    setting: str
    path: Path

    def __str__(self) -> str:
        return f"{self.setting} = {self.path}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What one end needs.

    Args:
        certificate: its own certificate, followed by those between it and the authority; None shows none.
        key: the certificate's private key, without a passphrase; given with `certificate`.
        authority: certificates of which one must have signed the peer's; None asks the peer for none.
    """

    certificate: NamedFile | None = None
    key: NamedFile | None = None
    authority: NamedFile | None = None

    @property
    def present(self) -> tuple[NamedFile, ...]:
        """The files that there are to be."""
        return tuple(file for file in (self.certificate, self.key, self.authority) if file is not None)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """The content of the files: it has been checked, and the key is its certificate's."""

    certificate_pem: bytes | None
    key_pem: bytes | None
    authority_pem: bytes | None
    expires_at: datetime | None  # the first of the own chain to expire


def read_tls(files: TlsFiles) -> TlsMaterial:
    """Read and check the files.

    Raises:
        SettingsError: one cannot be read, is no PEM file of its kind, has expired, or the key is another one's.
    """
    certificate_pem = key_pem = authority_pem = expires_at = None
    if files.certificate is not None and files.key is not None:
        certificate_pem, key_pem = _read(files.certificate), _read(files.key)
        chain = _certificates(files.certificate, certificate_pem)
        for certificate in chain:
            _check_period(files.certificate, certificate)
        _check_key(files.key, key_pem, files.certificate, chain[0])
        expires_at = min(certificate.not_valid_after_utc for certificate in chain)
    if files.authority is not None:
        authority_pem = _read(files.authority)
        authorities = _certificates(files.authority, authority_pem)
        if all(authority.not_valid_after_utc <= datetime.now(UTC) for authority in authorities):
            _check_period(files.authority, authorities[0])
    return TlsMaterial(certificate_pem, key_pem, authority_pem, expires_at)


class TlsSource:
    """The files' content as it is now; may be used from several threads.

    Raises:
        SettingsError: as `read_tls`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._lock = threading.Lock()
        self._seen = self._versions()
        self._material = read_tls(files)

    @property
    def material(self) -> TlsMaterial:
        """What was read last; another object after a change."""
        return self._material

    def refresh(self) -> TlsMaterial:
        """Reads changed files again; what is wrong with them is logged once, and the old content stays in use."""
        with self._lock:
            versions = self._versions()
            if versions != self._seen:
                self._seen = versions
                names = ", ".join(str(file) for file in self.files.present)
                try:
                    self._material = read_tls(self.files)
                except SettingsError as error:
                    logger.error("the TLS files have changed and the old ones stay in use: %s", error)
                else:
                    logger.info("the TLS files have changed and are used from now on: %s", names)
            return self._material

    def _versions(self) -> list[tuple[int, ...] | None]:
        return [_version_of(file.path) for file in self.files.present]


def _read(file: NamedFile) -> bytes:
    try:
        with file.path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise SettingsError(f"{file} is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _certificates(file: NamedFile, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise SettingsError(f"{file} holds no certificate in PEM form, or a damaged one") from None


def _check_period(file: NamedFile, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    name = certificate.subject.rfc4514_string()
    if certificate.not_valid_after_utc <= now:
        raise SettingsError(f"{file}: the certificate of {name} expired on {certificate.not_valid_after_utc:{_TIME}}")
    if certificate.not_valid_before_utc > now:
        since = format(certificate.not_valid_before_utc, _TIME)
        raise SettingsError(f"{file}: the certificate of {name} is valid only from {since} on; is the clock right?")


def _check_key(file: NamedFile, pem: bytes, certificate_file: NamedFile, certificate: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise SettingsError(f"{file} is protected by a passphrase; a key without one is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{file} holds no private key in PEM form, or a damaged one") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise SettingsError(f"{file} is not the key of the certificate in {certificate_file}")


def _version_of(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
