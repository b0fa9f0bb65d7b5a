"""From settings to a verifier that is ready to be started: target, KV cache, scheduler, metrics, drafts."""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from specedge import __version__
from specedge.block_pool import BlockPool
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_model import RankedDraftModel
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.loading import MakeRunner, draft_runner, load_draft_model
from specedge.drafting.ranking import ChildRanking
from specedge.grammar.loading import make_compiler
from specedge.grammar.session_grammars import SessionGrammars, has_grammars
from specedge.model.embedded import resolve_model
from specedge.model.engines import LoadedModel, execution_of, make_runner
from specedge.model.loader import GenerationDefaults, load_generation_defaults
from specedge.model.ranks import Ranks
from specedge.model.runner import ModelRunner
from specedge.sampler import Sampler
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, PADDING, PROGRESS, TOKEN_MASKS, ServerInfo
from specedge_verifier.core import EngineCore
from specedge_verifier.engine import EngineObserver, EngineThread, monotonic_s
from specedge_verifier.kv_sizing import context_length
from specedge_verifier.local_drafts import LocalDrafts
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.mirrored import MirroredRunner
from specedge_verifier.queue_bounds import QueueLimits
from specedge_verifier.rank_metrics import RankMetrics
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.step_log import Observers, StepLog
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_loading import load_target, size_pool
from specedge_verifier.target_model import TargetModel
from specedge_verifier.waiting import BatchType
from specedge_verifier.warm_up import measure_step_time

logger = logging.getLogger(__name__)


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
    num_slots = num_blocks * settings.block_size
    runner = make_runner(model, num_slots)
    if ranks is not None:
        runner = MirroredRunner(runner, ranks)
    logger.info(
        "KV cache: %d blocks of %d tokens, %.0f MiB", num_blocks, settings.block_size, runner.cache.num_bytes / 2**20
    )
    sampler = Sampler(runner.vocab_size, runner.device)
    scheduler = make_scheduler(settings, num_blocks, runner, sampler)
    info = server_info(settings, tokenizer_fingerprint(tokenizer), runner.vocab_size, max_len, defaults)
    metrics = VerifierMetrics(info.target_model, scheduler)
    metrics.costs(settings.price_per_hour)
    metrics.runs("target", execution_of(model, runner))
    metrics.registry.register(RankMetrics(ranks))
    drafts = None
    if draft_model is not None:
        drafts = local_drafts(settings, draft_model, num_slots, make_runner, len(tokenizer), metrics)
    core = EngineCore(scheduler, TargetModel(runner, sampler), info, monotonic_s, drafts)
    observer = metrics if settings.step_log is None else Observers([metrics, StepLog(settings.step_log)])
    grammars = SessionGrammars(partial(make_compiler, tokenizer, runner.vocab_size, defaults.eos_ids))
    queue = QueueLimits(
        settings.max_batch_size + settings.max_waiting, settings.max_queued_tokens, settings.max_predicted_ttft_s
    )
    metrics.forecasts(lambda: core.forecast)
    return Verifier(core, info, metrics, queue, observer, grammars)


def make_scheduler(settings: VerifierSettings, num_blocks: int, runner: ModelRunner, sampler: Sampler) -> Scheduler:
    """The scheduler of so many free KV blocks, which knows how long steps of this runner take."""
    samples = measure_step_time(runner, sampler, settings.max_num_batched_tokens)
    limits = SchedulerLimits(
        max_batch_size=settings.max_batch_size,
        max_num_batched_tokens=max(settings.max_num_batched_tokens, settings.max_batch_size + 1),
        max_tree_nodes=settings.max_tree_nodes,
        batch_type=BatchType(settings.batch_type),
    )
    step_time = StepTime(limits.max_num_batched_tokens, samples)
    return Scheduler(BlockPool(num_blocks, settings.block_size), limits, step_time)


def server_info(
    settings: VerifierSettings, fingerprint: str, vocab_size: int, max_len: int, defaults: GenerationDefaults
) -> ServerInfo:
    """What edges are told of this verifier."""
    return ServerInfo(
        target_model=settings.target_model if settings.target_model != "demo" else "specedge-demo",
        tokenizer_fingerprint=fingerprint,
        vocab_size=vocab_size,
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
            PROGRESS,
        ),
    )


def local_drafts(
    settings: VerifierSettings,
    draft_model: LoadedModel,
    num_target_slots: int,
    make_runner: MakeRunner,
    vocab_size: int,
    metrics: VerifierMetrics,
) -> LocalDrafts:
    """Drafting beside the target, seen by the verifier's metrics.

    Args:
        settings: the process's.
        draft_model: as it was loaded.
        num_target_slots: the draft model has as many KV slots if the settings do not say how many.
        make_runner: see `load`.
        vocab_size: of the tokenizer.
        metrics: the process's.
    """
    num_slots = settings.num_draft_slots or num_target_slots
    drafting = DraftingSettings(growth=settings.growth, looks_up=settings.looks_up)
    runner, drafting = draft_runner(draft_model, drafting, num_slots, make_runner)
    metrics.runs("draft", execution_of(draft_model, runner, settings.draft_quantization))
    drafter_id = f"local/{settings.draft_model}{'+lookup' * settings.looks_up}"
    steps = DraftMetrics(metrics.registry, "specedge_verifier", metrics.draft_step)
    model = RankedDraftModel(runner, ChildRanking.of(runner, drafting, vocab_size=vocab_size))
    drafts = LocalDrafts(model, drafting, runner.num_slots, drafter_id, monotonic_s, on_step=steps.step)
    steps.watch(drafts.core.stats, drafts.core.pool)
    if drafting.looks_up:
        metrics.registry.register(LookupMetrics("specedge_verifier", drafts.core.stats.lookup))
    return drafts
