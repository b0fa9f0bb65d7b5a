"""Composes the verification service: settings in, a running process out; startup, serve and shutdown in order."""

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from specedge import __version__
from specedge.background import start_in_background
from specedge.block_pool import BlockPool
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_model import RankedDraftModel
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.loading import MakeRunner, draft_runner, load_draft_model
from specedge.drafting.ranking import ChildRanking
from specedge.errors import EngineDead
from specedge.garbage import spare_steps
from specedge.grammar.loading import make_compiler
from specedge.grammar.session_grammars import SessionGrammars, has_grammars
from specedge.metrics_server import serve_metrics, stop_metrics
from specedge.model.embedded import resolve_model
from specedge.model.engines import execution_of, make_runner
from specedge.model.loader import load_generation_defaults
from specedge.model.ranks import Ranks
from specedge.model.runner import ModelRunner
from specedge.sampler import Sampler
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge.watchdog import Watchdog
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, PADDING, TOKEN_MASKS, ServerInfo
from specedge.wire.shaping import FrameShape
from specedge_verifier.authentication import Authentication
from specedge_verifier.core import EngineCore
from specedge_verifier.drain_socket import DrainNews, drain_socket
from specedge_verifier.engine import EngineObserver, EngineThread, monotonic_s
from specedge_verifier.follower import Follower
from specedge_verifier.grpc_server import ServerOptions, ServerTls
from specedge_verifier.handshakes import Handshakes
from specedge_verifier.kv_sizing import context_length
from specedge_verifier.local_drafts import LocalDrafts
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.mirrored import MirroredRunner, stop_followers
from specedge_verifier.queue_bounds import QueueLimits
from specedge_verifier.rank_metrics import RankMetrics
from specedge_verifier.rank_pulse import RankPulse
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.service import StreamOptions
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.step_log import Observers, StepLog
from specedge_verifier.step_time import StepTime
from specedge_verifier.stream_processes import stream_server
from specedge_verifier.target_loading import load_target, meet_ranks, size_pool
from specedge_verifier.target_model import TargetModel
from specedge_verifier.tenant_metrics import TenantMetrics
from specedge_verifier.tenants import Tenants
from specedge_verifier.waiting import BatchType
from specedge_verifier.warm_up import measure_step_time

if TYPE_CHECKING:
    from specedge.tls.files import TlsSource

logger = logging.getLogger(__name__)

GRAMMARS_AFTER_S = 3.0
"""Seconds after which a verifier that is ready loads what grammars need: the first requests come first."""

FAILED_GRACE_S = 5.0
"""Seconds in which a verifier whose engine has failed may tell its sessions and end; then it is ended."""

STUCK_STEPS = 10.0
"""A step is not stuck before it has lasted so many times as long as the largest one is expected to."""


