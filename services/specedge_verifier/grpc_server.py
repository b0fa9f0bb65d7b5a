"""The verifier's gRPC server: the service, health and reflection, from start to drained."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from specedge.errors import EngineDead, InvalidRequest
from specedge.grammar.session_grammars import SessionGrammars
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire.channel import server_options
from specedge_verifier.authentication import Authentication
from specedge_verifier.bridge import Engine
from specedge_verifier.service import StreamOptions, VerificationService, draining_error

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VerificationService"].full_name
ABORT_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how a verifier listens. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    health_poll_s: float = 0.2
    stream: StreamOptions = field(default_factory=StreamOptions)


class VerifierServer:
    """Life cycle: start (NOT_SERVING), set_ready (SERVING), drain or stop."""

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        grammars: SessionGrammars | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._authentication = authentication
        self._server = grpc.aio.server(
            options=server_options(), interceptors=() if authentication is None else (authentication,)
        )
        self._health = health.aio.HealthServicer()
        self.service = VerificationService(engine, options.stream, grammars)
        self.port = 0
        self._stopping = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._tenant_watch: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens and returns the port, also kept in `port`; raises InvalidRequest naming an address it cannot have."""
        pb_grpc.add_VerificationServiceServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_health(is_serving=False)
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InvalidRequest(f"cannot listen on {address}: the port is in use or not allowed", "port") from error
        await self._server.start()
        self._watch = asyncio.create_task(self._watch_engine())
        if self._authentication is not None:
            self._tenant_watch = asyncio.create_task(self._authentication.watch())
        logger.info("listening on %s, port %d", host, self.port)
        return self.port

    async def set_ready(self) -> None:
        """Health becomes SERVING: the model is loaded and warm."""
        await self._set_health(is_serving=True)

    async def drain(self, grace_s: float) -> None:
        """Health NOT_SERVING, no new sessions, running ones may finish within `grace_s`; the rest ends as retryable."""
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.service.wait_idle(), grace_s)
        if self.service.num_streams:
            logger.warning("%d streams outlived the drain of %g s", self.service.num_streams, grace_s)
        await self._close()

    async def stop(self) -> None:
        """Ends every stream as retryable and stops at once."""
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        await self._close()

    async def _close(self) -> None:
        self.service.abort_all(draining_error())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.service.wait_idle(), ABORT_GRACE_S)
        self._stopping.set()
        if self._watch is not None:
            await self._watch
        if self._tenant_watch is not None:
            self._tenant_watch.cancel()
            await asyncio.wait({self._tenant_watch})
        await self._server.stop(ABORT_GRACE_S)

    async def _watch_engine(self) -> None:
        while self._engine.is_healthy:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._options.health_poll_s)
                return
        logger.error("the engine has died: no longer serving, %d streams end", self.service.num_streams)
        await self._set_health(is_serving=False)
        self.service.abort_all(EngineDead("the engine has died; retry on another verifier"))

    async def _set_health(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)
