"""Plain text is spoken on loopback only, unless a setting says so by name."""

from pathlib import Path

import pytest

from edge_agent.settings import EdgeSettings
from specedge.errors import SettingsError
from specedge.settings_sources import ProcessKind, load_settings
from specedge_verifier.settings import VerifierSettings

VERIFIER = ProcessKind("verifier", VerifierSettings)
EDGE = ProcessKind("edge", EdgeSettings)
HOME = ("127.0.0.1", "127.0.0.7", "::1", "localhost")
ABROAD = ("0.0.0.0", "::", "10.0.0.5", "gpu-server", "localhost.example.org", "127.0.0.1.example.org")
PAIR = ("--tls-certificate-file", "server.crt", "--tls-key-file", "server.key")


def load(kind: ProcessKind, *flags: str) -> object:
    return load_settings(kind, [VERIFIER, EDGE], flags)


def refusal(kind: ProcessKind, *flags: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(kind, *flags)
    return str(caught.value)


@pytest.mark.parametrize("kind", [VERIFIER, EDGE])
@pytest.mark.parametrize("host", HOME)
def test_a_service_on_loopback_needs_nothing(kind: ProcessKind, host: str) -> None:
    load(kind, "--host", host)


@pytest.mark.parametrize("host", ABROAD)
@pytest.mark.parametrize(("kind", "permission"), [(VERIFIER, "allow_plaintext"), (EDGE, "allow_plaintext_http")])
def test_a_service_beyond_loopback_needs_tls_or_the_permission(kind: ProcessKind, permission: str, host: str) -> None:
    message = refusal(kind, "--host", host)
    assert message.startswith(f"host = {host} would speak plain text beyond this machine; set tls_certificate_file")
    assert f"{permission}: true" in message
    load(kind, "--host", host, *PAIR)
    load(kind, "--host", host, f"--{permission.replace('_', '-')}", "true")


@pytest.mark.parametrize("host", HOME)
def test_a_verifier_on_loopback_may_be_asked_in_plain_text(host: str) -> None:
    load(EDGE, "--verifier-address", f"[{host}]:1" if ":" in host else f"{host}:1")


@pytest.mark.parametrize("host", ABROAD)
def test_a_verifier_elsewhere_may_not(host: str) -> None:
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    message = refusal(EDGE, "--verifier-address", address)
    assert message.startswith(f"verifier_address = {address} would speak plain text beyond this machine")
    assert "verifier_ca_file" in message and "allow_plaintext: true" in message
    load(EDGE, "--verifier-address", address, "--verifier-ca-file", "ca.crt")
    load(EDGE, "--verifier-address", address, "--allow-plaintext", "true")


def test_one_permission_is_not_the_other() -> None:
    assert "allow_plaintext_http" in refusal(EDGE, "--host", "0.0.0.0", "--allow-plaintext", "true")
    flags = "--verifier-address", "gpu-server:1", "--allow-plaintext-http", "true"
    assert "allow_plaintext: true" in refusal(EDGE, *flags)


def test_a_unix_socket_is_this_machine(tmp_path: Path) -> None:
    load(VERIFIER, "--host", f"unix:{tmp_path}/verifier.sock")
    load(EDGE, "--verifier-address", f"unix:{tmp_path}/verifier.sock")


def test_the_permission_comes_by_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_ALLOW_PLAINTEXT", "true")
    monkeypatch.setenv("SPECEDGE_EDGE__ALLOW_PLAINTEXT_HTTP", "true")
    load(VERIFIER, "--host", "0.0.0.0")
    load(EDGE, "--host", "0.0.0.0", "--verifier-address", "verifier:50051")


@pytest.mark.parametrize(
    ("kind", "flags", "reason"),
    [
        (VERIFIER, PAIR[:2], "belong together: tls_key_file is not set"),
        (VERIFIER, PAIR[2:], "belong together: tls_certificate_file is not set"),
        (VERIFIER, ("--tls-client-ca-file", "ca.crt"), "tls_client_ca_file is set, which takes TLS"),
        (EDGE, PAIR[2:], "belong together: tls_certificate_file is not set"),
        (EDGE, ("--verifier-key-file", "a.key"), "belong together: verifier_certificate_file is not set"),
        (EDGE, ("--verifier-name", "gpu"), "verifier_name is set, which takes TLS: verifier_ca_file is not set"),
        (
            EDGE,
            ("--allow-plaintext", "perhaps"),
            "allow_plaintext = 'perhaps' (flag --allow-plaintext): allowed is true",
        ),
    ],
)
def test_settings_that_do_not_go_together(kind: ProcessKind, flags: tuple[str, ...], reason: str) -> None:
    assert reason in refusal(kind, *flags)
