"""Warm-up: the first forwards of a process, timed, so that the scheduler starts with a measured step time curve."""

import logging
from dataclasses import replace

import numpy as np
import torch

from specedge.errors import ModelLoadError
from specedge.model.batch import chain
from specedge.model.runner import ModelRunner
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge_verifier.engine import monotonic_s

logger = logging.getLogger(__name__)

_ROWS = (1, 8, 32, 128)
_REPEATS = 3


def measure_step_time(runner: ModelRunner, sampler: Sampler, max_rows: int) -> list[tuple[int, float]]:
    """Run steps of growing size, each with the logits of all its rows sampled.

    On CUDA the largest step comes first, so that it is here that its memory is missing, and not at some user's prompt.

    Returns:
        (rows, seconds) per size: the fastest of some repeats.

    Raises:
        ModelLoadError: the device has too little memory for the largest step.
    """
    if runner.device.type == "cuda":
        _run_largest(runner, min(max_rows, runner.num_slots))
    samples = []
    for num_rows in _ROWS:
        if num_rows > min(max_rows, runner.num_slots):
            break
        group = RowGroup(SamplingParams(), np.arange(num_rows, dtype=np.int64), (), 0)
        best_s = float("inf")
        for _ in range(_REPEATS):
            started_s = monotonic_s()
            sampler.choose(runner.forward(chain(num_rows)), [group])
            best_s = min(best_s, monotonic_s() - started_s)
        samples.append((num_rows, best_s))
    logger.info("step time: %s", ", ".join(f"{rows} rows {1e3 * seconds:.1f} ms" for rows, seconds in samples))
    return samples


def _run_largest(runner: ModelRunner, num_rows: int) -> None:
    """A chunk of a prompt, whose last rows are wanted."""
    batch = chain(num_rows)
    try:
        runner.forward(replace(batch, logits_rows=batch.logits_rows[-_ROWS[-1] :]))
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"no device memory is left for a step of {num_rows} rows; lower max_num_batched_tokens, kv_memory_fraction "
            "or graph_memory_mib"
        ) from error
