"""What a stream process is told at its start, and what it tells of itself while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specedge.logs import LogFormat
from specedge.wire.messages import ServerInfo
from specedge_verifier.service import StreamOptions
from specedge_verifier.stream_observer import Direction

if TYPE_CHECKING:
    from specedge.tls.files import TlsFiles


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """Everything that a stream process needs beside the engine.

    Args:
        name: of the process, in the log.
        host, port: where it listens, as all of them do.
        stream: limits of one stream.
        info: what is served.
        tls_files: None is plain text.
        tenants_file: None lets everyone in.
        log_level, log_format, traces_endpoint: as of the engine's process.
    """

    name: str
    host: str
    port: int
    stream: StreamOptions
    info: ServerInfo
    tls_files: "TlsFiles | None" = None
    tenants_file: Path | None = None
    log_level: str = "info"
    log_format: LogFormat = "auto"
    traces_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What has happened since the last such message; `num_streams` and `cpu_s` are as they are now.

    Args:
        wire_bytes: by direction.
        rejected: sessions, by gRPC status.
        unauthenticated: calls, by reason.
        handshakes: TLS connections, by outcome.
        num_streams: open now.
        cpu_s: seconds of CPU time that the process has taken so far.
    """

    wire_bytes: Mapping[Direction, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    unauthenticated: Mapping[str, int] = field(default_factory=dict)
    handshakes: Mapping[str, int] = field(default_factory=dict)
    num_streams: int = 0
    cpu_s: float = 0.0
