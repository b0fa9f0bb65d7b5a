"""A draft trie with its keys and values in the draft model's cache.

Every committed token that has been computed owns a slot, in position order, and so does every expanded node. A commit
moves the slots of accepted nodes to the committed ones (nothing is copied or computed again), the surviving nodes keep
theirs, and the slots of the dead are free at once. While a node has a slot, so have all above it, and all committed
tokens are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from specedge.block_pool import BlockPool
from specedge.drafting.growth import Candidates, GrowthSettings, TreeGrowth
from specedge.model.batch import IntArray, Segment
from specedge.trie import DraftTrie, anchor_at


@dataclass(frozen=True, slots=True)
class Rows:
    """One session's rows of a draft step.

    Attributes:
        token_ids, positions, slots: [num_rows], as in PackedBatch.
        wanted: rows whose children are wanted, counted from the session's first row.
        references: what each wanted row stands for: a node's number, or the anchor of the last committed token.
        prefix_slots: of the computed tokens before the rows.
        ancestor_slots, ancestor_positions: [num_ancestors] of the rows' ancestors in the tree, parents first.
        lines: [num_rows] which of those ancestors, and after them of the rows themselves, each row has above it; None:
            the rows are a chain of committed tokens.
    """

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    wanted: list[int]
    references: list[int]
    prefix_slots: IntArray
    ancestor_slots: Sequence[int] = ()
    ancestor_positions: Sequence[int] = ()
    lines: list[list[int]] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def num_context(self) -> int:
        """Tokens that the rows attend to, the rows included."""
        return len(self.prefix_slots) + len(self.ancestor_slots) + len(self.slots)

    def segment(self) -> Segment:
        """What the rows attend to, as arrays for a forward."""
        tail = np.array([*self.ancestor_slots, *self.slots], dtype=np.int64)
        context_slots = np.concatenate((self.prefix_slots, tail))
        if self.lines is None:
            return Segment(self.num_rows, context_slots)
        mask = np.zeros((self.num_rows, len(tail)), dtype=np.bool_)
        for row, line in enumerate(self.lines):
            mask[row, line] = True
            mask[row, len(self.ancestor_slots) + row] = True
        tail_positions = np.array([*self.ancestor_positions, *self.positions], dtype=np.int64)
        return Segment(self.num_rows, context_slots, mask, tail_positions)


@dataclass(frozen=True, slots=True)
class TreeCommit:
    """What a commit did: nodes walked, nodes that died, and the candidates each committed token was among or not."""

    accepted: list[int]
    dead: list[int]
    evidence: list[tuple[Candidates, int]]


class DraftTree:
    """One trie, its growth and its slots.

    Args:
        committed: the text the tree grows from.
        pool: hands out KV slots (blocks of one token).
        max_live_nodes: the budget.
        decay, max_branch_width, is_final, floor: see TreeGrowth.
    """

    def __init__(
        self,
        committed: Sequence[int],
        pool: BlockPool,
        *,
        max_live_nodes: int,
        decay: float,
        max_branch_width: int,
        is_final: Callable[[int, int], bool],
        floor: float = -inf,
    ) -> None:
        self.trie = DraftTrie(committed, max_live_nodes=max_live_nodes)
        self.growth = TreeGrowth(
            self.trie, decay=decay, max_branch_width=max_branch_width, is_final=is_final, floor=floor
        )
        self._pool = pool
        self._is_final = is_final
        self.num_computed = 0
        self._prefix_slots = np.empty(len(committed) + 64, dtype=np.int64)  # the first num_computed are in use
        self._node_slots: dict[int, int] = {}

    @property
    def num_uncomputed(self) -> int:
        """Committed tokens without keys and values; the children of the last are not known while there are any."""
        return self.trie.num_committed - self.num_computed

    @property
    def num_slots(self) -> int:
        return self.num_computed + len(self._node_slots)

    def catch_up(self, max_rows: int) -> Rows:
        """Takes slots for the next uncomputed committed tokens and returns their rows; the last one's children count.

        Raises:
            OutOfBlocks: too few slots are free.
        """
        start = self.num_computed
        stop = min(self.trie.num_committed, start + max_rows)
        slots = self._pool.allocate(stop - start)
        self._extend_prefix(slots)
        reaches_end = stop == self.trie.num_committed
        return Rows(
            token_ids=self.trie.committed[start:stop],
            positions=list(range(start, stop)),
            slots=slots,
            wanted=[stop - start - 1] if reaches_end else [],
            references=[anchor_at(stop - 1)] if reaches_end else [],
            prefix_slots=self._prefix_slots[:start],
        )

    def expand(self, numbers: Sequence[int]) -> Rows:
        """Takes slots for unexpanded nodes and returns their rows: each attends to the prefix and its own ancestors.

        Ancestors that have no slots are among the nodes too, parents first.

        Raises:
            OutOfBlocks: too few slots are free.
        """
        slots = self._pool.allocate(len(numbers))
        nodes = self.growth.nodes
        line_to: dict[int, list[int]] = {}  # by ancestor, parents first: the ancestors down to it, itself included
        lines: list[list[int]] = []
        row_of: dict[int, int] = {}
        for row, number in enumerate(numbers):
            above = nodes[number][2]
            row_of[number] = row
            if (row_above := row_of.get(above)) is not None:
                lines.append([*lines[row_above], ~row_above])
                continue
            missing = []
            while above in nodes and above not in line_to:
                missing.append(above)
                above = nodes[above][2]
            line = line_to.get(above, [])
            for ancestor in reversed(missing):
                line = line_to[ancestor] = [*line, len(line_to)]
            lines.append(line)
        num_ancestors = len(line_to)
        lines = [[num_ancestors + ~column if column < 0 else column for column in line] for line in lines]
        ancestor_slots = [self._node_slots[number] for number in line_to]
        self._node_slots.update(zip(numbers, slots, strict=True))
        self.growth.begin(numbers)
        return Rows(
            token_ids=[nodes[number][3] for number in numbers],
            positions=[nodes[number][4] for number in numbers],
            slots=slots,
            wanted=list(range(len(numbers))),
            references=list(numbers),
            prefix_slots=self._prefix_slots[: self.num_computed],
            ancestor_slots=ancestor_slots,
            ancestor_positions=[nodes[number][4] for number in line_to],
            lines=lines,
        )

    def attach(self, results: Sequence[tuple[int, Candidates]]) -> list[int]:
        """Adds the children worth keeping of expanded nodes; returns the nodes dropped for them."""
        return self._free(self.growth.attach(results))

    def reconsider(self) -> list[int]:
        """Adds candidates that have become worth keeping; returns the nodes dropped for them."""
        return self._free(self.growth.reconsider())

    def graft(self, parent: int, token_ids: Sequence[int], log_probs: Sequence[float]) -> list[int]:
        """Adds a chain that nothing was computed for (see `TreeGrowth.graft`); returns the nodes dropped for it."""
        return self._free(self.growth.graft(parent, token_ids, log_probs))

    def commit(self, token_ids: Sequence[int]) -> TreeCommit:
        """Re-roots the tree: slots of accepted nodes join the prefix, those of the dead are freed."""
        commit, evidence = self.growth.commit(token_ids)
        computed = []
        for number in commit.accepted:
            slot = self._node_slots.pop(number, None)
            if slot is None:
                break
            computed.append(slot)
        self._extend_prefix(computed)
        self._free(commit.dead)
        return TreeCommit(commit.accepted, commit.dead, evidence)

    def fork(self, leaf: int, token: int, settings: GrowthSettings) -> "DraftTree":
        """A second tree that supposes the path to an expanded leaf and one more token to be committed.

        It shares the slots of all it attends to, and keeps them when this tree is released.
        """
        path = self.trie.path(leaf)
        tree = DraftTree(
            [*self.trie.committed, *(self.trie.token(number) for number in path), token],
            self._pool,
            max_live_nodes=settings.max_budget,
            decay=settings.decay,
            max_branch_width=settings.max_branch_width,
            is_final=self._is_final,
        )
        slots = self._prefix_slots[: self.num_computed].tolist() + [self._node_slots[number] for number in path]
        self._pool.acquire(slots)
        tree._extend_prefix(slots)
        return tree

    def retarget(self, settings: GrowthSettings, max_live_nodes: int) -> list[int]:
        """Goes on under other growth settings; returns the nodes dropped for them."""
        return self._free(self.growth.retarget(settings, max_live_nodes))

    def release(self) -> None:
        """Gives all slots back; the tree must not be used afterwards."""
        self._pool.release(self._prefix_slots[: self.num_computed].tolist())
        self._pool.release(list(self._node_slots.values()))
        self.num_computed = 0
        self._node_slots = {}

    def _extend_prefix(self, slots: Sequence[int]) -> None:
        stop = self.num_computed + len(slots)
        if stop > len(self._prefix_slots):
            grown: IntArray = np.empty(max(stop, 2 * len(self._prefix_slots)), dtype=np.int64)
            grown[: self.num_computed] = self._prefix_slots[: self.num_computed]
            self._prefix_slots = grown
        self._prefix_slots[self.num_computed : stop] = slots
        self.num_computed = stop

    def _free(self, numbers: list[int]) -> list[int]:
        self._pool.release([self._node_slots.pop(number) for number in numbers if number in self._node_slots])
        return numbers
