"""Asks a running process whether it is ready: gRPC health for a verifier, `/ready` for an edge agent."""

import urllib.error
import urllib.request


def probe(address: str, timeout_s: float) -> str | None:
    """Why the process at `address` is not ready, or None when it is.

    Args:
        address: `HOST:PORT` asks by gRPC, `http://HOST:PORT` by HTTP.
        timeout_s: how long an answer may take.
    """
    if address.startswith(("http://", "https://")):
        return _probe_http(address.rstrip("/") + "/ready", timeout_s)
    return _probe_grpc(address, timeout_s)


def _probe_http(url: str, timeout_s: float) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"not ready (HTTP {error.code})"
    except (OSError, ValueError) as error:
        return f"no answer ({getattr(error, 'reason', error)})"


def _probe_grpc(address: str, timeout_s: float) -> str | None:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            answer = check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"no answer ({error.code().name})"
    if answer.status == HealthCheckResponse.SERVING:
        return None
    return f"not ready ({HealthCheckResponse.ServingStatus.Name(answer.status)})"
