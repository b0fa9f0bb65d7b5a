"""Why TLS with a gRPC server fails: gRPC's own status often says only that the socket was closed."""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REASONS: Final = ("untrusted", "expired", "not_yet_valid", "wrong_name", "refused", "not_tls", "needs_tls", "other")

# OpenSSL's X509_V_ERR_... numbers.
_VERIFY_REASONS: Final = {
    9: ("not_yet_valid", "its certificate is not valid yet"),
    10: ("expired", "its certificate has expired"),
    62: ("wrong_name", "its certificate is for another name than {name}"),
    64: ("wrong_name", "its certificate is for another name than {name}"),
}
_UNTRUSTED: Final = "its certificate was not signed by the authority that is trusted here ({detail})"
_PLAIN_ANSWERS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client makes sure of a server, and shows who it is itself.

    Args:
        authority_file: CA certificates, one of which must have signed the server's.
        certificate_file, key_file: the client's own; None shows none.
        name: expected in the server's certificate; None expects the address's host.
    """

    authority_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """Why there is no connection: `reason` is one of REASONS, `text` is for people and holds no secrets."""

    reason: str
    text: str


def diagnose(address: str, tls: ClientTls | None, timeout_s: float) -> TlsFailure | None:
    """Connect to a gRPC server as a client with these files would, and see how far it gets. Blocks.

    Args:
        address: HOST:PORT.
        tls: the client's; None is a client that speaks plain text.
        timeout_s: how long each of connecting, the handshake and the server's first word may take.

    Returns:
        None where TLS is not what keeps the two apart.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or address.startswith("unix:"):
        return None
    try:
        context = client_context(tls)
        with (
            socket.create_connection((host, int(port)), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=(tls and tls.name) or host) as secure,
        ):
            if tls is None:
                return TlsFailure("needs_tls", f"{address} speaks TLS and is asked in plain text")
            return _first_word(secure, address, tls)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, address, host, tls)
    except ssl.SSLError as error:
        return None if tls is None else _broken(error, address)
    except (OSError, ValueError):
        return None


def client_context(tls: ClientTls | None) -> ssl.SSLContext:
    """What a client connects with: its files loaded, HTTP/2 offered; None makes sure of nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if tls is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(tls.authority_file)
    if tls.certificate_file is not None:
        context.load_cert_chain(tls.certificate_file, tls.key_file)
    return context


def _first_word(secure: ssl.SSLSocket, address: str, tls: ClientTls) -> TlsFailure | None:
    """A server that takes the client's certificate, or wants none, begins to speak HTTP/2; another one hangs up."""
    try:
        if secure.recv(1):
            return None
    except TimeoutError:
        return None
    except OSError:
        pass
    shown = "no certificate was shown" if tls.certificate_file is None else "it refused the certificate it was shown"
    return TlsFailure("refused", f"{address} ended the connection after the TLS handshake: {shown}")


def _unverified(error: ssl.SSLCertVerificationError, address: str, host: str, tls: ClientTls | None) -> TlsFailure:
    name = (tls and tls.name) or host
    reason, text = _VERIFY_REASONS.get(error.verify_code, ("untrusted", _UNTRUSTED))
    return TlsFailure(reason, f"{address} is not trusted: {text.format(name=name, detail=error.verify_message)}")


def _broken(error: ssl.SSLError, address: str) -> TlsFailure:
    reason = error.reason or "TLS failed"
    if reason in _PLAIN_ANSWERS:
        return TlsFailure("not_tls", f"{address} does not speak TLS")
    if "ALERT" in reason:
        return TlsFailure("refused", f"{address} refused the TLS handshake: {reason}")
    return TlsFailure("other", f"TLS with {address} failed: {reason}")
