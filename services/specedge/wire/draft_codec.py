"""Draft nodes to protobuf and back. Both ends of a stream count its nodes, so that parents travel as differences."""

from collections.abc import Iterator, Sequence

import numpy as np

from specedge.errors import ProtocolError
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.messages import MAX_NODES_PER_MESSAGE, DraftNodes, check_received_ids

SCORE_STEPS = 16.0
"""A score byte counts sixteenths of a nat."""

_LOWEST_SCORE = 255 / -SCORE_STEPS
_SCORES = tuple(byte / -SCORE_STEPS for byte in range(256))


class DraftEncoder:
    """Draft nodes of one stream to messages. Counts the nodes, since parents travel as differences of numbers."""

    def __init__(self, max_nodes_per_message: int = MAX_NODES_PER_MESSAGE) -> None:
        self.num_nodes = 0
        self._max_nodes = max_nodes_per_message

    def encode(self, nodes: DraftNodes) -> list[pb.GenerateRequest]:
        """One message, or more where nodes hang on different committed positions or are too many for one."""
        num_nodes = len(nodes.parents)
        anchors = {parent for parent in nodes.parents if parent < 0}
        if 0 < num_nodes <= self._max_nodes and len(anchors) <= 1:
            return [self._encode(nodes.token_ids, nodes.parents, nodes.scores, nodes.num_verdicts_seen)]
        return [
            self._encode(
                nodes.token_ids[start:stop],
                nodes.parents[start:stop],
                nodes.scores[start:stop],
                nodes.num_verdicts_seen,
            )
            for start, stop in self._runs(nodes)
        ]

    def _runs(self, nodes: DraftNodes) -> Iterator[tuple[int, int]]:
        start, anchor = 0, 0
        for index, parent in enumerate(nodes.parents):
            if index - start == self._max_nodes or (parent < 0 and anchor < 0 and parent != anchor):
                yield start, index
                start, anchor = index, 0
            if parent < 0:
                anchor = parent
        if start < len(nodes.parents):
            yield start, len(nodes.parents)

    def _encode(
        self, token_ids: Sequence[int], parents: Sequence[int], scores: Sequence[float], num_verdicts_seen: int
    ) -> pb.GenerateRequest:
        first, anchor = self.num_nodes, min(parents)
        self.num_nodes += len(parents)
        # Filled in place: protobuf would copy a message that is handed to it.
        request = pb.GenerateRequest()
        message = request.draft_nodes
        message.token_ids.extend(token_ids)
        message.parent_deltas.extend(
            [number - parent if parent >= 0 else 0 for number, parent in enumerate(parents, start=first)]
        )
        message.scores = encode_scores(scores)
        message.anchor = ~anchor if anchor < 0 else 0
        message.num_verdicts_seen = num_verdicts_seen
        return request


def encode_scores(scores: Sequence[float]) -> bytes:
    """A byte for each score; what is outside its range becomes the nearest end of it, NaN the lowest score."""
    steps = np.fmin(np.fmax(np.array(scores, dtype=np.float64), _LOWEST_SCORE), 0.0) * -SCORE_STEPS
    return np.rint(steps).astype(np.uint8).tobytes()


class DraftDecoder:
    """Messages of one stream to draft nodes; holds every node to the limits that need no knowledge of the text."""

    def __init__(self, vocab_size: int, max_nodes_per_message: int = MAX_NODES_PER_MESSAGE) -> None:
        self.num_nodes = 0
        self._vocab_size = vocab_size
        self._max_nodes = max_nodes_per_message

    def decode(self, request: pb.GenerateRequest, num_verdicts_sent: int) -> DraftNodes:
        """Reads a message that must carry draft nodes; raises ProtocolError for anything else."""
        kind = request.WhichOneof("message")
        if kind != "draft_nodes":
            raise ProtocolError(f"after OpenSession only DraftNodes may follow, not {kind or 'an empty message'}")
        message = request.draft_nodes
        token_ids, deltas, scores = message.token_ids[:], message.parent_deltas[:], message.scores
        num_nodes = len(token_ids)
        if num_nodes > self._max_nodes:
            raise ProtocolError(f"{num_nodes} draft nodes in one message, at most {self._max_nodes} are allowed")
        if not num_nodes == len(deltas) == len(scores):
            raise ProtocolError(
                f"arrays of DraftNodes differ in length: {num_nodes} token_ids, {len(deltas)} parent_deltas, "
                f"{len(scores)} scores"
            )
        if message.num_verdicts_seen > num_verdicts_sent:
            raise ProtocolError(
                f"num_verdicts_seen is {message.num_verdicts_seen}, but only {num_verdicts_sent} verdicts were sent"
            )
        check_received_ids(token_ids, self._vocab_size, "token_ids", ProtocolError)
        return DraftNodes(
            token_ids=token_ids,
            parents=self._parents(deltas, ~message.anchor),
            scores=[_SCORES[byte] for byte in scores],
            num_verdicts_seen=message.num_verdicts_seen,
        )

    def _parents(self, deltas: list[int], anchor: int) -> list[int]:
        first = self.num_nodes
        if max(deltas, default=0) > first:
            for number, delta in enumerate(deltas, start=first):
                if delta > number:
                    raise ProtocolError(
                        f"node {number} names a parent {delta} numbers below it, before the first node 0"
                    )
        self.num_nodes += len(deltas)
        return [number - delta if delta else anchor for number, delta in enumerate(deltas, start=first)]
