"""The error tree as gRPC statuses and back: the one place where errors cross the network border.

| error                         | status code         | trailing metadata          |
|-------------------------------|---------------------|----------------------------|
| InvalidRequest                | INVALID_ARGUMENT    | specedge-param             |
| ProtocolError                 | INVALID_ARGUMENT    | specedge-error: protocol   |
| TenantLimit                   | RESOURCE_EXHAUSTED  | retry-after-ms,            |
|                               |                     | specedge-error: tenant     |
| CapacityExceeded              | RESOURCE_EXHAUSTED  | retry-after-ms,            |
|                               |                     | specedge-refused-tokens    |
| Unauthenticated               | UNAUTHENTICATED     |                            |
| ModelLoadError (peers differ) | FAILED_PRECONDITION |                            |
| VerifierDraining              | UNAVAILABLE         | retry-after-ms,            |
|                               |                     | specedge-error: draining   |
| VerifierUnavailable           | UNAVAILABLE         | retry-after-ms             |
| EngineDead                    | UNAVAILABLE         |                            |
| anything else                 | INTERNAL            |                            |
"""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from specedge.errors import (
    CapacityExceeded,
    EngineDead,
    InvalidRequest,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    TenantLimit,
    Unauthenticated,
    VerifierDraining,
    VerifierUnavailable,
)

RETRY_AFTER_KEY = "retry-after-ms"
PARAM_KEY = "specedge-param"
REFUSED_TOKENS_KEY = "specedge-refused-tokens"
"""Prompts of so many tokens or more are refused, too; without it nothing is known of others."""
ERROR_KEY = "specedge-error"
PROTOCOL = "protocol"
TENANT = "tenant"
DRAINING = "draining"
_MAX_DIGITS = 10

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Status:
    """How an error ends a stream."""

    code: grpc.StatusCode
    details: str
    metadata: Metadata = ()


def to_status(error: SpecEdgeError) -> Status:
    """The status that tells a peer of `error`."""
    details = str(error)
    match error:
        case InvalidRequest():
            return Status(grpc.StatusCode.INVALID_ARGUMENT, details, ((PARAM_KEY, error.param),) if error.param else ())
        case ProtocolError():
            return Status(grpc.StatusCode.INVALID_ARGUMENT, details, ((ERROR_KEY, PROTOCOL),))
        case TenantLimit():
            metadata = (*_retry_after(error.retry_after_s), (ERROR_KEY, TENANT))
            return Status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, metadata)
        case Unauthenticated():
            return Status(grpc.StatusCode.UNAUTHENTICATED, details)
        case CapacityExceeded():
            others = () if error.from_tokens is None else ((REFUSED_TOKENS_KEY, str(error.from_tokens)),)
            return Status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, (*_retry_after(error.retry_after_s), *others))
        case VerifierDraining():
            metadata = (*_retry_after(error.retry_after_s), (ERROR_KEY, DRAINING))
            return Status(grpc.StatusCode.UNAVAILABLE, details, metadata)
        case VerifierUnavailable():
            return Status(grpc.StatusCode.UNAVAILABLE, details, _retry_after(error.retry_after_s))
        case EngineDead():
            return Status(grpc.StatusCode.UNAVAILABLE, details)
        case ModelLoadError():
            return Status(grpc.StatusCode.FAILED_PRECONDITION, details)
    return Status(grpc.StatusCode.INTERNAL, details)


def from_status(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> SpecEdgeError:
    """The error a peer's status tells of; whatever may pass by trying again is VerifierUnavailable."""
    values = {key: value for key, value in metadata or () if isinstance(value, str)}
    text = details or code.name
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT if values.get(ERROR_KEY) == PROTOCOL:
            return ProtocolError(text)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(text, values.get(PARAM_KEY))
        case grpc.StatusCode.RESOURCE_EXHAUSTED if values.get(ERROR_KEY) == TENANT:
            return TenantLimit(text, _retry_after_s(values, default_s=1.0))
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            others = values.get(REFUSED_TOKENS_KEY, "")
            from_tokens = int(others) if others.isdecimal() and len(others) <= _MAX_DIGITS else None
            return CapacityExceeded(text, _retry_after_s(values, default_s=1.0), from_tokens)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return ModelLoadError(text)
        case grpc.StatusCode.UNAVAILABLE if values.get(ERROR_KEY) == DRAINING:
            return VerifierDraining(f"{code.name}: {text}", _retry_after_s(values, default_s=5.0))
        case grpc.StatusCode.UNIMPLEMENTED:
            return ProtocolError(f"the peer is not a verifier of this protocol: {text}")
    return VerifierUnavailable(f"{code.name}: {text}", _retry_after_s(values, default_s=5.0))


def _retry_after(retry_after_s: float) -> Metadata:
    return ((RETRY_AFTER_KEY, str(round(retry_after_s * 1000))),)


def _retry_after_s(values: dict[str, str], default_s: float) -> float:
    text = values.get(RETRY_AFTER_KEY, "")
    return int(text) / 1000 if text.isdecimal() else default_s
