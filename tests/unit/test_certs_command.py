"""`specedge certs`: what it writes, for whom, and what it never overwrites."""

import ipaddress
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tls_support import Paths, link, server_source

from specedge_cli.main import main


def certs(folder: Path, *flags: str) -> int:
    return main(["certs", "--out", str(folder), *flags])


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_files_of_a_pair(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    assert certs(folder, "--server-name", "gpu-server", "--server-name", "10.0.0.5", "--edge-name", "alice") == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("alice.crt", "alice.key", "ca.crt", "ca.key", "server.crt", "server.key")
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    authority, server, alice = (read(folder / f"{name}.crt") for name in ("ca", "server", "alice"))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gpu-server"]
    addresses = [ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", "10.0.0.5")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    names = alice.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["alice"]
    for leaf in (server, alice):
        leaf.verify_directly_issued_by(authority)
        assert timedelta(days=396) < leaf.not_valid_after_utc - datetime.now(UTC) < timedelta(days=398)
    usage = alice.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [*usage] == [ExtendedKeyUsageOID.CLIENT_AUTH], "an edge cannot pass for a verifier"
    # Both processes take them.
    server_source(Paths(folder / "server.crt", folder / "server.key"), folder / "ca.crt")
    link(folder / "ca.crt", Paths(folder / "alice.crt", folder / "alice.key"))


def test_a_further_edge_of_the_same_authority(tmp_path: Path) -> None:
    assert certs(tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in before} >= {"edge.crt", "server.crt"}
    assert certs(tmp_path, "--edge-name", "bob", "--days", "7") == 0
    bob = read(tmp_path / "bob.crt")
    bob.verify_directly_issued_by(read(tmp_path / "ca.crt"))
    assert bob.not_valid_after_utc - datetime.now(UTC) < timedelta(days=7)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("flags", [["--edge-name", "edge"], ["--server-name", "gpu"], ["--edge-name", "ca"]])
def test_nothing_is_overwritten(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert certs(tmp_path, *flags) == 2
    message = capsys.readouterr().err
    assert "nothing is overwritten" in message or "taken in this folder" in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--edge-name", "../alice"], "'../alice' is no name for a certificate"),
        (["--edge-name", "a", "--edge-name", "a"], "the name a is taken"),
        (["--days", "0"], "--days = 0: allowed is 1 to 3650"),
    ],
)
def test_what_cannot_be_made(tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path / "new", *flags) == 2
    assert reason in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.key")]
