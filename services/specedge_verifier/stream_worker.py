"""What a stream process does: the verifier's gRPC server, whose engine is in another process."""

import asyncio
import logging
import os
import socket
import time
from collections import Counter

from prometheus_client import CollectorRegistry

from specedge.errors import SpecEdgeError
from specedge.garbage import spare_steps
from specedge.logs import start_logging
from specedge.tracing import start_tracing
from specedge.watchdog import LOST_THREAD
from specedge_verifier.authentication import Authentication
from specedge_verifier.frame_link import FrameLink
from specedge_verifier.grpc_server import ServerOptions, ServerTls, VerifierServer
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.remote_engine import RemoteEngine, RemoteGrammars
from specedge_verifier.stream_observer import Direction
from specedge_verifier.stream_plan import StreamCounts, StreamPlan
from specedge_verifier.tenants import Tenants

logger = logging.getLogger(__name__)


async def serve(connection: socket.socket) -> int:
    """Serve as told over the connection; returns the exit code."""
    loop = asyncio.get_running_loop()
    planned: asyncio.Future[StreamPlan] = loop.create_future()
    link = FrameLink(connection, {"serve": planned.set_result}, _leave, waits=True)
    plan = await planned
    start_logging(plan.log_level, plan.log_format, plan.name)
    try:
        worker = StreamWorker(plan, link)
        await worker.server.start()
    except SpecEdgeError as error:
        link.put(("refused", error))
        link.finish()
        return 1
    spare_steps()
    link.put(("listening",))
    await worker.serve()
    link.put(worker.counts())
    link.finish()
    return 0


class StreamWorker:
    """The server, and what it counts for the engine's process.

    Raises:
        SpecEdgeError: a file is not what it was when the verifier started.
    """

    def __init__(self, plan: StreamPlan, link: FrameLink) -> None:
        if plan.traces_endpoint is not None:
            start_tracing(plan.traces_endpoint, "specedge-verifier")
        self._link = link
        self._tally = StreamTally()
        self._authentication = None if plan.tenants_file is None else Authentication(Tenants(plan.tenants_file))
        self._handshakes = Handshakes(CollectorRegistry())
        tls = None
        if plan.tls_files is not None:
            from specedge.tls.files import TlsSource

            tls = ServerTls(TlsSource(plan.tls_files), self._handshakes)
        engine = RemoteEngine(plan.info, link.put)
        options = ServerOptions(plan.host, plan.port, stream=plan.stream, tls=tls, shares_port=True)
        self.server = VerifierServer(engine, options, RemoteGrammars(), self._tally, self._authentication)
        self._ending: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        link.handlers = {
            **engine.handlers,
            "ready": self._ready,
            "pulse": lambda: link.put(self.counts()),
            "drain": self._end,
            "stop": self._end,
        }

    async def serve(self) -> None:
        """Until told to drain or to stop."""
        grace_s = await self._ending
        if grace_s is None:
            await self.server.stop()
        else:
            await self.server.drain(grace_s)

    def counts(self) -> tuple[str, StreamCounts]:
        """The message that tells what has happened since the last one."""
        refused = {} if self._authentication is None else self._authentication.refused
        counts = StreamCounts(
            dict(self._tally.num_bytes),
            dict(self._tally.num_rejected),
            dict(refused),
            self._handshakes.take(),
            self.server.num_streams,
            time.process_time(),
        )
        self._tally.clear()
        refused.clear()
        return "counts", counts

    def _ready(self) -> None:
        self._readying = asyncio.create_task(self.server.set_ready())

    def _end(self, grace_s: float | None = None) -> None:
        if not self._ending.done():
            self._ending.set_result(grace_s)


class StreamTally:
    """A `StreamObserver` that keeps what it is told until it is asked."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins again."""
        self.num_bytes: Counter[Direction] = Counter()
        self.num_rejected: Counter[str] = Counter()

    def wire_bytes(self, direction: Direction, num_bytes: int) -> None:
        """See `StreamObserver`."""
        self.num_bytes[direction] += num_bytes

    def rejected(self, reason: str) -> None:
        """See `StreamObserver`."""
        self.num_rejected[reason] += 1


def _leave(reason: str) -> None:
    """Without the engine's process there is nobody to serve; edges go on elsewhere."""
    logger.critical("the engine's process is gone: %s", reason)
    logging.shutdown()
    os._exit(LOST_THREAD)
