"""The verifier's gRPC server: the service, health and reflection, from start to drained."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from specedge.errors import EngineDead, InvalidRequest
from specedge.tls.rules import UNIX
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire.channel import listening_address, server_options
from specedge.wire.load_hint import LoadHint
from specedge_verifier.authentication import Authentication
from specedge_verifier.bridge import Engine
from specedge_verifier.followed_grammars import Grammars
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.service import StreamOptions, VerificationService, draining_error
from specedge_verifier.stream_observer import StreamObserver

if TYPE_CHECKING:
    from specedge.tls.files import TlsMaterial, TlsSource

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VerificationService"].full_name
ABORT_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS of a verifier. Clients need a certificate where the files name an authority.

    Args:
        source: the files; an authority added to them later has no effect before a restart.
        handshakes: counts.
    """

    source: "TlsSource"
    handshakes: Handshakes

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; each handshake has the files as they are then."""
        served = self.source.material
        is_mutual = self.source.files.authority is not None

        def fetch() -> Any:
            nonlocal served
            self.handshakes.began()
            material = self.source.refresh()
            if material is served:
                return None
            served = material
            return _configuration(material)

        return grpc.dynamic_ssl_server_credentials(_configuration(served), fetch, is_mutual)


def _configuration(material: "TlsMaterial") -> Any:
    assert material.key_pem is not None and material.certificate_pem is not None
    return grpc.ssl_server_certificate_configuration(
        [(material.key_pem, material.certificate_pem)], material.authority_pem
    )


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how a verifier listens. Port 0 takes a free one; a host unix:PATH has none. Without TLS, plain text.

    With `shares_port` other processes of the verifier listen there too, and each connection is one's alone.
    """

    host: str = "127.0.0.1"
    port: int = 0
    health_poll_s: float = 0.2
    stream: StreamOptions = field(default_factory=StreamOptions)
    tls: ServerTls | None = None
    shares_port: bool = False


class HealthServicer(health.aio.HealthServicer):
    """gRPC's health service, which also tells how busy the engine is; a connection that asks it is in use."""

    def __init__(self, tls: ServerTls | None, engine: Engine) -> None:
        super().__init__()
        self._tls = tls
        self._engine = engine

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One answer."""
        if self._tls is not None:
            self._tls.handshakes.called(context.peer())
        load = LoadHint(self._engine.num_sessions, self._engine.info().max_batch_size)
        context.set_trailing_metadata(load.metadata)
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Answers whenever the state changes."""
        if self._tls is not None:
            self._tls.handshakes.called(context.peer())
        await super().Watch(request, context)


class VerifierServer:
    """Life cycle: start (NOT_SERVING), set_ready (SERVING), drain or stop."""

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        grammars: Grammars | None = None,
        observer: StreamObserver | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._authentication = authentication
        self._server = grpc.aio.server(
            options=server_options(shares_port=options.shares_port),
            interceptors=() if authentication is None else (authentication,),
        )
        self._health = HealthServicer(options.tls, engine)
        on_call = None if options.tls is None else options.tls.handshakes.called
        self.service = VerificationService(engine, options.stream, grammars, observer, on_call)
        self.port = 0
        self._stopping = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._tenant_watch: asyncio.Task[None] | None = None

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return self.service.num_streams

    async def start(self) -> int:
        """Listens and returns the port, also kept in `port`; raises InvalidRequest naming an address it cannot have."""
        pb_grpc.add_VerificationServiceServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_health(is_serving=False)
        host, tls = self._options.host, self._options.tls
        address = listening_address(host, self._options.port)
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, tls.credentials())
        except RuntimeError as error:
            raise InvalidRequest(f"cannot listen on {address}: the port is in use or not allowed", "port") from error
        await self._server.start()
        self._watch = asyncio.create_task(self._watch_engine())
        if self._authentication is not None:
            self._tenant_watch = asyncio.create_task(self._authentication.watch())
        how = "plain text" if tls is None else "TLS" if tls.source.files.authority is None else "mutual TLS"
        where = host if host.startswith(UNIX) else f"{host}, port {self.port}"
        logger.info("listening on %s (%s)", where, how)
        return self.port

    async def set_ready(self) -> None:
        """Health becomes SERVING: the model is loaded and warm."""
        await self._set_health(is_serving=True)

    async def drain(self, grace_s: float) -> None:
        """Health NOT_SERVING, no new sessions; edges are told to move theirs, and what stays may finish.

        What has not ended after `grace_s` seconds ends as retryable.
        """
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                logger.info("%d sessions were told to move", await self.service.tell_draining())
                await self.service.wait_idle()
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
            if self._options.tls is not None:
                self._options.tls.handshakes.settle()
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
