"""What an edge shows to its verifier, and how it makes sure of it."""

from collections.abc import Callable

from edge_agent.settings import EdgeSettings
from edge_agent.verifier_client import no_metadata
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
    """What every call carries."""
    return no_metadata


def shown_by(settings: EdgeSettings) -> list[str]:
    """What the verifier gets to see of this edge, in words and without secrets."""
    certificate = settings.verifier_certificate_file
    return [] if certificate is None else [f"the certificate in {certificate}"]