@dataclass(slots=True)
class Verifier:
    """A loaded target with its scheduler, warm and ready to be started on an event loop."""

    core: EngineCore
    info: ServerInfo
    metrics: VerifierMetrics
    limits: QueueLimits
    observer: EngineObserver
    grammars: SessionGrammars

    def start_engine(self, loop: asyncio.AbstractEventLoop) -> EngineThread:
        engine = EngineThread(self.core, self.info, self.limits, loop, self.observer)
        engine.start()
        return engine

    def start_watchdog(self, engine: EngineThread, loop: asyncio.AbstractEventLoop, step_timeout_s: float) -> Watchdog:
        """Watches the engine's steps, none of which may take `step_timeout_s`, and the event loop."""
        scheduler = self.core.scheduler
        largest_s = scheduler.step_time.seconds(scheduler.limits.max_num_batched_tokens)
        watchdog = Watchdog(
            loop,
            name="engine",
            heartbeat=engine.heartbeat,
            limit_s=max(step_timeout_s, STUCK_STEPS * largest_s),
            grace_s=FAILED_GRACE_S,
            on_stuck=lambda reason: engine.fail(EngineDead(reason)),
        )
        watchdog.start()
        return watchdog


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
    source = tls_source(settings)  # a mistake shows before minutes of loading
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # A mistake in the file shows before minutes of loading.
    authentication = None if settings.tenants_file is None else Authentication(Tenants(settings.tenants_file))
    lost: asyncio.Future[str] = loop.create_future()
    pulse = None if ranks is None else RankPulse(settings.rank_timeout_s, partial(tell, loop, lost))
    loading = start_in_background(lambda: load(settings, make_runner, ranks), "loading")
    stopped = asyncio.create_task(stop.wait())
    first: set[asyncio.Future[Any]] = {loading, stopped, lost}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        raise EngineDead(f"rank 0 has lost another rank while loading: {lost.result()}")
    if not loading.done():
        logger.info("stopped while loading")
        return
    verifier = loading.result()
    spare_steps()
    show_tenants(verifier, authentication)
    registry = verifier.metrics.registry
    metrics_server = None
    if settings.metrics_port is not None:
        metrics_server = serve_metrics(registry, settings.metrics_host, settings.metrics_port)
    engine = verifier.start_engine(loop)
    watchdog = verifier.start_watchdog(engine, loop, settings.step_timeout_s)
    lost.add_done_callback(lambda _: engine.fail(EngineDead(f"rank 0 has lost another rank: {lost.result()}")))
    failed = asyncio.create_task(engine.failure())
    options = ServerOptions(
        settings.host,
        settings.port,
        stream=StreamOptions(
            open_timeout_s=settings.open_timeout_s,
            shape=FrameShape(settings.pad_frames or 0, settings.frame_interval_ms / 1000),
        ),
        tls=None if source is None else server_tls(source, registry),
    )
    server = stream_server(settings, engine, options, verifier.grammars, verifier.metrics, authentication)
    try:
        await server.start()
        await server.set_ready()
        if has_grammars():
            loop.call_later(GRAMMARS_AFTER_S, verifier.grammars.start)
        grace_s = settings.drain_timeout_s
        async with drain_socket(
            settings.host,
            server.port,
            stop.set,
            lambda: DrainNews(os.getpid(), server.num_streams, grace_s),
        ):
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                watchdog.end_soon()
                await server.stop()
            else:
                logger.info("draining: running sessions may take %g s to finish", grace_s)
                await server.drain(grace_s)
        if failed.done():
            raise failed.result()
    finally:
        if not failed.done():
            watchdog.stop()
        verifier.grammars.close()
        engine.stop()
        stop_metrics(metrics_server)
    if ranks is not None and pulse is not None:
        stop_followers(ranks)
        pulse.stop()
        ranks.leave()
    logger.info("stopped")


