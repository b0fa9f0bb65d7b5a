"""When certificates expire, as a metric."""

from prometheus_client import CollectorRegistry, Gauge

from specedge.tls.files import TlsSource


class CertificateMetrics:
    """Shows the expiry of certificates in `registry`, as `{namespace}_certificate_expiry_timestamp_seconds`."""

    def __init__(self, registry: CollectorRegistry, namespace: str) -> None:
        self._expiry = Gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the own certificate, or the first of its chain, expires",
            ["use"],
            namespace=namespace,
            registry=registry,
        )

    def watch(self, use: str, source: TlsSource) -> None:
        """Show a certificate; `use` is "link" (edge and verifier) or "http"."""
        if source.material.expires_at is not None:
            self._expiry.labels(use).set_function(lambda: _expiry_s(source))


def _expiry_s(source: TlsSource) -> float:
    expires_at = source.refresh().expires_at
    return float("nan") if expires_at is None else expires_at.timestamp()
