"""What is wrong with certificate files is said at start, with the setting, the file and the reason."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from tls_support import Authority, Paths, replace, server_source

from specedge.errors import SettingsError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def refusal(own: Paths, client_authority: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        server_source(own, client_authority)
    return str(caught.value)


def test_what_is_read_is_what_the_files_hold(authority: Authority) -> None:
    own = authority.files("server", is_server=True)
    material = server_source(own, authority.file).material
    assert material.certificate_pem == own.certificate.read_bytes()
    assert material.key_pem == own.key.read_bytes()
    assert material.authority_pem == authority.file.read_bytes()
    assert material.expires_at == authority_expiry(own)


def authority_expiry(own: Paths) -> object:
    from cryptography import x509

    return x509.load_pem_x509_certificate(own.certificate.read_bytes()).not_valid_after_utc


def test_a_missing_file(authority: Authority) -> None:
    own = authority.files("server", is_server=True)
    own.key.unlink()
    assert refusal(own) == f"tls_key_file = {own.key} cannot be read: No such file or directory"


def test_a_folder_in_place_of_a_file(authority: Authority, tmp_path: Path) -> None:
    own = authority.files("server", is_server=True)
    assert refusal(Paths(tmp_path, own.key)) == f"tls_certificate_file = {tmp_path} cannot be read: Is a directory"


def test_another_certificates_key(authority: Authority) -> None:
    own, other = authority.files("server", is_server=True), authority.files("other")
    message = refusal(Paths(own.certificate, other.key))
    assert message == (
        f"tls_key_file = {other.key} is not the key of the certificate in tls_certificate_file = {own.certificate}"
    )


def test_an_expired_certificate(authority: Authority) -> None:
    own = authority.files("server", is_server=True, days_old=9, days=2)
    assert f"tls_certificate_file = {own.certificate}: the certificate of CN=server expired on 20" in refusal(own)


def test_a_certificate_of_the_future(authority: Authority) -> None:
    own = authority.files("server", is_server=True, days_old=-9)
    assert "is valid only from 20" in refusal(own)


def test_an_authority_that_is_none(authority: Authority) -> None:
    own = authority.files("server", is_server=True)
    message = refusal(own, own.key)
    assert message == f"tls_client_ca_file = {own.key} holds no certificate in PEM form, or a damaged one"


def test_a_key_under_a_passphrase(authority: Authority) -> None:
    own = authority.files("server", is_server=True)
    pair = authority.leaf("server", is_server=True)
    replace(own, pair)
    own.key.write_bytes(pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    assert refusal(own) == f"tls_key_file = {own.key} is protected by a passphrase; a key without one is needed"


def test_no_message_tells_what_a_key_file_holds(authority: Authority) -> None:
    own = authority.files("server", is_server=True)
    own.key.write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n")
    message = refusal(own)
    assert "holds no private key" in message and "hunter2" not in message


def test_new_files_are_taken_and_bad_ones_are_not(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    own = authority.files("server", is_server=True)
    source = server_source(own)
    first = source.material
    assert source.refresh() is first
    authority.files("server", is_server=True)
    second = source.refresh()
    assert second is not first and second.certificate_pem == own.certificate.read_bytes()
    key_pem = own.key.read_bytes()
    own.key.write_bytes(b"half of a k")
    assert source.refresh() is second and source.refresh() is second
    assert [record.levelname for record in caplog.records if "old ones stay" in record.message] == ["ERROR"]
    own.key.write_bytes(key_pem)
    assert source.refresh().key_pem == key_pem
