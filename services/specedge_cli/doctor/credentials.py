"""What an edge shows to its verifier, and how it makes sure of it."""

from collections.abc import Callable

from edge_agent.app import verifier_token
from edge_agent.settings import EdgeSettings
from specedge.tls.diagnosis import ClientTls
from specedge.wire.status import Metadata


def client_tls(settings: EdgeSettings) -> ClientTls | None:
    """TLS of the link by paths, whatever is in the files; None is plain text."""
    if settings.verifier_ca_file is None:
        return None
    return ClientTls(
        settings.verifier_ca_file,
        settings.verifier_certificate_file,
        settings.verifier_key_file,
        settings.verifier_name,
    )


def metadata_of(settings: EdgeSettings) -> Callable[[], Metadata]:
    """What every call carries.

    Raises:
        SettingsError: the token cannot be used.
    """
    return verifier_token(settings)


def shown_by(settings: EdgeSettings) -> list[str]:
    """What the verifier gets to see of this edge, in words and without secrets."""
    shown = []
    if settings.verifier_token is not None or settings.verifier_token_file is not None:
        shown.append("a token")
    if settings.verifier_certificate_file is not None:
        shown.append(f"the certificate in {settings.verifier_certificate_file}")
    return shown
