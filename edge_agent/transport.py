"""The edge's two links as its settings want them: to the verifier, and from HTTP clients."""

import asyncio
import logging
import ssl

from prometheus_client import CollectorRegistry

from edge_agent.settings import EdgeSettings
from edge_agent.verifier_channel import LinkTls
from specedge.tls.files import NamedFile, TlsFiles, TlsSource
from specedge.tls.metrics import CertificateMetrics

logger = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0


class EdgeTls:
    """TLS of both links, as far as the settings want it.

    Raises:
        SettingsError: a file is missing, unusable or expired.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self.link = link_tls(settings)
        source = https_source(settings)
        self.https = None if source is None else HttpsContext(source)

    def show_expiry(self, registry: CollectorRegistry) -> None:
        """Show when the certificates expire."""
        metrics = CertificateMetrics(registry, "specedge_edge")
        if self.link is not None:
            metrics.watch("link", self.link.source)
        if self.https is not None:
            metrics.watch("http", self.https.source)


def link_tls(settings: EdgeSettings) -> LinkTls | None:
    """TLS with the verifier; None is plain text."""
    if settings.verifier_ca_file is None:
        return None
    certificate, key = settings.verifier_certificate_file, settings.verifier_key_file
    files = TlsFiles(
        None if certificate is None else NamedFile("verifier_certificate_file", certificate),
        None if key is None else NamedFile("verifier_key_file", key),
        NamedFile("verifier_ca_file", settings.verifier_ca_file),
    )
    return LinkTls(TlsSource(files), settings.verifier_name)


def https_source(settings: EdgeSettings) -> TlsSource | None:
    """The files of the HTTP API; None is plain HTTP."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return TlsSource(
        TlsFiles(
            NamedFile("tls_certificate_file", settings.tls_certificate_file),
            NamedFile("tls_key_file", settings.tls_key_file),
        )
    )


class HttpsContext:
    """TLS of the HTTP port; handshakes that begin after the files have changed have the new certificate."""

    def __init__(self, source: TlsSource) -> None:
        self.source = source
        self._loaded = source.material
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load()

    async def follow(self) -> None:
        """Looks at the files every second, for ever."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            material = await asyncio.to_thread(self.source.refresh)
            if material is self._loaded:
                continue
            try:
                self._load()
            except OSError as error:
                logger.error("the HTTPS certificate stays as it was, tried again in a second: %s", error)
            else:
                self._loaded = material

    def _load(self) -> None:
        files = self.source.files
        assert files.certificate is not None and files.key is not None
        self.context.load_cert_chain(files.certificate.path, files.key.path)
