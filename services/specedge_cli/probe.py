"""Asks a running process whether it is ready: gRPC health for a verifier, `/ready` for an edge agent."""

import http.client
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from specedge.errors import SettingsError
from specedge.tls.diagnosis import ClientTls, diagnose

if TYPE_CHECKING:
    import grpc


def probe(address: str, timeout_s: float, tls: ClientTls | None = None) -> str | None:
    """Why the process at `address` is not ready, or None when it is.

    Args:
        address: `HOST:PORT` or `unix:PATH` asks by gRPC, `http://HOST:PORT` and `https://HOST:PORT` by HTTP.
        timeout_s: how long an answer may take.
        tls: asks by TLS; None asks a gRPC server in plain text, and an HTTPS one by the system's authorities.

    Raises:
        SettingsError: a file of `tls` cannot be used.
    """
    if address.startswith(("http://", "https://")):
        return _probe_http(address.rstrip("/") + "/ready", timeout_s, tls)
    return _probe_grpc(address, timeout_s, tls)


def _probe_http(url: str, timeout_s: float, tls: ClientTls | None) -> str | None:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https://"):
        handlers.append(urllib.request.HTTPSHandler(context=_https_context(tls)))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"not ready (HTTP {error.code})"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"no answer ({getattr(error, 'reason', error)})"


def _https_context(tls: ClientTls | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if tls is None else tls.authority_file)
        if tls is not None and tls.certificate_file is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
    except OSError as error:
        raise SettingsError(f"the certificate files cannot be used: {error}") from None
    return context


def _probe_grpc(address: str, timeout_s: float, tls: ClientTls | None) -> str | None:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        made = grpc.insecure_channel(address, options=options)
    else:
        if tls.name is not None:
            options.append(("grpc.ssl_target_name_override", tls.name))
        made = grpc.secure_channel(address, _credentials(tls), options=options)
    with made as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            answer = check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            failure = diagnose(address, tls, timeout_s) if error.code() is grpc.StatusCode.UNAVAILABLE else None
            return f"no answer ({error.code().name if failure is None else failure.text})"
    if answer.status == HealthCheckResponse.SERVING:
        return None
    return f"not ready ({HealthCheckResponse.ServingStatus.Name(answer.status)})"


def _credentials(tls: ClientTls) -> "grpc.ChannelCredentials":
    import grpc

    from specedge.tls.files import NamedFile, TlsFiles, read_tls

    files = TlsFiles(
        None if tls.certificate_file is None else NamedFile("--certificate-file", tls.certificate_file),
        None if tls.key_file is None else NamedFile("--key-file", tls.key_file),
        NamedFile("--ca-file", tls.authority_file),
    )
    material = read_tls(files)
    return grpc.ssl_channel_credentials(material.authority_pem, material.key_pem, material.certificate_pem)
