"""Composes the verification service: settings in, a running process out; startup, serve and shutdown in order."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from specedge.background import call_on_loop, start_in_background
from specedge.drafting.loading import MakeRunner
from specedge.errors import EngineDead
from specedge.garbage import spare_steps
from specedge.grammar.session_grammars import has_grammars
from specedge.metrics_server import serving_metrics
from specedge.model.engines import make_runner
from specedge.model.ranks import Ranks
from specedge.turns import take_short_turns
from specedge.watchdog import Watchdog
from specedge.wire.shaping import FrameShape
from specedge_verifier.authentication import Authentication
from specedge_verifier.drain_socket import DrainNews, drain_socket
from specedge_verifier.engine import EngineThread
from specedge_verifier.follower import Follower
from specedge_verifier.grpc_server import ServerOptions, ServerTls
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.loading import Verifier, load
from specedge_verifier.mirrored import stop_followers
from specedge_verifier.rank_pulse import RankPulse
from specedge_verifier.service import StreamOptions
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.stream_processes import StreamServer, stream_server
from specedge_verifier.target_loading import meet_ranks
from specedge_verifier.tenant_metrics import TenantMetrics
from specedge_verifier.tenants import Tenants

if TYPE_CHECKING:
    from specedge.tls.files import TlsSource

logger = logging.getLogger(__name__)

GRAMMARS_AFTER_S = 3.0
"""Seconds after which a verifier that is ready loads what grammars need: the first requests come first."""

FAILED_GRACE_S = 5.0
"""Seconds in which a verifier whose engine has failed may tell its sessions and end; then it is ended."""

STUCK_STEPS = 10.0
"""A step is not stuck before it has lasted so many times as long as the largest one is expected to."""


def run(settings: VerifierSettings, make_runner: MakeRunner = make_runner) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a rank other than 0 follows rank 0 until that has drained.

    Raises:
        SpecEdgeError: the service cannot start.
        EngineDead: its engine has failed; the process must not go on, not even to end in good order.
    """
    ranks = meet_ranks(settings, os.environ)
    if ranks is None or ranks.leads:
        asyncio.run(serve(settings, make_runner, ranks))
    else:
        Follower(settings, ranks, make_runner).run()


async def serve(settings: VerifierSettings, make_runner: MakeRunner = make_runner, ranks: Ranks | None = None) -> None:
    """Load, warm up, listen, wait for a signal, drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # A mistake in a file shows before minutes of loading.
    tls = tls_source(settings)
    authentication = None if settings.tenants_file is None else Authentication(Tenants(settings.tenants_file))
    lost: asyncio.Future[str] = loop.create_future()
    pulse = None
    if ranks is not None:
        pulse = RankPulse(settings.rank_timeout_s, lambda reason: call_on_loop(loop, lost.set_result, reason))
    stopped = asyncio.create_task(stop.wait())
    verifier = await load_until(stopped, lost, lambda: load(settings, make_runner, ranks))
    if verifier is None:
        logger.info("stopped while loading")
        return
    spare_steps()
    take_short_turns()
    show_tenants(verifier, authentication)
    registry = verifier.metrics.registry
    with (
        serving_metrics(registry, settings.metrics_host, settings.metrics_port),
        running_engine(verifier, lost, settings.step_timeout_s) as engine,
    ):
        options = server_options(settings, None if tls is None else server_tls(tls, registry))
        server = stream_server(settings, engine.thread, options, verifier.grammars, verifier.metrics, authentication)
        await server.start()
        await server.set_ready()
        if has_grammars():
            loop.call_later(GRAMMARS_AFTER_S, verifier.grammars.start)
        await drain_when_told(server, engine, stop, stopped, settings)
    if ranks is not None and pulse is not None:
        stop_followers(ranks)
        pulse.stop()
        ranks.leave()
    logger.info("stopped")


async def load_until(
    stopped: asyncio.Task[Any], lost: "asyncio.Future[str]", load: Callable[[], Verifier]
) -> Verifier | None:
    """What `load` returns; None when `stopped` is done first.

    Raises:
        EngineDead: another rank is lost.
    """
    loading = start_in_background(load, "loading")
    first: set[asyncio.Future[Any]] = {loading, stopped, lost}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        raise EngineDead(f"rank 0 has lost another rank while loading: {lost.result()}")
    return loading.result() if loading.done() else None


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine at work, who watches it, and what is done once it has failed."""

    thread: EngineThread
    watchdog: Watchdog
    failed: asyncio.Task[EngineDead]


