"""Composes the edge agent: settings in, a running process out; startup, serve and shutdown in order."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI

from edge_agent.draft_only import DraftOnly, DraftOnlyMetrics
from edge_agent.drafter import Drafter
from edge_agent.generation import GenerationOptions, GenerationService
from edge_agent.http.api_keys import read_api_keys
from edge_agent.http.app import create_app
from edge_agent.http.ports import ChatTokenizer
from edge_agent.http.reasoning import template_thinks
from edge_agent.http.server import HttpServer, http_server
from edge_agent.http.settings import HttpSettings
from edge_agent.http.tool_calls import format_of_template
from edge_agent.journal.journal import Journal
from edge_agent.listener import bind
from edge_agent.loading import LoadedModels, load
from edge_agent.metrics import EdgeMetrics, Slo
from edge_agent.settings import EdgeSettings
from edge_agent.stream_metrics import StreamMetrics
from edge_agent.verifier_addresses import VerifierAddresses, address_source
from edge_agent.verifier_channel import LinkTls
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_pool import VerifierPool
from edge_agent.verifier_pool_metrics import VerifierPoolMetrics
from edge_agent.verifier_token import VerifierToken
from specedge.background import start_in_background
from specedge.drafting.loading import MakeRunner
from specedge.errors import DrafterDead, ModelLoadError, ProtocolError, VerifierUnavailable
from specedge.garbage import spare_steps
from specedge.metrics_server import serving_metrics
from specedge.model.engines import make_runner
from specedge.tokenizer import tokenizer_fingerprint
from specedge.turns import take_short_turns
from specedge.watchdog import Watchdog
from specedge.wire.shaping import FrameShape

if TYPE_CHECKING:
    from edge_agent.transport import EdgeTls, HttpsContext

logger = logging.getLogger(__name__)

_END_S = 5.0
"""Seconds that ending takes at most, after a drain."""
_LAST_WORDS_S = 2.0
"""How long answers that were ended may take to tell their clients so."""


def run(settings: EdgeSettings, make_runner: MakeRunner = make_runner) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        SpecEdgeError: the agent cannot start.
        DrafterDead: its drafter has failed, and answers have ended; the process must not go on.
    """
    asyncio.run(serve(settings, make_runner))


