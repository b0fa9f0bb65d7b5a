"""The draft model as the only model: plain decoding of sessions that no verifier serves, on the drafter's thread.

Tokens are drawn as a verifier draws the target's: the same parameters, and noise by seed and position. So an answer can
be continued after any of its tokens.
"""

from typing import Final

import numpy as np

from edge_agent.decoding_session import Decoded, DecodingSession
from specedge.block_pool import BlockPool
from specedge.drafting.draft_model import DraftRunner
from specedge.errors import CapacityExceeded, OutOfBlocks, SpecEdgeError
from specedge.model.batch import PackedBatch, Segment
from specedge.row_group import RowGroup
from specedge.sampler import Sampler

_MAX_ROWS: Final = 128


class DraftDecoder:
    """All such sessions of one draft model.

    Args:
        runner: the draft model.
        pool: its KV slots, which drafting uses as well.
        vocab_size: token ids from here on are never drawn.
    """

    def __init__(self, runner: DraftRunner, pool: BlockPool, vocab_size: int) -> None:
        self._runner = runner
        self._pool = pool
        self._vocab_size = min(vocab_size, runner.vocab_size)
        self._sampler = Sampler(self._vocab_size, runner.device)
        self._sessions: dict[DecodingSession, None] = {}  # in order of opening

    def open(self, session: DecodingSession) -> None:
        """Begins to decode."""
        self._sessions[session] = None

    def close(self, session: DecodingSession) -> None:
        """Ends a session and frees its slots; nothing happens to one that has ended."""
        if session in self._sessions:
            del self._sessions[session]
            self._pool.release(session.slots)

    def end(self, error: SpecEdgeError) -> list[tuple[DecodingSession, Decoded]]:
        """Ends all sessions."""
        ended = [(session, Decoded(error=error)) for session in self._sessions]
        for session, _ in ended:
            self.close(session)
        return ended

    @property
    def has_work(self) -> bool:
        """Whether a session wants a step."""
        return any(not session.is_paused for session in self._sessions)

    def step(self) -> list[tuple[DecodingSession, Decoded]]:
        """One forward for all sessions that want one; what it gave them."""
        results: list[tuple[DecodingSession, Decoded]] = []
        shares: list[tuple[DecodingSession, int]] = []
        num_left = _MAX_ROWS
        ready = [session for session in self._sessions if not session.is_paused]
        for session in sorted(ready, key=lambda session: len(session.text) - len(session.slots)):
            num_rows = min(len(session.text) - len(session.slots), num_left)
            if num_rows == 0:
                break
            try:
                session.slots += self._pool.allocate(num_rows)
            except OutOfBlocks as error:
                self.close(session)
                results.append((session, Decoded(error=CapacityExceeded(f"the draft model's KV is full: {error}"))))
                continue
            shares.append((session, num_rows))
            num_left -= num_rows
        if shares:
            results += self._decode(shares)
        return results

    def _decode(self, shares: list[tuple[DecodingSession, int]]) -> list[tuple[DecodingSession, Decoded]]:
        wanting = [session for session, _ in shares if len(session.slots) == len(session.text)]
        logits = self._runner.forward(_batch(shares))
        if not wanting:
            return []
        token_ids = self._sampler.choose(logits[:, : self._vocab_size], [_group(session) for session in wanting])
        results = [
            (session, session.commit(token_id)) for session, token_id in zip(wanting, token_ids.tolist(), strict=True)
        ]
        for session, decoded in results:
            if decoded.finish_reason:
                self.close(session)
        return results


def _batch(shares: list[tuple[DecodingSession, int]]) -> PackedBatch:
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    segments = []
    for session, num_rows in shares:
        end = len(session.slots)
        token_ids += session.text[end - num_rows : end]
        positions += range(end - num_rows, end)
        slots += session.slots[end - num_rows :]
        segments.append(Segment(num_rows, np.array(session.slots, dtype=np.int64)))
        if end == len(session.text):
            wanted.append(len(token_ids) - 1)
    return PackedBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        slots=np.array(slots, dtype=np.int64),
        segments=tuple(segments),
        logits_rows=np.array(wanted, dtype=np.int64),
    )


def _group(session: DecodingSession) -> RowGroup:
    return RowGroup(
        params=session.request.sampling,
        positions=np.array([len(session.text)], dtype=np.int64),
        eos_ids=session.request.eos_ids,
        prompt_len=session.prompt_len,
        counts=session.counts,
        committed=session.text,
    )
