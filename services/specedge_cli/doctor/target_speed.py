"""How long the target's steps take on this machine, and what a tree adds to one."""

from collections.abc import Sequence
from typing import Final

import torch

from specedge.drafting.draft_session import DraftingSettings
from specedge.model.engines import foresee, load_for, make_runner
from specedge.model.loader import resolve_device
from specedge.model.memory import free_bytes, mib
from specedge.sampler import Sampler
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.expectation import AGREEMENT
from specedge_cli.doctor.models import folder_of
from specedge_cli.doctor.session_model import Times, greatest_lead, streamed_pace
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.warm_up import measure_step_time

_MAX_ROWS: Final = 128
_EDGE_STEP_S: Final = 0.006
_EDGE_AWAY_S: Final = 0.015
_MAX_BYTES: Final = 16 * 2**30


def check_target_step(settings: VerifierSettings) -> Sequence[Finding]:
    """Load the target and time its steps, where it fits beside what runs already."""
    name = "verifier step"
    folder = folder_of(settings.target_model, "target")
    if folder is None:
        return [Finding(name, "skipped", "the target's files are not here")]
    there = foresee(settings.engine, folder, settings.device, settings.dtype, settings.attention)
    needed = there.weight_bytes + _MAX_ROWS * there.kv_bytes
    free = free_bytes(resolve_device(settings.device))
    if needed > min(free, _MAX_BYTES):
        found = f"not measured: the model takes {mib(needed)}, and {mib(min(free, _MAX_BYTES))} may be used for this"
        return [Finding(name, "skipped", found)]
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    model = load_for(settings.engine, str(folder), settings.device, settings.dtype, attention=settings.attention)
    runner = make_runner(model, _MAX_ROWS)
    samples = measure_step_time(runner, Sampler(runner.vocab_size, runner.device), _MAX_ROWS)
    return judge_target_step(samples, settings.growth.max_budget, settings.growth.decay)


def judge_target_step(samples: Sequence[tuple[int, float]], max_budget: int, decay: float) -> list[Finding]:
    """What a tree costs beside a token, and what an edge may expect of this verifier.

    Args:
        samples: (rows, seconds) of steps, the first of one row.
    """
    times = ", ".join(f"{rows} {'row' if rows == 1 else 'rows'} {1e3 * seconds:.1f} ms" for rows, seconds in samples)
    values = {f"step_ms_{rows}_rows": 1e3 * seconds for rows, seconds in samples}
    one_s = samples[0][1]
    tree_rows, tree_s = next((sample for sample in samples if sample[0] >= 32), samples[-1])
    found = f"{times}: a tree of {tree_rows - 1} nodes makes a step {tree_s / one_s:.1f} times as long"
    pace = streamed_pace(
        Times(one_s, _EDGE_STEP_S, _EDGE_AWAY_S),
        AGREEMENT,
        greatest_lead(AGREEMENT, max_budget, decay, DraftingSettings().min_path_probability),
    )
    speed_up = one_s / pace.seconds_per_token
    expected = (
        f"an edge {1e3 * _EDGE_AWAY_S:.0f} ms away with a draft step of {1e3 * _EDGE_STEP_S:.0f} ms gets about "
        f"{pace.tokens_per_verification:.1f} tokens per verification, {1e3 * pace.seconds_per_token:.1f} ms per token "
        f"instead of {1e3 * one_s:.1f} ms, if {AGREEMENT:.0%} of the target's tokens are in its trees (one session)"
    )
    pays = {"speed_up": speed_up, "tokens_per_verification": pace.tokens_per_verification}
    if speed_up >= 1.1:
        second = Finding("speed-up", "ok", expected, values=pays)
    else:
        change = "bring edges nearer, or serve a larger target: its steps are short beside the way to an edge"
        second = Finding("speed-up", "warn", expected, change, pays)
    return [Finding("verifier step", "ok", found, values=values), second]
