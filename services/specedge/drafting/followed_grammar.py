"""The grammar that one session's drafts follow: known once it is compiled, given up where it does not go along.

Drafts are hints: without a state every token may be drafted, and the verifier refuses what its own grammar does.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState


class FollowedGrammar:
    """Attributes:
    state: this session's own, after its committed tokens; None: nothing is known.
    """

    def __init__(self) -> None:
        self.state: GrammarState | None = None

    def bind(self, state: "GrammarState", missed_ids: Sequence[int]) -> None:
        """Draft from now on only what the grammar allows.

        Args:
            state: as it was some committed tokens ago.
            missed_ids: those tokens.
        """
        self.state = state
        self.follow(missed_ids)

    def follow(self, token_ids: Sequence[int]) -> None:
        """These tokens were committed next."""
        state = self.state
        if state is not None and (state.accept(token_ids) < len(token_ids) or state.is_ended or state.is_too_slow):
            self.state = None

    def num_admitted(self, path: Sequence[int], token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow a path below the committed tokens, one after the other."""
        return len(token_ids) if self.state is None else self.state.num_admitted(path, token_ids)

    def admitted_after(self, path: Sequence[int]) -> Callable[[int], bool]:
        """Tells of a token whether it may follow a path below the committed tokens."""
        if self.state is None:
            return lambda token_id: True
        row = self.state.row_after(path)
        return lambda token_id: 0 <= token_id < 32 * len(row) and bool(int(row[token_id >> 5]) >> (token_id & 31) & 1)
