"""The published modes: synchronous rounds, with or without a guess at the outcome while a tree is in flight.

A round grows a tree for up to `max_beam_len` steps, or until nothing can improve it, and sends it in one message; the
next verdict ends the round. A verdict before that re-roots the tree, and the round goes on. While the tree is in
flight, "off" waits. "included" and "excluded" expand its leaves, take the most probable (leaf, next token) as the
*expansion head*, suppose it committed and grow a second tree from there. If the verdict is exactly that head the second
tree is kept: "excluded" then grows it for a full round, "included" only by the steps that are missing. Otherwise it is
thrown away.
"""

from collections.abc import Sequence
from enum import Enum, auto

from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import Demand, DraftingSettings, DraftRequest, SessionDrafting
from specedge.drafting.draft_stats import DrafterStats
from specedge.drafting.draft_tree import DraftTree
from specedge.drafting.growth import Candidates
from specedge.drafting.payoff import Payoff
from specedge.wire.messages import DraftNodes


class Stage(Enum):
    """Where a round is."""

    GROWING = auto()
    RANKING_LEAVES = auto()
    GUESSING = auto()
    WAITING = auto()


class RoundDrafting(SessionDrafting):
    """One session's drafting in rounds; arguments as for SessionDrafting."""

    def __init__(
        self, request: DraftRequest, settings: DraftingSettings, pool: BlockPool, stats: DrafterStats, overall: Payoff
    ) -> None:
        super().__init__(request, settings, pool, stats, overall)
        self._stage = Stage.GROWING
        self._num_steps_left = settings.growth.max_beam_len
        self.guess: DraftTree | None = None
        self._num_guess_steps = 0

    @property
    def num_slots(self) -> int:
        """KV slots in use; those that the guess shares with the tree count twice."""
        return super().num_slots + (self.guess.num_slots if self.guess is not None else 0)

    def demand(self) -> Demand | None:
        """What to compute next for the tree, its leaves or the guess."""
        if not self.is_drafting:
            return None
        if self._stage is Stage.GROWING:
            return super().demand() if self._num_steps_left else None
        if self._stage is Stage.RANKING_LEAVES:
            leaves = self.tree.growth.unexpanded_leaves(self.settings.proactive.max_n_beams)
            if leaves:
                return Demand(self.tree, 0, leaves)
            self._begin_guess()
        if self.guess is not None and self._num_guess_steps < self.settings.proactive.max_beam_len:
            return self._growth_of(self.guess, self.settings.proactive)
        return None

    def settle(self, tree: DraftTree, results: Sequence[tuple[int, Candidates]]) -> None:
        """Takes the children of a step's rows; what a verdict has overtaken is dropped."""
        if not results:
            return
        if tree is self.guess:
            self._num_guess_steps += 1
            self._attach(tree, results)
        elif tree is self.tree and self._stage is Stage.RANKING_LEAVES:
            tree.growth.remember(results)
            self._begin_guess()
        elif tree is self.tree:
            self._num_steps_left = max(0, self._num_steps_left - 1)
            self._attach(tree, results)
        else:
            self._stats.num_late_results += len(results)

    def take_nodes(self) -> DraftNodes | None:
        """The whole tree, once it has grown."""
        if self._stage is not Stage.GROWING or not self.is_drafting:
            return None
        if self._num_steps_left and super().demand() is not None:
            return None
        self._stage = Stage.WAITING if self.settings.mode == "off" else Stage.RANKING_LEAVES
        return super().take_nodes()

    def restart(self, epoch: int) -> None:
        """As for SessionDrafting; a tree in flight is sent again at once."""
        super().restart(epoch)
        if self._stage is not Stage.GROWING:
            self._drop_guess("released")
            self._stage, self._num_steps_left = Stage.GROWING, 0

    def release(self) -> None:
        """Gives up tree, guess and all slots."""
        self._drop_guess("released")
        super().release()
        self._stage, self._num_steps_left = Stage.GROWING, self.settings.growth.max_beam_len

    def _begin_guess(self) -> None:
        self._stage = Stage.WAITING
        head = self.tree.growth.best_continuation()
        if head is not None:
            self._stage = Stage.GUESSING
            self._num_guess_steps = 0
            self.guess = self.tree.fork(*head, self.settings.proactive)

    def _after_commit(self, token_ids: Sequence[int]) -> None:
        growth = self.settings.growth
        # Where the target decoded plainly meanwhile the round goes on, unless nothing of its tree is left.
        if self._stage is not Stage.GROWING or not self.tree.trie.num_live:
            self._stage, self._num_steps_left = Stage.GROWING, growth.max_beam_len
        guess = self.guess
        if guess is not None and guess.trie.committed == self.committed:
            self.guess = None
            self._stats.num_guesses_hit += 1
            if self.settings.mode == "included":
                self._num_steps_left = max(0, growth.max_beam_len - self._num_guess_steps)
            self._lose(self.tree.trie.live_numbers(), "rejected")
            self.tree.release()
            self.tree = guess
            self._lose(guess.retarget(growth, self.max_tree_nodes), "trimmed")
        else:
            if guess is not None:
                self._stats.num_guesses_missed += 1
                self._drop_guess("guess_missed")
            self._reconsider()

    def _drop_guess(self, reason: str) -> None:
        if self.guess is not None:
            self._stats.wasted[reason] += self.guess.trie.num_live
            self.guess.release()
            self.guess = None