async def serve(settings: EdgeSettings, make_runner: MakeRunner = make_runner) -> None:
    """Listen, load, meet the verifier, serve until a signal, drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.api_keys_file is not None:
        read_api_keys(settings.api_keys_file)  # a mistake shows before minutes of loading
    addresses = address_source(settings.verifier_address, settings.allows_plaintext_link)
    token = verifier_token(settings)
    tls = edge_tls(settings)
    metrics = EdgeMetrics(slo=Slo(settings.slo_ttft_s, settings.slo_itl_s))
    metrics.costs(settings.price_per_hour)
    if tls is not None:
        tls.show_expiry(metrics.registry)
    stopped = asyncio.create_task(stop.wait())
    with contextlib.ExitStack() as ports:
        listener = ports.enter_context(bind(settings.host, settings.port))
        ports.enter_context(serving_metrics(metrics.registry, settings.metrics_host, settings.metrics_port))
        if (journal := open_journal(settings, metrics)) is not None:
            ports.callback(journal.close)
        loading = start_in_background(lambda: load(settings, metrics, make_runner), "loading")
        first: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            logger.info("stopped while loading")
            return
        models = loading.result()
        link, https = (None, None) if tls is None else (tls.link, tls.https)
        pool = verifier_pool(settings, addresses, link, token, metrics)
        await _serve_loaded(settings, models, metrics, pool, https, journal, listener, stopped)
    logger.info("stopped")


async def _serve_loaded(
    settings: EdgeSettings,
    models: LoadedModels,
    metrics: EdgeMetrics,
    pool: VerifierPool,
    https: "HttpsContext | None",
    journal: Journal | None,
    listener: socket.socket,
    stopped: asyncio.Task[Any],
) -> None:
    """Meet the verifiers, serve on `listener` until `stopped` is done or the drafter has failed, drain."""
    draft_only = draft_only_of(models, pool, metrics)
    service = generation_service(settings, models, pool, draft_only, metrics)
    with running_drafts(settings, models) as (watchdog, failed):
        spare_steps()
        take_short_turns()
        app = compose(settings, models, service, metrics, journal, draft_only)
        context = None if https is None else https.context
        grace_s = settings.drain_timeout_s
        server = http_server(app, grace_s + _LAST_WORDS_S, tls=context, on_refused=metrics.refused_head)
        meeting = asyncio.create_task(meet_verifier(service))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        beside: list[asyncio.Task[None]] = [] if https is None else [asyncio.create_task(https.follow())]
        if draft_only is not None:
            beside.append(asyncio.create_task(draft_only.watch()))
        try:
            host, port = listener.getsockname()[:2]
            logger.info("serving on %s://%s:%d", "http" if https is None else "https", host, port)
            await asyncio.wait({stopped, failed, serving, meeting}, return_when=asyncio.FIRST_COMPLETED)
            if meeting.done():
                meeting.result()
                beside.append(asyncio.create_task(pool.run()))
                await asyncio.wait({stopped, failed, serving}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                watchdog.end_soon()
            logger.info("draining: running requests may take %g s to finish", grace_s)
        finally:
            for task in (meeting, *beside):
                task.cancel()
            await drain(server, serving, service, grace_s)
            await pool.close()
    if failed.done():
        raise failed.result()


@contextlib.contextmanager
def running_drafts(
    settings: EdgeSettings, models: LoadedModels
) -> Iterator[tuple[Watchdog, "asyncio.Future[DrafterDead]"]]:
    """Drafts while the block runs: who watches the drafter, and what is done once it has failed.

    The watchdog of a drafter that has failed outlives the block.
    """
    drafter = models.drafter
    failed: asyncio.Future[DrafterDead] = asyncio.get_running_loop().create_future()
    if drafter is not None:
        drafter.start()
        failed = asyncio.create_task(drafter.failure())
    watchdog = start_watchdog(settings, drafter)
    try:
        yield watchdog, failed
    finally:
        if drafter is not None:
            drafter.stop()
        if models.lookup is not None:
            models.lookup.stop()
        if not failed.done():
            watchdog.stop()


def start_watchdog(settings: EdgeSettings, drafter: Drafter | None) -> Watchdog:
    """Watches the event loop that runs, and the drafter's steps: without it answers have the time of a drain to end."""
    watchdog = Watchdog(
        asyncio.get_running_loop(),
        name="drafter",
        heartbeat=None if drafter is None else drafter.heartbeat,
        limit_s=settings.drafter_timeout_s,
        grace_s=settings.drain_timeout_s + _END_S,
        on_stuck=lambda reason: None if drafter is None else drafter.fail(reason),
    )
    watchdog.start()
    return watchdog


async def drain(server: HttpServer, serving: asyncio.Task[None], service: GenerationService, grace_s: float) -> None:
    """Take no more requests, and end the answers that have not ended within `grace_s`."""
    server.should_exit = True
    reason = f"this edge agent ends, and the answer did not within drain_timeout_s ({grace_s:g} s)"
    last_call = asyncio.get_running_loop().call_later(grace_s, service.end, reason)
    await serving
    last_call.cancel()


def verifier_pool(
    settings: EdgeSettings,
    addresses: VerifierAddresses,
    link: LinkTls | None,
    token: VerifierToken,
    metrics: EdgeMetrics,
) -> VerifierPool:
    """The verifiers, none of which has been asked yet, seen by the agent's metrics."""
    if link is not None and link.name is None:
        link = replace(link, name=addresses.tls_name)
    shape = FrameShape(settings.pad_frames or 0, settings.frame_interval_ms / 1000)
    observer = StreamMetrics(metrics)
    pool = VerifierPool(
        addresses, lambda address: VerifierClient(address, observer, link, token, shape=shape), observer
    )
    metrics.registry.register(VerifierPoolMetrics(lambda: pool.members))
    return pool


def draft_only_of(models: LoadedModels, pool: VerifierPool, metrics: EdgeMetrics) -> DraftOnly | None:
    """The draft model that answers alone when no verifier can be reached, if it may."""
    if models.drafter is None or models.draft_info is None:
        return None
    return DraftOnly(models.drafter, models.draft_info, lambda: pool.is_reachable, DraftOnlyMetrics(metrics.registry))


def generation_service(
    settings: EdgeSettings,
    models: LoadedModels,
    pool: VerifierPool,
    draft_only: DraftOnly | None,
    metrics: EdgeMetrics,
) -> GenerationService:
    """Answers from the pool's verifiers; metrics bear the name of the model that they serve."""
    options = GenerationOptions(verifier_deadline_s=settings.verifier_deadline_s)
    fingerprint = tokenizer_fingerprint(models.tokenizer)
    service = GenerationService(pool, models.draft_source, fingerprint, options, draft_only)
    metrics.target_model = lambda: service.info.target_model if service.info else ""
    metrics.model_name = lambda: settings.served_model_name or metrics.target_model()
    return service


def edge_tls(settings: EdgeSettings) -> "EdgeTls | None":
    """TLS of both links; None where both are plain text.

    Raises:
        SettingsError: a file is missing, unusable or expired.
    """
    if settings.verifier_ca_file is None and settings.tls_certificate_file is None:
        return None
    from edge_agent.transport import EdgeTls

    return EdgeTls(settings)


def verifier_token(settings: EdgeSettings) -> VerifierToken:
    """What makes this edge a tenant of the verifier; raises SettingsError when it cannot be used."""
    given = "" if settings.verifier_token is None else settings.verifier_token.get_secret_value()
    return VerifierToken(given, settings.verifier_token_file)


def open_journal(settings: EdgeSettings, metrics: EdgeMetrics) -> Journal | None:
    """Where answers are recorded, None where they are not; raises SettingsError when folder or key cannot be used."""
    if settings.journal_dir is None or settings.journal_key_file is None:
        return None
    max_bytes = settings.journal_max_mib * 2**20
    return Journal.open(
        settings.journal_dir, settings.journal_key_file, max_bytes, settings.journal_max_age_s, metrics.registry
    )


def compose(
    settings: EdgeSettings,
    models: LoadedModels,
    service: GenerationService,
    metrics: EdgeMetrics,
    journal: Journal | None = None,
    draft_only: DraftOnly | None = None,
) -> FastAPI:
    """The HTTP application over the loaded models."""
    http = HttpSettings(
        model_name=settings.served_model_name,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        max_concurrent_requests=settings.max_concurrent_requests,
        api_keys_file=settings.api_keys_file,
        cors_origins=settings.cors_origins or (),
        splits_reasoning=splits_reasoning(settings, models.tokenizer),
        tool_format=format_of_template(models.tokenizer) if settings.tool_parser == "auto" else settings.tool_parser,
        draft_model=settings.draft_model,
        draft_execution=models.execution,
        public_metrics=settings.public_metrics,
    )
    return create_app(
        service,
        cast(ChatTokenizer, models.tokenizer),
        http,
        metrics,
        journal=journal,
        draft_only=draft_only,
        refusal=lambda: service.refusal,
    )


def splits_reasoning(settings: EdgeSettings, tokenizer: object) -> bool:
    """Whether chat answers are split into thought and content."""
    if settings.reasoning_parser == "auto":
        return template_thinks(tokenizer)
    return settings.reasoning_parser == "think"


async def meet_verifier(service: GenerationService) -> None:
    """Ask the verifiers what they serve until one answers; raises when none could ever be ours."""
    while True:
        try:
            info = await service.start()
        except VerifierUnavailable as error:
            logger.warning("%s; asking again", error)
            continue
        except (ModelLoadError, ProtocolError):
            logger.exception("this verifier cannot be used")
            raise
        logger.info("the verifier serves %s with a context of %d tokens", info.target_model, info.max_len)
        return
