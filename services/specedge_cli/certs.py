"""`specedge certs`: a certificate authority of one's own, and certificates of it for a verifier and for edges."""

import argparse
import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from specedge.errors import SettingsError

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
_BACKDATED = timedelta(minutes=5)  # for clocks that go a little late
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certs(arguments: list[str]) -> int:
    """Write the files that were asked for, and say what each is for.

    Raises:
        SettingsError: a name is not allowed, a file is there already, or the folder cannot be written to.
    """
    options = _parse(arguments)
    folder: Path = options.out
    for name in [*options.server_name, *options.edge_name]:
        if not _NAME.fullmatch(name) and not _is_address(name):
            raise SettingsError(f"{name!r:.80} is no name for a certificate: a host name or an IP address")
    if not 1 <= options.days <= AUTHORITY_DAYS:
        raise SettingsError(f"--days = {options.days}: allowed is 1 to {AUTHORITY_DAYS}")
    try:
        written = _write_all(folder, options.server_name, options.edge_name, options.days)
    except FileExistsError as error:
        raise SettingsError(f"{error.filename} is there already; nothing is overwritten") from None
    except OSError as error:
        raise SettingsError(f"{error.filename or folder}: {error.strerror}") from None
    for path, purpose in written:
        print(f"{path}: {purpose}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="specedge certs",
        description="Makes a certificate authority, a server certificate for a verifier (or for an edge's HTTPS) and a "
        "client certificate for each edge. Where the folder has an authority already, that one signs, and only the "
        "certificates that are named are made. Whoever has ca.key can make certificates: keep it off the machines that "
        "serve. For trying and for small private networks; a company has an authority of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files, made if missing")
    parser.add_argument(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address at which the server is asked, besides localhost; may be given several times",
    )
    parser.add_argument(
        "--edge-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of an edge, one certificate for each; may be given several times (default: edge)",
    )
    parser.add_argument(
        "--days", type=int, default=LEAF_DAYS, metavar="N", help=f"life of server and edges (default {LEAF_DAYS})"
    )
    return parser.parse_args(arguments)


def _write_all(folder: Path, server_names: list[str], edge_names: list[str], days: int) -> list[tuple[Path, str]]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_files = folder / "ca.crt", folder / "ca.key"
    has_authority = all(path.exists() for path in authority_files)
    wants_server = bool(server_names) or not has_authority
    edges = edge_names if edge_names or has_authority else ["edge"]
    stems = [*(["server"] if wants_server else []), *edges]
    if not stems:
        raise SettingsError(f"{folder} has an authority already; name what to make: --server-name or --edge-name")
    if repeated := [stem for stem in stems if stem == "ca" or stems.count(stem) > 1]:
        raise SettingsError(f"the name {repeated[0]} is taken in this folder by another certificate")
    new = [folder / f"{stem}{end}" for stem in stems for end in (".crt", ".key")]
    for path in [*new, *([] if has_authority else authority_files)]:
        if path.exists():
            raise FileExistsError(17, "exists", str(path))
    written: list[tuple[Path, str]] = []
    if has_authority:
        authority = read_authority(*authority_files)
    else:
        authority = make_authority()
        _write(folder, "ca", authority)
        written.append(
            (authority_files[0], "the authority: verifier_ca_file of edges, tls_client_ca_file of verifiers")
        )
        written.append((authority_files[1], "its key: signs further certificates; keep it apart"))
    if wants_server:
        names = [*_LOCAL_NAMES, *(name for name in server_names if name not in _LOCAL_NAMES)]
        _write(folder, "server", make_leaf(authority, "specedge-server", names, days, is_server=True))
        text = f"tls_certificate_file of a verifier or an edge, for {', '.join(names)}"
        written += [(folder / "server.crt", text), (folder / "server.key", "tls_key_file")]
    for name in edges:
        _write(folder, name, make_leaf(authority, name, [name], days, is_server=False))
        text = f"verifier_certificate_file of the edge {name}"
        written += [(folder / f"{name}.crt", text), (folder / f"{name}.key", "verifier_key_file")]
    return written


def make_authority() -> Pair:
    """A new authority, which signs itself and no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("SpecEdge development authority")
    builder = _builder(name, name, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def make_leaf(
    authority: Pair,
    common_name: str,
    names: list[str],
    days: float,
    *,
    is_server: bool,
    starts_at: datetime | None = None,
) -> Pair:
    """A certificate signed by `authority`.

    Args:
        authority: who signs.
        common_name: of its subject.
        names: host names and IP addresses it is for.
        days: its life.
        is_server: for a server, which may also show it as a client (its own health check does); else for a client.
        starts_at: when its life begins; None is now.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if is_server else [])]
    builder = _builder(_subject(common_name), authority.certificate.subject, key, days, starts_at)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage("digital_signature"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: float,
    starts_at: datetime | None = None,
) -> x509.CertificateBuilder:
    starts_at = starts_at or datetime.now(UTC) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts_at)
        .not_valid_after(starts_at + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in _USAGES})


def _general_name(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def read_authority(certificate: Path, key: Path) -> Pair:
    """An authority from its files; raises SettingsError where they hold none of this command's."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        public = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (ValueError, TypeError):
        raise SettingsError(f"{certificate} and {key} are no authority that this command has made") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != public.public_key():
        raise SettingsError(f"{certificate} and {key} are no authority that this command has made")
    return Pair(public, private)


def _write(folder: Path, stem: str, pair: Pair) -> None:
    write_pair(folder / f"{stem}.crt", folder / f"{stem}.key", pair)


def write_pair(certificate: Path, key: Path, pair: Pair) -> None:
    """Write both files as PEM, the key readable by its owner alone; raises FileExistsError rather than overwrite."""
    key_pem = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content, mode in (
        (key, key_pem, 0o600),
        (certificate, pair.certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
