"""What has to be read from disk before the edge agent can work: the tokenizer and the draft model, ready to draft."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from edge_agent.draft_grammars import MakeGrammars
from edge_agent.draft_info import draft_info
from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.drafter import Drafter
from edge_agent.lookup_source import LookupSource
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from specedge.drafting.draft_metrics import DraftMetrics, LookupMetrics
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.loading import MakeRunner, draft_runner, load_draft_model
from specedge.grammar.loading import make_compiler
from specedge.grammar.session_grammars import SessionGrammars
from specedge.model.embedded import resolve_model
from specedge.model.engines import execution_of, make_runner
from specedge.model.execution import Execution
from specedge.tokenizer import Tokenizer, load_tokenizer
from specedge.wire.messages import ServerInfo

_DEFAULT_DRAFT_SLOTS = 65_536
_PROACTIVE_DECAY = 0.95


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
