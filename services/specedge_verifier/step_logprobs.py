"""Which log-probabilities the sessions of a step are told: of prompt tokens as they are computed, and of the answer's.

A prompt token's are those of the row before it, so every row of such a prompt is computed and none taken from the
prefix cache. Of the answer only the rows on the accepted path count, whose tokens are known by then.
"""

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specedge.node_store import IntArray
from specedge.wire.messages import TokenLogprob
from specedge_verifier.acceptance import Walk
from specedge_verifier.scheduler import Schedule

StepLogprobs = dict[int, tuple[TokenLogprob, ...]]
"""Of the tokens that a step found, by session handle."""


class LogprobTable(NamedTuple):
    """Log-probabilities of some rows on the host.

    Attributes:
        own: float32 [num_rows] of the tokens asked about.
        top_ids: int32 [num_rows, num_top] the most probable tokens, best first.
        top: float32 [num_rows, num_top] theirs.
    """

    own: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top: NDArray[np.float32]

    def tokens(self, start: int, stop: int, num_top: int) -> list[TokenLogprob]:
        """The rows from start to stop - 1, each with its best `num_top`."""
        return [
            TokenLogprob(_number(own), tuple(ids), tuple(map(_number, top)))
            for own, ids, top in zip(
                self.own[start:stop].tolist(),
                self.top_ids[start:stop, :num_top].tolist(),
                self.top[start:stop, :num_top].tolist(),
                strict=True,
            )
        ]


@runtime_checkable
class ScoredTokens(Protocol):
    """What `StepModel.launch` returns in addition where a session of the step wants log-probabilities."""

    def prompt_logprobs(self) -> LogprobTable:
        """Of the rows of `prompt_rows`; waits for them."""

    def logprobs(self, rows: IntArray, token_ids: IntArray, num_top: int) -> LogprobTable:
        """Of some sampling rows, counted as in `PendingTokens.tokens`; once these have been asked for."""


class PromptRows(NamedTuple):
    """Rows of a step's batch whose next token is one of a prompt.

    Attributes:
        rows: their numbers in the batch, ascending.
        token_ids: the next tokens.
        num_top: the most best tokens that a session wants.
    """

    rows: IntArray
    token_ids: IntArray
    num_top: int


def prompt_rows(schedule: Schedule) -> PromptRows | None:
    """The rows of a step after which log-probabilities of a prompt are wanted; None where there are none."""
    if not schedule.wants_logprobs:
        return None
    rows: list[int] = []
    token_ids: list[int] = []
    num_top, first_row = 0, 0
    for item in schedule.planned:
        session = item.session
        if scored := session.scored(item.start, item.num_chunk):
            rows += range(first_row + scored.start - item.start, first_row + scored.stop - item.start)
            token_ids += session.tokens[scored.start + 1 : scored.stop + 1]
            num_top = max(num_top, session.params.num_prompt_logprobs or 0)
        first_row += item.num_rows
    return PromptRows(np.array(rows), np.array(token_ids), num_top) if rows else None


def tell_logprobs(schedule: Schedule, walks: Sequence[Walk | None], pending: object) -> StepLogprobs:
    """Take what a step brought: of prompts into their sessions, and of committed tokens by session handle.

    Args:
        schedule: the step.
        walks: the accepted paths.
        pending: what was launched; `ScoredTokens` where a session wants log-probabilities.
    """
    if not schedule.wants_logprobs:
        return {}
    assert isinstance(pending, ScoredTokens)
    _take_prompt_logprobs(schedule, pending)
    sessions, rows, token_ids, sizes = [], [], [], []
    roots = iter(schedule.trees.roots.tolist())
    for item, path in zip(schedule.planned, walks, strict=True):
        if path is None:
            continue
        root = next(roots)
        if item.session.params.num_logprobs is not None:
            sessions.append(item.session)
            sizes.append(len(path.tokens))
            rows += [root, *(root + row for row in path.rows)]
            token_ids += path.tokens
    if not sessions:
        return {}
    num_top = max(session.params.num_logprobs or 0 for session in sessions)
    table = pending.logprobs(np.array(rows), np.array(token_ids), num_top)
    told, start = {}, 0
    for session, size in zip(sessions, sizes, strict=True):
        told[session.handle] = tuple(table.tokens(start, start + size, session.params.num_logprobs or 0))
        start += size
    return told


def _take_prompt_logprobs(schedule: Schedule, pending: ScoredTokens) -> None:
    table: LogprobTable | None = None
    start = 0
    for item in schedule.planned:
        session = item.session
        if size := len(session.scored(item.start, item.num_chunk)):
            table = table or pending.prompt_logprobs()
            session.prompt_logprobs += table.tokens(start, start + size, session.params.num_prompt_logprobs or 0)
            start += size


def _number(logprob: float) -> float:
    """A broken model's probabilities are no numbers."""
    return float("-inf") if isnan(logprob) else logprob
