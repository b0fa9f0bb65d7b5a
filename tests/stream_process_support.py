"""Stream processes around an engine of this process."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from specedge.errors import EngineDead
from specedge_verifier.authentication import Authentication
from specedge_verifier.bridge import Engine
from specedge_verifier.grpc_server import ServerTls
from specedge_verifier.service import StreamOptions
from specedge_verifier.stream_plan import StreamPlan
from specedge_verifier.stream_processes import StreamProcesses


class Seen:
    """Implements `StreamObserver`, and keeps what was lost."""

    def __init__(self) -> None:
        self.num_bytes: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.lost: list[EngineDead] = []

    def wire_bytes(self, direction: str, num_bytes: int) -> None:
        self.num_bytes[direction] += num_bytes

    def rejected(self, reason: str) -> None:
        self.rejections[reason] += 1


@asynccontextmanager
async def stream_processes(
    engine: Engine,
    number: int = 2,
    *,
    seen: Seen | None = None,
    silence_s: float = 60.0,
    tenants_file: Path | None = None,
    authentication: Authentication | None = None,
    grammars: Any = None,
    registry: CollectorRegistry | None = None,
    port: int = 0,
    tls: ServerTls | None = None,
    **stream_options: Any,
) -> AsyncIterator[StreamProcesses]:
    """Ready processes, none of which is left at the end."""
    seen = seen or Seen()
    plan = StreamPlan(
        "",
        "127.0.0.1",
        port,
        StreamOptions(**stream_options),
        engine.info(),
        tls_files=None if tls is None else tls.source.files,
        tenants_file=tenants_file,
    )
    server = StreamProcesses(
        engine,
        plan,
        number,
        observer=seen,
        registry=registry or CollectorRegistry(),
        on_lost=seen.lost.append,
        silence_s=silence_s,
        grammars=grammars,
        authentication=authentication,
        handshakes=None if tls is None else tls.handshakes,
    )
    await server.start()
    await server.set_ready()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connection_to(port: int) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel
