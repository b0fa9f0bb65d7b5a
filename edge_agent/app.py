"""Composes the edge agent: settings in, a running process out; startup, serve and shutdown in order."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from fastapi import FastAPI

from edge_agent.draft_grammars import MakeGrammars
from edge_agent.draft_info import draft_info
from edge_agent.draft_only import DraftOnly, DraftOnlyMetrics
from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.drafter import Drafter
from edge_agent.generation import GenerationOptions, GenerationService
from edge_agent.http.api_keys import read_api_keys
from edge_agent.http.app import create_app
from edge_agent.http.ports import ChatTokenizer
from edge_agent.http.reasoning import template_thinks
from edge_agent.http.server import http_server
from edge_agent.http.settings import HttpSettings
from edge_agent.http.tool_calls import format_of_template
from edge_agent.journal.journal import Journal
from edge_agent.listener import bind
from edge_agent.lookup_source import LookupSource
from edge_agent.metrics import EdgeMetrics, Slo
from edge_agent.settings import EdgeSettings
from edge_agent.stream_metrics import StreamMetrics
from edge_agent.verifier_addresses import VerifierAddresses, address_source
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_pool import VerifierPool
from edge_agent.verifier_pool_metrics import VerifierPoolMetrics
from edge_agent.verifier_token import VerifierToken
from specedge.background import start_in_background
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.loading import MakeRunner, draft_runner, load_draft_model
from specedge.errors import DrafterDead, ModelLoadError, ProtocolError, VerifierUnavailable
from specedge.garbage import spare_steps
from specedge.grammar.loading import make_compiler
from specedge.grammar.session_grammars import SessionGrammars
from specedge.metrics_server import serve_metrics, stop_metrics
from specedge.model.embedded import resolve_model
from specedge.model.engines import execution_of, make_runner
from specedge.model.execution import Execution
from specedge.tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint
from specedge.turns import take_short_turns
from specedge.watchdog import Watchdog
from specedge.wire.messages import ServerInfo
from specedge.wire.shaping import FrameShape

if TYPE_CHECKING:
    from edge_agent.transport import EdgeTls

logger = logging.getLogger(__name__)

_DEFAULT_DRAFT_SLOTS = 65_536
_PROACTIVE_DECAY = 0.95
_END_S = 5.0
"""Seconds that ending takes at most, after a drain."""
_LAST_WORDS_S = 2.0
"""How long answers that were ended may take to tell their clients so."""


@dataclass(slots=True)
class LoadedModels:
    """What has to be read from disk before the agent can work."""

    tokenizer: Tokenizer
    drafter: Drafter | None
    execution: Execution | None = None  # of the draft model
    lookup: LookupSource | None = None  # without a draft model
    draft_info: ServerInfo | None = None  # of a draft model that may answer alone

    @property
    def draft_source(self) -> DraftSource:
        return self.drafter or self.lookup or NullDraftSource()


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
        if settings.metrics_port is not None:
            metrics_server = serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port)
            ports.callback(stop_metrics, metrics_server)
        if (journal := open_journal(settings, metrics)) is not None:
            ports.callback(journal.close)
        loading = start_in_background(lambda: load(settings, metrics, make_runner), "loading")
        first: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            logger.info("stopped while loading")
            return
        await _serve_loaded(settings, loading.result(), metrics, addresses, token, tls, journal, listener, stopped)
    logger.info("stopped")


async def _serve_loaded(
    settings: EdgeSettings,
    models: LoadedModels,
    metrics: EdgeMetrics,
    addresses: VerifierAddresses,
    token: VerifierToken,
    tls: "EdgeTls | None",
    journal: Journal | None,
    listener: socket.socket,
    stopped: asyncio.Task[Any],
) -> None:
    """Meet the verifiers, serve on `listener` until `stopped` is done or the drafter has failed, drain."""
    link, https = (None, None) if tls is None else (tls.link, tls.https)
    if link is not None and link.name is None:
        link = replace(link, name=addresses.tls_name)
    shape = FrameShape(settings.pad_frames or 0, settings.frame_interval_ms / 1000)
    observer = StreamMetrics(metrics)
    pool = VerifierPool(
        addresses, lambda address: VerifierClient(address, observer, link, token, shape=shape), observer
    )
    metrics.registry.register(VerifierPoolMetrics(lambda: pool.members))
    options = GenerationOptions(verifier_deadline_s=settings.verifier_deadline_s)
    draft_only = None
    if models.drafter is not None and models.draft_info is not None:
        registered = DraftOnlyMetrics(metrics.registry)
        draft_only = DraftOnly(models.drafter, models.draft_info, lambda: pool.is_reachable, registered)
    fingerprint = tokenizer_fingerprint(models.tokenizer)
    service = GenerationService(pool, models.draft_source, fingerprint, options, draft_only)
    metrics.target_model = lambda: service.info.target_model if service.info else ""
    metrics.model_name = lambda: settings.served_model_name or metrics.target_model()
    ending: set[asyncio.Task[Any]] = {stopped}
    failed: asyncio.Task[DrafterDead] | None = None
    if models.drafter is not None:
        models.drafter.start()
        failed = asyncio.create_task(models.drafter.failure())
        ending.add(failed)
    watchdog = start_watchdog(settings, models.drafter)
    spare_steps()
    take_short_turns()
    app = compose(settings, models, service, metrics, journal, draft_only)
    context = None if https is None else https.context
    server = http_server(app, settings.drain_timeout_s + _LAST_WORDS_S, tls=context, on_refused=metrics.refused_head)
    meeting = asyncio.create_task(meet_verifier(service))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    beside: list[asyncio.Task[None]] = [] if https is None else [asyncio.create_task(https.follow())]
    if draft_only is not None:
        beside.append(asyncio.create_task(draft_only.watch()))
    try:
        host, port = listener.getsockname()[:2]
        logger.info("serving on %s://%s:%d", "http" if https is None else "https", host, port)
        await asyncio.wait({*ending, serving, meeting}, return_when=asyncio.FIRST_COMPLETED)
        if meeting.done():
            meeting.result()
            beside.append(asyncio.create_task(pool.run()))
            await asyncio.wait({*ending, serving}, return_when=asyncio.FIRST_COMPLETED)
        if failed is not None and failed.done():
            watchdog.end_soon()
        logger.info("draining: running requests may take %g s to finish", settings.drain_timeout_s)
    finally:
        for task in (meeting, *beside):
            task.cancel()
        server.should_exit = True
        reason = f"this edge agent ends, and the answer did not within drain_timeout_s ({settings.drain_timeout_s:g} s)"
        last_call = asyncio.get_running_loop().call_later(settings.drain_timeout_s, service.end, reason)
        await serving
        last_call.cancel()
        await pool.close()
        if models.drafter is not None:
            models.drafter.stop()
        if models.lookup is not None:
            models.lookup.stop()
        if failed is None or not failed.done():
            watchdog.stop()
    if failed is not None and failed.done():
        raise failed.result()


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


def load(
    settings: EdgeSettings,
    metrics: EdgeMetrics,
    make_runner: MakeRunner = make_runner,
    make_grammars: MakeGrammars | None = None,
) -> LoadedModels:
    """Load the target's tokenizer and the draft model, and warm the draft model up.

    Args:
        settings: the process's.
        metrics: told about draft steps.
        make_runner: from the loaded draft model and the number of KV slots; benchmarks put their own here.
        make_grammars: what drafts follow; None: compiled by a process of this one's own.

    Raises:
        ModelLoadError: one of them cannot be loaded, or their tokenizers differ.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    tokenizer = load_tokenizer(resolve_model(settings.target_model, "target"))
    make_grammars = make_grammars or partial(draft_grammars, tokenizer)
    if settings.draft_model is None:
        lookup = lookup_source(settings, make_grammars, metrics) if settings.looks_up else None
        return LoadedModels(tokenizer, None, lookup=lookup)
    model = load_draft_model(settings, tokenizer)
    num_slots = settings.num_draft_slots or _DEFAULT_DRAFT_SLOTS
    runner, drafting = draft_runner(model, drafting_settings(settings), num_slots, make_runner)
    steps = DraftMetrics(metrics.registry, "specedge_edge", metrics.draft_step)
    drafter = Drafter(
        runner,
        drafter_id=f"{settings.draft_model}/{settings.proactive.type}{'+lookup' * settings.looks_up}",
        settings=drafting,
        vocab_size=len(tokenizer),
        on_step=steps.step,
        make_grammars=make_grammars,
        decodes_alone=settings.draft_only != "off",
    )
    steps.watch(drafter.stats, drafter.pool)
    if settings.looks_up:
        metrics.registry.register(LookupMetrics("specedge_edge", drafter.stats.lookup))
    execution = execution_of(model, runner, settings.draft_quantization)
    metrics.drafts_with(execution)
    alone = None
    if settings.draft_only != "off":
        alone = draft_info(settings, tokenizer, num_slots, drafting.max_positions)
    return LoadedModels(tokenizer, drafter, execution, draft_info=alone)


def lookup_source(settings: EdgeSettings, make_grammars: MakeGrammars, metrics: EdgeMetrics) -> LookupSource:
    """Drafts without a draft model."""
    source = LookupSource(settings.max_budget, make_grammars)
    metrics.registry.register(LookupMetrics("specedge_edge", source.stats))
    return source


def draft_grammars(tokenizer: Tokenizer, eos_ids: Sequence[int]) -> SessionGrammars:
    """Grammars over the token ids that are drafted."""
    return SessionGrammars(partial(make_compiler, tokenizer, len(tokenizer), eos_ids))


def drafting_settings(settings: EdgeSettings) -> DraftingSettings:
    """The drafter's settings from the process's; a proactive growth parameter left out is the main one's."""
    main = settings.growth
    proactive = GrowthSettings(
        max_n_beams=settings.proactive.max_n_beams or main.max_n_beams,
        max_beam_len=settings.proactive.max_beam_len or main.max_beam_len,
        max_branch_width=settings.proactive.max_branch_width or main.max_branch_width,
        max_budget=settings.proactive.max_budget or main.max_budget,
        decay=_PROACTIVE_DECAY,
    )
    return DraftingSettings(mode=settings.proactive.type, growth=main, proactive=proactive, looks_up=settings.looks_up)


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
