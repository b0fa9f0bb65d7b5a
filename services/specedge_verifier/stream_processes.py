"""Streams served by processes of their own: started, fed, watched and ended by the engine's.

All of them listen at one port, and the kernel gives each connection to one of them. So the engine's process runs the
engine thread and an event loop that exchanges batches with them, and nothing of gRPC. One that dies or hangs is not
replaced: the verifier ends as with a dead engine, and edges go on elsewhere.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from specedge.errors import EngineDead
from specedge_verifier.authentication import Authentication
from specedge_verifier.bridge import Engine
from specedge_verifier.engine import EngineThread
from specedge_verifier.grpc_server import ABORT_GRACE_S, ServerOptions, VerifierServer
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.shared_port import reserve
from specedge_verifier.stream_child import StreamChild
from specedge_verifier.stream_metrics import StreamProcessMetrics
from specedge_verifier.stream_observer import StreamObserver
from specedge_verifier.stream_plan import StreamCounts, StreamPlan
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.session_grammars import SessionGrammars

logger = logging.getLogger(__name__)

PULSE_S = 0.2
START_TIMEOUT_S = 60.0
END_MARGIN_S = 2 * ABORT_GRACE_S + 2.0
"""What a process may take to end beyond what its sessions may."""


def stream_server(
    settings: VerifierSettings,
    engine: EngineThread,
    options: ServerOptions,
    grammars: "SessionGrammars",
    metrics: VerifierMetrics,
    authentication: Authentication | None,
) -> "StreamServer":
    """What serves the streams of a verifier: this process, or `stream_processes` of their own."""
    if not settings.stream_processes:
        return VerifierServer(engine, options, grammars, metrics, authentication)
    plan = StreamPlan(
        name="",
        host=options.host,
        port=options.port,
        stream=options.stream,
        info=engine.info(),
        tls_files=None if options.tls is None else options.tls.source.files,
        tenants_file=settings.tenants_file,
        log_level=settings.log_level,
        log_format=settings.log_format,
        traces_endpoint=settings.traces_endpoint,
    )
    return StreamProcesses(
        engine,
        plan,
        settings.stream_processes,
        observer=metrics,
        registry=metrics.registry,
        on_lost=engine.fail,
        silence_s=settings.step_timeout_s,
        grammars=grammars,
        authentication=authentication,
        handshakes=None if options.tls is None else options.tls.handshakes,
    )


class StreamProcesses:
    """Has the life cycle of `VerifierServer`.

    Args:
        engine: runs the sessions of all of them.
        plan: of each, but for its name.
        number: how many.
        grammars: compiles what sessions must follow.
        observer: told about bytes and refusals.
        authentication: knows the tenants' accounts and counts the calls of nobody; callers are known where they call.
        handshakes: counts those of all processes.
        registry: shows what each process carries.
        on_lost: called once with the reason when one dies or hangs.
        silence_s: for which one may not answer before it counts as hanging.
    """

    def __init__(
        self,
        engine: Engine,
        plan: StreamPlan,
        number: int,
        *,
        observer: StreamObserver,
        registry: CollectorRegistry,
        on_lost: Callable[[EngineDead], None],
        silence_s: float,
        grammars: "SessionGrammars | None" = None,
        authentication: Authentication | None = None,
        handshakes: Handshakes | None = None,
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._number = number
        self._observer = observer
        self._on_lost = on_lost
        self._silence_s = silence_s
        self._grammars = grammars
        self._authentication = authentication
        self._handshakes = handshakes
        self.processes: list[StreamChild] = []
        self.port = 0
        self._reserved: socket.socket | None = None
        self._beside: list[asyncio.Task[None]] = []
        self._is_ending = False
        registry.register(StreamProcessMetrics(lambda: [process.counts for process in self.processes]))

    @property
    def num_streams(self) -> int:
        """Sessions that are open."""
        return sum(len(process.sessions) for process in self.processes)

    async def start(self) -> int:
        """Starts them and returns the port, also kept in `port`.

        Raises:
            InvalidRequest: they cannot listen there.
            EngineDead: one has ended before it listened.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        self._beside.append(asyncio.create_task(self._pulse()))
        if self._authentication is not None:
            self._beside.append(asyncio.create_task(self._authentication.watch()))
        pids = ", ".join(str(process.pid) for process in self.processes)
        logger.info("processes %s serve streams on %s, port %d", pids, self._plan.host, self.port)
        return self.port

    async def _start(self) -> None:
        self._reserved = reserve(self._plan.host, self._plan.port)
        self.port = self._reserved.getsockname()[1]
        for index in range(self._number):
            process = StreamChild(replace(self._plan, name=f"streams {index}", port=self.port))
            await process.start(self._engine, self._grammars, self._account, self._count)
            process.on_end = partial(self._lost, process)
            self.processes.append(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                for process in self.processes:
                    await process.listening
        except TimeoutError as error:
            raise EngineDead(f"a stream process did not listen within {START_TIMEOUT_S:g} s") from error

    async def set_ready(self) -> None:
        """Health becomes SERVING."""
        for process in self.processes:
            process.tell("ready")

    async def drain(self, grace_s: float) -> None:
        """See `VerifierServer.drain`."""
        self._engine.drain()
        await self._end("drain", grace_s)

    async def stop(self) -> None:
        """See `VerifierServer.stop`."""
        self._engine.drain()
        await self._end("stop")

    async def close(self) -> None:
        """Leaves none of them, whatever has happened."""
        self._is_ending = True
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        for process in self.processes:
            await process.kill()
        if self._reserved is not None:
            self._reserved.close()

    async def _end(self, kind: str, grace_s: float = 0.0) -> None:
        self._is_ending = True
        for process in self.processes:
            process.tell(kind, *([grace_s] if kind == "drain" else []))
        endings = {asyncio.create_task(process.wait()): process for process in self.processes}
        done, late = await asyncio.wait(endings, timeout=grace_s + END_MARGIN_S)
        for task in late:
            task.cancel()
            logger.warning("process %d has not ended in time", endings[task].pid)
        for task in done:
            if code := task.result():
                logger.warning("process %d has ended with exit code %d", endings[task].pid, code)
        await self.close()

    async def _pulse(self) -> None:
        """Tells every process how the engine is, and asks how it is itself.

        Silence counts while this process runs, so that one that was stopped as a whole and goes on loses nobody.
        """
        while True:
            for process in self.processes:
                process.num_silent += 1
                if process.num_silent * PULSE_S > self._silence_s:
                    self._lost(process, f"it has said nothing for {process.num_silent * PULSE_S:.1f} s")
                process.tell("state", self._engine.is_healthy, self._engine.num_sessions)
                process.tell("pulse")
            await asyncio.sleep(PULSE_S)

    def _lost(self, process: StreamChild, reason: str) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._on_lost(EngineDead(f"stream process {process.pid} is lost: {reason}"))

    def _account(self, tenant: str) -> TenantAccount | None:
        return None if self._authentication is None else self._authentication.tenants.accounts.get(tenant)

    def _count(self, counts: StreamCounts) -> None:
        for direction, num_bytes in counts.wire_bytes.items():
            self._observer.wire_bytes(direction, num_bytes)
        for status, number in counts.rejected.items():
            for _ in range(number):
                self._observer.rejected(status)
        if self._authentication is not None:
            self._authentication.refused.update(counts.unauthenticated)
        if self._handshakes is not None:
            self._handshakes.add(counts.handshakes)


StreamServer = VerifierServer | StreamProcesses
"""What serves the streams of a verifier."""
