"""What drafting did for one answer, in the shape that benchmark tools read from `metrics.speculative_decoding`."""

from collections import Counter
from typing import Any

from edge_agent.http.choice_text import Piece


class SpeculationSummary:
    """Counts verifications, and apart from the others those that had draft nodes."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._num_verifications = 0
        self._steps_by_accepted: Counter[int] = Counter()
        self._num_draft_nodes = 0
        self._max_draft_nodes = 0

    def add(self, piece: Piece) -> None:
        """Takes a burst into account."""
        self._num_tokens += piece.num_tokens
        self._num_verifications += 1
        if piece.num_draft_nodes:
            self._steps_by_accepted[piece.num_accepted] += 1
            self._num_draft_nodes += piece.num_draft_nodes
            self._max_draft_nodes = max(self._max_draft_nodes, piece.num_draft_nodes)

    def as_headers(self) -> dict[str, str]:
        """What all answers of a request together took, as headers; verifications without a draft count too."""
        num_accepted = sum(accepted * steps for accepted, steps in self._steps_by_accepted.items())
        return {
            "x-specedge-tokens-per-verification": f"{self._num_tokens / max(1, self._num_verifications):.3f}",
            "x-specedge-draft-tokens": str(self._num_draft_nodes),
            "x-specedge-accepted-tokens": str(num_accepted),
        }

    def as_json(self) -> dict[str, Any] | None:
        """The summary, None when nothing was drafted; the mean length counts the bonus token."""
        num_steps = self._steps_by_accepted.total()
        if num_steps == 0:
            return None
        num_accepted = sum(accepted * steps for accepted, steps in self._steps_by_accepted.items())
        return {
            "mean_acceptance_length": 1 + num_accepted / num_steps,
            "draft_acceptance_rate": num_accepted / self._num_draft_nodes,
            "acceptance_histogram": [self._steps_by_accepted[num] for num in range(self._max_draft_nodes + 1)],
            "num_spec_steps": num_steps,
            "num_accepted_draft_tokens": num_accepted,
            "num_draft_tokens": self._num_draft_nodes,
            "num_spec_tokens": self._max_draft_nodes,
        }
