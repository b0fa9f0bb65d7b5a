"""Loads a draft model for a target: the same tokenizer, warmed up, with KV slots for many sessions."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from specedge.errors import ModelLoadError
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_model
from specedge.model.runner import ModelRunner
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint

MakeRunner = Callable[[Any, int], ModelRunner]
"""From a loaded model and a number of KV slots; benchmarks put their own here."""

_DEFAULT_SLOTS = 65_536
_WARM_UP_ROWS = (1, 8, 32, 128)


def load_draft_runner(
    name: str,
    *,
    target_name: str,
    target_tokenizer: PreTrainedTokenizerBase,
    device: str,
    dtype: str,
    num_slots: int | None,
    make_runner: MakeRunner = ModelRunner,
) -> tuple[ModelRunner, int | None]:
    """Load and warm up the draft model.

    Args:
        name, target_name: models as the user named them.
        target_tokenizer: the draft model's must have the same fingerprint.
        device, dtype: as in the settings.
        num_slots: KV slots in tokens; None takes the default.
        make_runner: makes the runner.

    Returns:
        The runner, and how many positions the model knows (None: no limit is named).

    Raises:
        ModelLoadError: it cannot be loaded, or the tokenizers differ.
    """
    path = resolve_model(name, "draft")
    own, other = tokenizer_fingerprint(target_tokenizer), tokenizer_fingerprint(load_tokenizer(path))
    if own != other:
        raise ModelLoadError(
            f"the tokenizers of target_model {target_name} ({own}) and draft_model {name} ({other}) differ; a draft "
            "model must share the target's tokenizer"
        )
    model = load_model(path, device, dtype)
    runner = make_runner(model, num_slots or _DEFAULT_SLOTS)
    for num_rows in _WARM_UP_ROWS:
        if num_rows <= runner.num_slots:
            runner.forward(runner.chain(num_rows))
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return runner, positions
