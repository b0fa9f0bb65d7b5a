"""Loads a draft model for a target: the same tokenizer, warmed up, with KV slots for many sessions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_model
from specedge.model.runner import ModelRunner
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint

MakeRunner = Callable[[Any, int], ModelRunner]
"""From a loaded model and a number of KV slots; benchmarks put their own here."""

_WARM_UP_ROWS = (1, 8, 32, 128)


def load_draft(
    settings: DrafterSettings,
    drafting: DraftingSettings,
    target_tokenizer: PreTrainedTokenizerBase,
    make_runner: MakeRunner = ModelRunner,
) -> tuple[ModelRunner, DraftingSettings]:
    """Load and warm up the draft model that the settings name; it must name one.

    Args:
        settings: the process's.
        drafting: how sessions are to draft.
        target_tokenizer: the draft model's must have the same fingerprint.
        make_runner: makes the runner.

    Returns:
        The runner, and `drafting` held to the positions that the model knows.

    Raises:
        ModelLoadError: it cannot be loaded, or the tokenizers differ.
    """
    assert settings.draft_model is not None, "without a draft model there is nothing to load"
    path = resolve_model(settings.draft_model, "draft")
    own, other = tokenizer_fingerprint(target_tokenizer), tokenizer_fingerprint(load_tokenizer(path))
    if own != other:
        raise ModelLoadError(
            f"the tokenizers of target_model {settings.target_model} ({own}) and draft_model {settings.draft_model} "
            f"({other}) differ; a draft model must share the target's tokenizer"
        )
    model = load_model(path, settings.device, settings.dtype)
    runner = make_runner(model, settings.num_draft_slots)
    for num_rows in _WARM_UP_ROWS:
        if num_rows <= runner.num_slots:
            runner.forward(runner.chain(num_rows))
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return runner, drafting if positions is None else replace(drafting, max_positions=positions)
