"""How many draft nodes a step verifies: as many as raise expected tokens per second, across all its sessions."""

import numpy as np
import numpy.typing as npt

from specedge_verifier.step_time import StepTime

FloatArray = npt.NDArray[np.float64]


def draft_budget(
    probabilities: list[FloatArray],
    *,
    num_rows: int,
    num_tokens: float,
    max_nodes: int,
    step_time: StepTime,
) -> list[int]:
    """Choose how many nodes of each session to verify.

    A node is worth its acceptance probability and costs the time its row adds. Nodes of all sessions are taken in
    order of probability up to the count that maximises (expected tokens) / (step time): the global form of "take a
    node while p > dT/dn x goodput". At low load that is a generous tree, at saturation none.

    Args:
        probabilities: per session, [num_candidates] non-increasing, best-first and ancestor-closed.
        num_rows: rows the step has without draft nodes.
        num_tokens: tokens those rows are expected to commit (one per session that reaches its last token).
        max_nodes: what the token budget leaves for draft nodes.
        step_time: the learnt curve.

    Returns:
        Number of leading candidates taken, per session.
    """
    counts = [len(p) for p in probabilities]
    if max_nodes <= 0 or not any(counts):
        return [0] * len(counts)
    merged = np.concatenate(probabilities)
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(-merged, kind="stable")[:max_nodes]
    expected = num_tokens + np.concatenate(([0.0], np.cumsum(merged[order])))
    seconds = step_time.predict(num_rows + np.arange(len(order) + 1))
    best = int(np.argmax(expected / seconds))
    taken: list[int] = np.bincount(owners[order[:best]], minlength=len(counts)).tolist()
    return taken
