"""Draft nodes to protobuf and back. Both ends of a stream count its nodes, so that parents travel as differences."""

from collections.abc import Iterable, Iterator

from specedge.errors import ProtocolError
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.messages import MAX_NODES_PER_MESSAGE, DraftNodes, check_token_ids

SCORE_STEPS = 16.0
"""A score byte counts sixteenths of a nat."""


class DraftEncoder:
    """Draft nodes of one stream to messages. Counts the nodes, since parents travel as differences of numbers."""

    def __init__(self, max_nodes_per_message: int = MAX_NODES_PER_MESSAGE) -> None:
        self.num_nodes = 0
        self._max_nodes = max_nodes_per_message

    def encode(self, nodes: DraftNodes) -> list[pb.GenerateRequest]:
        """One message, or more where nodes hang on different committed positions or are too many for one."""
        return [self._encode(nodes, start, stop) for start, stop in self._runs(nodes)]

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

    def _encode(self, nodes: DraftNodes, start: int, stop: int) -> pb.GenerateRequest:
        parents = nodes.parents[start:stop]
        first = self.num_nodes
        self.num_nodes += stop - start
        anchor = min(parents)
        return pb.GenerateRequest(
            draft_nodes=pb.DraftNodes(
                token_ids=nodes.token_ids[start:stop],
                parent_deltas=[
                    number - parent if parent >= 0 else 0 for number, parent in enumerate(parents, start=first)
                ],
                scores=bytes(round(max(0.0, min(255.0, score * -SCORE_STEPS))) for score in nodes.scores[start:stop]),
                anchor=~anchor if anchor < 0 else 0,
                num_verdicts_seen=nodes.num_verdicts_seen,
            )
        )


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
        token_ids, deltas, scores = list(message.token_ids), message.parent_deltas, message.scores
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
        check_token_ids(token_ids, self._vocab_size, "token_ids", ProtocolError)
        return DraftNodes(
            token_ids=token_ids,
            parents=self._parents(deltas, ~message.anchor),
            scores=[byte / -SCORE_STEPS for byte in scores],
            num_verdicts_seen=message.num_verdicts_seen,
        )

    def _parents(self, deltas: Iterable[int], anchor: int) -> list[int]:
        parents = []
        for number, delta in enumerate(deltas, start=self.num_nodes):
            if delta > number:
                raise ProtocolError(f"node {number} names a parent {delta} numbers below it, before the first node 0")
            parents.append(number - delta if delta else anchor)
        self.num_nodes += len(parents)
        return parents