@contextmanager
def running_engine(verifier: Verifier, lost: "asyncio.Future[str]", step_timeout_s: float) -> Iterator[RunningEngine]:
    """The verifier's engine at work while the block runs; the watchdog of one that has failed outlives the block.

    Args:
        verifier: as loaded.
        lost: fails the engine, with the reason why a rank is lost.
        step_timeout_s: a step that takes longer fails it too.
    """
    loop = asyncio.get_running_loop()
    thread = verifier.start_engine(loop)
    watchdog = start_watchdog(verifier, thread, step_timeout_s)
    lost.add_done_callback(lambda _: thread.fail(EngineDead(f"rank 0 has lost another rank: {lost.result()}")))
    failed = asyncio.create_task(thread.failure())
    try:
        yield RunningEngine(thread, watchdog, failed)
    finally:
        if not failed.done():
            watchdog.stop()
        verifier.grammars.close()
        thread.stop()


def start_watchdog(verifier: Verifier, engine: EngineThread, step_timeout_s: float) -> Watchdog:
    """Watches the engine's steps, none of which may take `step_timeout_s`, and the event loop that runs."""
    scheduler = verifier.core.scheduler
    largest_s = scheduler.step_time.seconds(scheduler.limits.max_num_batched_tokens)
    watchdog = Watchdog(
        asyncio.get_running_loop(),
        name="engine",
        heartbeat=engine.heartbeat,
        limit_s=max(step_timeout_s, STUCK_STEPS * largest_s),
        grace_s=FAILED_GRACE_S,
        on_stuck=lambda reason: engine.fail(EngineDead(reason)),
    )
    watchdog.start()
    return watchdog


async def drain_when_told(
    server: StreamServer,
    engine: RunningEngine,
    stop: asyncio.Event,
    stopped: asyncio.Task[Any],
    settings: VerifierSettings,
) -> None:
    """Wait for a signal, which `stopped` stands for, or the drain socket, which sets `stop`; then drain.

    Raises:
        EngineDead: the engine has failed; sessions have been told.
    """
    grace_s = settings.drain_timeout_s
    async with drain_socket(
        settings.host,
        server.port,
        stop.set,
        lambda: DrainNews(os.getpid(), server.num_streams, grace_s),
    ):
        await asyncio.wait({stopped, engine.failed}, return_when=asyncio.FIRST_COMPLETED)
        if engine.failed.done():
            engine.watchdog.end_soon()
            await server.stop()
        else:
            logger.info("draining: running sessions may take %g s to finish", grace_s)
            await server.drain(grace_s)
    if engine.failed.done():
        raise engine.failed.result()


def show_tenants(verifier: Verifier, authentication: Authentication | None) -> None:
    """Add each tenant's numbers to the metrics; without tenants, everyone's."""
    everyone = (verifier.core.everyone,)
    tenants = None if authentication is None else authentication.tenants
    accounts = (lambda: everyone) if tenants is None else (lambda: tuple(tenants.accounts.values()))
    verifier.metrics.registry.register(
        TenantMetrics(accounts, None if authentication is None else authentication.refused)
    )


def server_options(settings: VerifierSettings, tls: ServerTls | None) -> ServerOptions:
    """Where and how the server listens."""
    shape = FrameShape(settings.pad_frames or 0, settings.frame_interval_ms / 1000)
    stream = StreamOptions(open_timeout_s=settings.open_timeout_s, shape=shape)
    return ServerOptions(settings.host, settings.port, stream=stream, tls=tls)


def tls_source(settings: VerifierSettings) -> "TlsSource | None":
    """The files of the link to edges; None is plain text.

    Raises:
        SettingsError: one of them is missing, unusable or expired.
    """
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    from specedge.tls.files import NamedFile, TlsFiles, TlsSource

    authority = settings.tls_client_ca_file
    return TlsSource(
        TlsFiles(
            NamedFile("tls_certificate_file", settings.tls_certificate_file),
            NamedFile("tls_key_file", settings.tls_key_file),
            None if authority is None else NamedFile("tls_client_ca_file", authority),
        )
    )


def server_tls(source: "TlsSource", registry: CollectorRegistry) -> ServerTls:
    """TLS of the server, and what `registry` shows of it."""
    from specedge.tls.metrics import CertificateMetrics

    CertificateMetrics(registry, "specedge_verifier").watch("link", source)
    return ServerTls(source, Handshakes(registry))