def tell(loop: asyncio.AbstractEventLoop, lost: "asyncio.Future[str]", reason: str) -> None:
    """Hand over, from another thread, why a rank is lost; a loop that has ended needs not know."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(lost.set_result, reason)


def show_tenants(verifier: Verifier, authentication: Authentication | None) -> None:
    """Add each tenant's numbers to the metrics; without tenants, everyone's."""
    everyone = (verifier.core.everyone,)
    tenants = None if authentication is None else authentication.tenants
    accounts = (lambda: everyone) if tenants is None else (lambda: tuple(tenants.accounts.values()))
    verifier.metrics.registry.register(
        TenantMetrics(accounts, None if authentication is None else authentication.refused)
    )


def load(settings: VerifierSettings, make_runner: MakeRunner = make_runner, ranks: Ranks | None = None) -> Verifier:
    """Load the target, size its KV cache and measure its steps.

    Args:
        settings: the process's.
        make_runner: from the loaded model and the number of KV slots; benchmarks put their own here.
        ranks: that compute the target together; this is rank 0, and the others follow it.

    Raises:
        ModelLoadError: the model cannot be loaded or does not fit.
    """
    path = resolve_model(settings.target_model, "target")
    tokenizer = load_tokenizer(path)
    defaults = load_generation_defaults(path, tokenizer)
    model = load_target(settings, ranks)
    draft_model = load_draft_model(settings, tokenizer) if settings.system == "server-only" else None
    max_len = context_length(model.config, settings.max_len)
    num_blocks = size_pool(settings, model, ranks, draft_model)
    runner = make_runner(model, num_blocks * settings.block_size)
    if ranks is not None:
        runner = MirroredRunner(runner, ranks)
    logger.info(
        "KV cache: %d blocks of %d tokens, %.0f MiB", num_blocks, settings.block_size, runner.cache.num_bytes / 2**20
    )
    sampler = Sampler(runner.vocab_size, runner.device)
    samples = measure_step_time(runner, sampler, settings.max_num_batched_tokens)
    limits = SchedulerLimits(
        max_batch_size=settings.max_batch_size,
        max_num_batched_tokens=max(settings.max_num_batched_tokens, settings.max_batch_size + 1),
        max_tree_nodes=settings.max_tree_nodes,
        batch_type=BatchType(settings.batch_type),
    )
    step_time = StepTime(limits.max_num_batched_tokens, samples)
    scheduler = Scheduler(BlockPool(num_blocks, settings.block_size), limits, step_time)
    info = ServerInfo(
        target_model=settings.target_model if settings.target_model != "demo" else "specedge-demo",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocab_size=runner.vocab_size,
        max_len=max_len,
        max_live_nodes=settings.max_live_nodes,
        eos_ids=defaults.eos_ids,
        max_batch_size=settings.max_batch_size,
        server_version=__version__,
        default_sampling=defaults.sampling,
        capabilities=(
            *([DRAFT_TRIES] if settings.system == "specedge" else []),
            *([GRAMMARS] if has_grammars() else []),
            LOGPROBS,
            TOKEN_MASKS,
            PADDING,
        ),
    )
    metrics = VerifierMetrics(info.target_model, scheduler)
    metrics.costs(settings.price_per_hour)
    metrics.runs("target", execution_of(model, runner))
    metrics.registry.register(RankMetrics(ranks))
    drafts = None
    if draft_model is not None:
        num_draft_slots = settings.num_draft_slots or num_blocks * settings.block_size
        drafting = DraftingSettings(growth=settings.growth, looks_up=settings.looks_up)
        draft, drafting = draft_runner(draft_model, drafting, num_draft_slots, make_runner)
        metrics.runs("draft", execution_of(draft_model, draft, settings.draft_quantization))
        drafter_id = f"local/{settings.draft_model}{'+lookup' * settings.looks_up}"
        drafts = local_drafts(draft, drafting, drafter_id, len(tokenizer), metrics)
    core = EngineCore(scheduler, TargetModel(runner, sampler), info, monotonic_s, drafts)
    observer = metrics if settings.step_log is None else Observers([metrics, StepLog(settings.step_log)])
    grammars = SessionGrammars(partial(make_compiler, tokenizer, runner.vocab_size, defaults.eos_ids))
    queue = QueueLimits(
        settings.max_batch_size + settings.max_waiting, settings.max_queued_tokens, settings.max_predicted_ttft_s
    )
    metrics.forecasts(lambda: core.forecast)
    return Verifier(core, info, metrics, queue, observer, grammars)


def local_drafts(
    runner: ModelRunner, drafting: DraftingSettings, drafter_id: str, vocab_size: int, metrics: VerifierMetrics
) -> LocalDrafts:
    """Drafting beside the target, seen by the verifier's metrics."""
    steps = DraftMetrics(metrics.registry, "specedge_verifier", metrics.draft_step)
    model = RankedDraftModel(runner, ChildRanking.of(runner, drafting, vocab_size=vocab_size))
    drafts = LocalDrafts(model, drafting, runner.num_slots, drafter_id, monotonic_s, on_step=steps.step)
    steps.watch(drafts.core.stats, drafts.core.pool)
    if drafting.looks_up:
        metrics.registry.register(LookupMetrics("specedge_verifier", drafts.core.stats.lookup))
    return drafts


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
