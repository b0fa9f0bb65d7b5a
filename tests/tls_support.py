"""Certificate authorities and certificates for tests, good ones and bad ones."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_agent.verifier_channel import LinkTls
from specedge.tls.files import NamedFile, TlsFiles, TlsSource
from specedge_cli.certs import Pair, make_authority, make_leaf

SERVER_NAMES = ["localhost", "127.0.0.1", "verifier.test"]


@dataclass(frozen=True)
class Paths:
    """A certificate and its key as files."""

    certificate: Path
    key: Path


class Authority:
    """An authority that writes its own certificate, and those it signs, into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.pair = make_authority()
        self.file = folder / "ca.crt"
        self.file.write_bytes(self.pair.certificate.public_bytes(Encoding.PEM))

    def leaf(self, name: str, *, is_server: bool = False, days_old: float = 0, days: float = 30) -> Pair:
        """A certificate; one older than its days has expired, one of negative age is not valid yet."""
        starts_at = datetime.now(UTC) - timedelta(days=days_old, minutes=1)
        names = SERVER_NAMES if is_server else [name]
        return make_leaf(self.pair, name, names, days, is_server=is_server, starts_at=starts_at)

    def files(self, name: str, *, is_server: bool = False, days_old: float = 0, days: float = 30) -> Paths:
        """A certificate as files, which may be there already: then they are replaced, as an operator would do it."""
        paths = Paths(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        replace(paths, self.leaf(name, is_server=is_server, days_old=days_old, days=days))
        return paths


def replace(paths: Paths, pair: Pair) -> None:
    """Writes both files anew, each in one go."""
    key_pem = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, content in ((paths.key, key_pem), (paths.certificate, pair.certificate.public_bytes(Encoding.PEM))):
        beside = path.with_suffix(path.suffix + ".new")
        beside.write_bytes(content)
        beside.rename(path)


def serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def server_source(own: Paths, client_authority: Path | None = None) -> TlsSource:
    authority = None if client_authority is None else NamedFile("tls_client_ca_file", client_authority)
    return TlsSource(
        TlsFiles(NamedFile("tls_certificate_file", own.certificate), NamedFile("tls_key_file", own.key), authority)
    )


def link(authority: Path, own: Paths | None = None, name: str | None = None) -> LinkTls:
    files = TlsFiles(
        None if own is None else NamedFile("verifier_certificate_file", own.certificate),
        None if own is None else NamedFile("verifier_key_file", own.key),
        NamedFile("verifier_ca_file", authority),
    )
    return LinkTls(TlsSource(files), name)
