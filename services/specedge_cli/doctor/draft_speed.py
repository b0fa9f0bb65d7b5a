"""How long a draft step takes on this machine, with the draft model and the settings that will run."""

import time
from dataclasses import dataclass
from typing import Final

import torch

from edge_agent.draft_source import DraftSource
from edge_agent.drafter import Drafter
from edge_agent.loading import drafting_settings
from edge_agent.lookup_source import LookupSource
from edge_agent.settings import EdgeSettings
from specedge.drafting.core import DraftCore
from specedge.drafting.draft_model import RankedDraftModel
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.drafting.loading import draft_runner, load_draft_model
from specedge.drafting.ranking import ChildRanking
from specedge.model.engines import execution_of
from specedge.model.runner import ModelRunner
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge_cli.doctor.models import folder_of
from specedge_cli.doctor.statistics import percentile

_NUM_SLOTS: Final = 2048
_NUM_STEPS: Final = 30
_MAX_S: Final = 3.0
_NUM_LIVE: Final = 256


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """The draft model, warm.

    Attributes:
        runner: of this process alone.
        drafting: as the edge would draft.
        vocab_size: of the target's tokenizer.
        execution: what computes it, in words.
    """

    runner: ModelRunner
    drafting: DraftingSettings
    vocab_size: int
    execution: str


def load_draft(settings: EdgeSettings) -> LoadedDraft:
    """Load the draft model as the edge does, with few KV slots.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    tokenizer = load_tokenizer(str(folder_of(settings.target_model, "target")))
    model = load_draft_model(settings, tokenizer)
    runner, drafting = draft_runner(model, drafting_settings(settings), _NUM_SLOTS)
    execution = str(execution_of(model, runner, settings.draft_quantization))
    return LoadedDraft(runner, drafting, len(tokenizer), execution)


def measure_draft_steps(draft: LoadedDraft, prompt_ids: tuple[int, ...]) -> list[float]:
    """Seconds of the draft steps of one session, the first two left out.

    Whenever the tree is full, its text goes on by a token, as after a verdict.
    """
    ranking = ChildRanking.of(draft.runner, draft.drafting, vocab_size=draft.vocab_size)
    model = RankedDraftModel(draft.runner, ranking)
    core: DraftCore[int] = DraftCore(model, draft.drafting, draft.runner.num_slots)
    sampling = SamplingParams(max_tokens=_NUM_SLOTS, seed=1, ignore_eos=True)
    core.open(0, DraftRequest("doctor", list(prompt_ids), sampling, (), _NUM_LIVE))
    seconds: list[float] = []
    end_s = time.monotonic() + _MAX_S
    while len(seconds) < _NUM_STEPS and time.monotonic() < end_s:
        started_s = time.perf_counter()
        step = core.schedule()
        if step is None:
            core.verdict(0, [prompt_ids[len(seconds) % len(prompt_ids)]])
            continue
        core.settle(step, model.children(step))
        seconds.append(time.perf_counter() - started_s)
    return seconds[2:] or seconds


def median_step_s(draft: LoadedDraft, prompt_ids: tuple[int, ...]) -> float:
    """The median draft step, in seconds."""
    return percentile(measure_draft_steps(draft, prompt_ids), 50)


def source_of(settings: EdgeSettings, draft: LoadedDraft | None) -> DraftSource | None:
    """What the edge would draft with; a `Drafter` must be started and stopped."""
    if draft is None:
        return LookupSource(settings.max_budget) if settings.looks_up else None
    return Drafter(
        draft.runner,
        drafter_id=f"{settings.draft_model}/{settings.proactive.type}{'+lookup' * settings.looks_up}",
        settings=draft.drafting,
        vocab_size=draft.vocab_size,
    )
