"""How many draft nodes a step verifies: as many as raise expected tokens per second, across all its sessions."""

import numpy as np

from specedge.node_store import FloatArray, IntArray
from specedge_verifier.step_time import StepTime

_STEPS = 1 << 15  # probabilities are ordered as 16-bit integers, which sort several times faster


def draft_budget(
    probabilities: FloatArray,
    owners: IntArray,
    *,
    num_rows: int,
    num_tokens: float,
    max_nodes: int,
    step_time: StepTime,
) -> IntArray:
    """Choose how many nodes of each session to verify.

    A node is worth its acceptance probability and costs the time its row adds. Nodes of all sessions are taken in
    order of probability up to the count that maximises (expected tokens) / (step time): the global form of "take a
    node while p > dT/dn x goodput". At low load that is a generous tree, at saturation none. Now and then more are
    taken, up to a number of rows whose time has not been observed for long.

    Args:
        probabilities: [num_candidates] session after session, each non-increasing, best-first and ancestor-closed.
        owners: [num_candidates] each one's session, from 0 on.
        num_rows: rows the step has without draft nodes.
        num_tokens: tokens those rows are expected to commit (one per session that reaches its last token).
        max_nodes: what the token budget leaves for draft nodes.
        step_time: the learnt curve.

    Returns:
        Number of leading candidates taken, per session up to the last that has any.
    """
    num_sessions = int(owners[-1]) + 1 if len(owners) else 0
    if max_nodes <= 0 or not num_sessions:
        return np.zeros(num_sessions, dtype=np.int64)
    order = by_probability(probabilities)[:max_nodes]
    expected = num_tokens + np.concatenate(([0.0], np.cumsum(probabilities[order])))
    seconds = step_time.predict(num_rows + np.arange(len(order) + 1))
    best = int(np.argmax(expected / seconds))
    due = step_time.due_rows(num_rows + best) - num_rows  # rather than never learn that more would pay
    if due <= len(order):
        best = due
    return np.bincount(owners[order[:best]], minlength=num_sessions)


def by_probability(probabilities: FloatArray) -> IntArray:
    """Indices of candidates, the most probable first; those of one session stay in order."""
    return np.argsort((probabilities * -_STEPS).astype(np.int16), kind="stable")
