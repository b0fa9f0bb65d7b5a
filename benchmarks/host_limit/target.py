"""A target whose text is arithmetic and whose forward is a wait; the draft trees that a recorded pair makes of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np

from specedge.node_store import IntArray
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.draft_codec import encode_scores
from specedge_bench.simulation.acceptance_trace import NOT_AMONG, AcceptanceTrace
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.scheduler import Schedule

VOCAB_SIZE = 32_768
FINGERPRINT = "host-limit"


def tokens_at(seeds: IntArray | int, positions: IntArray) -> IntArray:
    """The target's tokens at positions of texts, whatever was before them."""
    return (7919 * seeds + 104_729 * positions) % VOCAB_SIZE


class WaitingTarget:
    """Implements `StepModel`: packs as a real target does; a forward lasts until the drafts for the next step are here.

    So every step has the same to do, however slow the machine, its network and the load are.

    Args:
        forward_s: least seconds of a forward.
        longest_s: most seconds of one.
    """

    def __init__(self, forward_s: float, longest_s: float) -> None:
        self.num_missing = 0  # draft messages that will come
        self._forward_s = forward_s
        self._longest_s = longest_s

    def launch(self, schedule: Schedule) -> "WaitingStep":
        pack(schedule)
        row_groups(schedule)
        return WaitingStep(self, schedule, time.perf_counter() + self._forward_s)

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Nothing is stored."""

    def is_ready(self, earliest_s: float) -> bool:
        """Whether a forward that may end at a time has ended."""
        now_s = time.perf_counter()
        if now_s >= earliest_s + self._longest_s:
            self.num_missing = 0
        return now_s >= earliest_s and self.num_missing <= 0


@dataclass(frozen=True, slots=True)
class WaitingStep:
    """Implements `PendingTokens`."""

    target: WaitingTarget
    schedule: Schedule
    earliest_s: float

    @property
    def is_ready(self) -> bool:
        return self.target.is_ready(self.earliest_s)

    def tokens(self) -> IntArray:
        schedule, trees = self.schedule, self.schedule.trees
        seeds, positions = np.empty((2, trees.num_rows), dtype=np.int64)
        sampling = [item.session for item in schedule.planned if item.samples]
        seeds[:] = np.repeat([session.params.seed for session in sampling], trees.sizes + 1)
        positions[trees.roots] = [len(session.tokens) for session in sampling]
        positions[trees.rows] = trees.positions + 1
        return tokens_at(seeds, positions)


@dataclass(frozen=True, slots=True)
class TreeShape:
    """A draft tree below some position of the trace, parents first.

    Attributes:
        parents: index of each node's parent; -1 below the frontier.
        depths: 1 below the frontier.
        shifts: how far each token is from the target's; 0 on the true path.
        scores: bytes of the wire.
    """

    parents: list[int]
    depths: IntArray
    shifts: IntArray
    scores: bytes


class TreeMaker:
    """Draft messages of sessions that replay a trace.

    Args:
        num_nodes: of a tree.
        num_messages: in which it is sent, the best nodes first.
    """

    def __init__(self, trace: AcceptanceTrace, num_nodes: int, num_messages: int) -> None:
        self._trace = trace
        self._num_nodes = num_nodes
        size = -(-num_nodes // num_messages)
        self._parts = [slice(start, min(start + size, num_nodes)) for start in range(0, num_nodes, size)]
        self._shape = lru_cache(maxsize=None)(self._grow)

    def messages(self, seed: int, offset: int, frontier: int) -> list[bytes]:
        """A tree below the last committed token, as requests of its stream.

        Args:
            seed: the session's.
            offset: where in the trace its position 0 is.
            frontier: position of its last committed token.
        """
        shape = self._shape((offset + frontier) % len(self._trace.ranks))
        tokens = (tokens_at(seed, frontier + shape.depths) + shape.shifts) % VOCAB_SIZE
        found = []
        for part in self._parts:
            nodes = pb.DraftNodes(
                token_ids=tokens[part].tolist(),
                parent_deltas=[
                    index - parent if parent >= 0 else 0
                    for index, parent in enumerate(shape.parents[part], start=part.start)
                ],
                scores=shape.scores[part],
                anchor=frontier,
            )
            found.append(pb.GenerateRequest(draft_nodes=nodes).SerializeToString())
        return found

    def _grow(self, index: int) -> TreeShape:
        """The most probable nodes by what the draft claims."""
        ranks, claims = self._trace.ranks, self._trace.log_probs
        leaves: list[tuple[float, int, int, bool]] = [(0.0, -1, 1, True)]  # loss, number, depth of children, truth
        heapify(leaves)
        parents: list[int] = []
        depths: list[int] = []
        shifts: list[int] = []
        scores: list[float] = []
        while len(parents) < self._num_nodes:
            loss, parent, depth, is_true = heappop(leaves)
            here = (index + depth if is_true else 7919 * (index + 31 * parent)) % len(ranks)
            right = ranks[here] if is_true else NOT_AMONG
            for rank, claim in enumerate(claims[here]):
                is_right = rank == right
                heappush(leaves, (loss - claim, len(parents), depth + 1, is_right))
                parents.append(parent)
                depths.append(depth)
                shifts.append(0 if is_right else rank + 1)
                scores.append(claim)
        count = self._num_nodes
        return TreeShape(
            parents[:count], np.array(depths[:count]), np.array(shifts[:count]), encode_scores(scores[:count])
        )
