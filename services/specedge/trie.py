"""The draft trie: hypotheses about the tokens after the committed text, kept alike by the edge and the verifier.

Let c[0..n) be the committed tokens and the frontier the position n - 1, after which every hypothesis begins.

Rule 1 (numbers)     Nodes are numbered 0, 1, 2, ... as they arrive, whatever becomes of them; both sides count alike.
Rule 2 (references)  A parent is a node's number, or the anchor ~p: "committed position p". A number that has not
                     arrived and a position that is not committed are protocol errors.
Rule 3 (resolution)  A child of position q - 1 with q < n is committed if its token is c[q], else dead. A child of the
                     frontier or of a live node is live. A child of a dead node is dead.
Rule 4 (aliases)     A node with the parent and the token of a live node is another name of it, now and later.
Rule 5 (commit)      A commit walks from the frontier along its tokens. The nodes walked become committed positions,
                     the nodes below the last of them stay live, all others die. Death is final.
Rule 6 (scores)      A node's score is the log-probability of its path from the frontier: at most 0, at most its
                     parent's. So the best nodes, first come first on ties, are always closed under ancestors.
Rule 7 (cap)         Trimming drops the lowest scores first, the highest number first on ties; dropped nodes are dead.

What follows from them: as long as nothing is dropped, the live nodes are exactly the hypotheses that agree with the
committed tokens and reach beyond them, in whatever order nodes and commits arrive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from specedge.errors import ProtocolError

ROOT = -1
"""Stands for the frontier where a node of the trie is asked for."""

DEAD = -(1 << 62)
"""Where the number of a dead node leads; below every anchor."""

_LOWEST_SCORE = -1e6


def anchor_at(position: int) -> int:
    """The parent reference that means "the committed token at this position"."""
    return ~position


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did to the live nodes: the ones it walked, in order, and the ones that died."""

    accepted: list[int]
    dead: list[int]


class TreeRows(NamedTuple):
    """Chosen nodes as the rows of one verification; row 0 is the frontier's, numbers[i] has row i + 1.

    Attributes:
        numbers: the nodes, parents first.
        parents: per row, the frontier's included, the row of its parent; row 0 has ROOT.
        token_ids: per node.
        positions: absolute, per node.
        scores: per node, as of when the rows were made.
    """

    numbers: list[int]
    parents: list[int]
    token_ids: list[int]
    positions: list[int]
    scores: list[float]


Node = tuple[float, int, int, int, int]
"""A live node, or the root: (loss, number, parent, token, position), so that nodes sort best first.

The loss is the negative score in a frame that commits do not move; `DraftTrie.root_loss` minus it is the score. Plain
tuples, because a step makes and forgets thousands of them.
"""


class DraftTrie:
    """One session's draft nodes, resolved against its committed tokens.

    Every arrival costs one list entry for good, so that late children find out what became of it; the rest of a node
    lives only as long as it does. Methods about one node take any number that leads to a live node (KeyError if not).

    Args:
        committed: the prompt and what was generated so far; at least one token.
        max_live_nodes: how many nodes `trim` leaves alive.
    """

    def __init__(self, committed: Sequence[int], *, max_live_nodes: int) -> None:
        assert committed, "a trie hangs below at least one committed token"
        assert max_live_nodes >= 0
        self.committed: list[int] = list(committed)
        self.max_live_nodes = max_live_nodes
        self._root = self._new_root()
        self._home: list[int] = []  # by number: the number it names (dead if not in _live), an anchor or DEAD
        self._live: dict[int, Node] = {}
        self._children: dict[int, dict[int, int]] = {}  # by number, or that of the root: child by token
        self._order: list[Node] = []  # the live nodes; sorted after _best_first()
        self._is_ordered = True
        self._best: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None

    @property
    def num_nodes(self) -> int:
        """Nodes that ever arrived; the next one gets this number."""
        return len(self._home)

    @property
    def num_live(self) -> int:
        """Live nodes; aliases do not count."""
        return len(self._live)

    @property
    def num_committed(self) -> int:
        """Committed tokens, the prompt included."""
        return len(self.committed)

    @property
    def frontier(self) -> int:
        """The anchor of the last committed token."""
        return -len(self.committed)

    @property
    def root_loss(self) -> float:
        """A node's score is this minus its loss."""
        return self._root[0]

    def add(self, parent: int, token: int, score: float) -> int:
        """Take in one node and return its number.

        Args:
            parent: an earlier node's number, or an anchor.
            token: the token it supposes after its parent.
            score: log-probability of its path as seen from this trie's own frontier. A receiver that was told only
                the step's own log-probability passes `score(parent)` plus that, which holds however late the node is.

        Raises:
            ProtocolError: the parent is unknown.
        """
        parent = self.canonical(parent)
        number = len(self._home)
        if parent >= 0:
            above = self._live[parent]
        elif parent == self.frontier:
            above = self._root
        else:  # the anchor ~p is -(p + 1), so the child's own position is -parent and its own anchor parent - 1
            is_committed = parent != DEAD and self.committed[-parent] == token
            self._home.append(parent - 1 if is_committed else DEAD)
            return number

        above_loss, above_number, _, _, above_position = above
        siblings = self._children.get(above_number)
        if siblings is None:
            siblings = self._children[above_number] = {}
        elif token in siblings:
            self._home.append(siblings[token])
            return number
        loss = self._root[0] - (score if score > _LOWEST_SCORE else _LOWEST_SCORE)
        if loss < above_loss:
            loss = above_loss
        siblings[token] = number
        node = self._live[number] = (loss, number, above_number, token, above_position + 1)
        self._home.append(number)
        self._order.append(node)
        self._is_ordered = False
        self._best = None
        return number

    def canonical(self, reference: int) -> int:
        """Where a parent reference leads: a live number, an anchor (anything committed) or DEAD.

        Raises:
            ProtocolError: no such node has arrived, or no such position is committed.
        """
        home = self._home
        if reference < 0:
            if reference < -len(self.committed):
                raise ProtocolError(f"anchor {~reference} is not committed: {len(self.committed)} tokens are")
            return reference
        if reference >= len(home):
            raise ProtocolError(f"parent {reference} is unknown: {len(home)} nodes have arrived")
        named = home[reference]
        if named < 0 or named in self._live:
            return named
        named = home[named]  # an alias of what was committed since
        return named if named < 0 else DEAD

    def is_live(self, number: int) -> bool:
        """Whether the number leads to a live node."""
        return self.canonical(number) >= 0

    def token(self, number: int) -> int:
        """The token the node supposes."""
        return self._node(number)[3]

    def parent(self, number: int) -> int:
        """The live parent's number, or ROOT below the frontier."""
        return self._parent(self._node(number))

    def position(self, number: int) -> int:
        """Absolute position of the node's token."""
        return self._node(number)[4]

    def depth(self, number: int) -> int:
        """Steps from the frontier: 1 for its children."""
        return self._node(number)[4] - self._root[4]

    def score(self, reference: int) -> float:
        """Log-probability of the path from the frontier: 0 for anything committed, -inf for the dead."""
        home = self.canonical(reference)
        if home >= 0:
            return self._root[0] - self._live[home][0]
        return 0.0 if home != DEAD else -float("inf")

    def children(self, number: int) -> Mapping[int, int]:
        """Live children by token, of a live node or of the ROOT; a view that follows the trie until a commit."""
        _, home, *_ = self._root if number == ROOT else self._node(number)
        return self._children.setdefault(home, {})

    def path(self, number: int) -> list[int]:
        """The numbers from depth 1 down to the node."""
        node = self._node(number)
        path = [node[1]]
        while (parent := self._parent(node)) != ROOT:
            path.append(parent)
            node = self._live[parent]
        path.reverse()
        return path

    def live_numbers(self) -> list[int]:
        """All live nodes in order of arrival."""
        return sorted(self._live)

    def select(self, limit: int) -> list[int]:
        """The best nodes, best first and parents before children (Rule 6)."""
        return [node[1] for node in self._best_first()[:limit]]

    def ranking(self, limit: int, max_depth: int) -> list[Node]:
        """Those of the `limit` best nodes that are at most `max_depth` deep, best first.

        What `select` and `best` tell in a form that costs least when many tries are asked: scores are left to be
        computed for all of them at once.
        """
        order = self._best_first()[:limit]
        if max_depth < len(order):
            deepest = self._root[4] + max_depth
            order = [node for node in order if node[4] <= deepest]
        return order

    def best(self, limit: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """`select` as read-only arrays of numbers and of scores; cached until the trie changes."""
        order = self._best_first()
        if self._best is None or self._best[0] != limit:
            chosen = order[:limit]
            numbers = np.array([node[1] for node in chosen], dtype=np.int64)
            scores = self._root[0] - np.array([node[0] for node in chosen], dtype=np.float64)
            numbers.flags.writeable = scores.flags.writeable = False
            self._best = limit, numbers, scores
        return self._best[1:]

    def tree(self, numbers: Sequence[int]) -> list[int]:
        """The chosen nodes as rows: entry r is the row of row r's parent.

        Row 0 is the frontier's (its own entry is ROOT) and numbers[i] has row i + 1.

        Args:
            numbers: live numbers, closed under ancestors, parents before children; as `select` gives them.
        """
        rows = {self._root[1]: 0}
        parents = [ROOT]
        for row, number in enumerate(numbers, start=1):
            parents.append(rows[self._live[number][2]])
            rows[number] = row
        return parents

    def rows(self, ranked: Sequence[Node]) -> TreeRows:
        """The best nodes as rows, reordered so that the most probable path leads, in order of depth.

        Its rows then follow the frontier's directly: when the target takes that path, no keys and values have to move.

        Args:
            ranked: the beginning of a `ranking` of this trie, unchanged since.
        """
        root_loss, root, *_ = self._root
        path: list[Node] = []
        others: list[Node] = []
        end = root
        for node in ranked:
            if node[2] == end:
                path.append(node)
                end = node[1]
            else:
                others.append(node)
        rows = TreeRows([], [ROOT], [], [], [])
        row_of = {root: 0}
        for row, (loss, number, parent, token, position) in enumerate(path + others, start=1):
            row_of[number] = row
            rows.numbers.append(number)
            rows.parents.append(row_of[parent])
            rows.token_ids.append(token)
            rows.positions.append(position)
            rows.scores.append(root_loss - loss)
        return rows

    def commit(self, tokens: Sequence[int]) -> Commit:
        """Append tokens to the committed ones and hang the surviving nodes below the last (Rule 5)."""
        accepted: list[int] = []
        if not tokens:
            return Commit(accepted, [])
        before, children = self._live, self._children
        for token in tokens:
            match = children.get(self._root[1], {}).get(token)
            self.committed.append(token)
            if match is None:
                self._root, children = self._new_root(), {}
            else:
                self._root = before.pop(match)
                self._home[match] = self.frontier
                accepted.append(match)
        self._live, self._children = {}, {}
        survivors = [self._root[1]]
        for number in survivors:  # grows while it is walked
            if below := children.get(number):
                self._children[number] = below
                for child in below.values():
                    self._live[child] = before.pop(child)
                    survivors.append(child)
        self._order = sorted(self._live.values())
        self._is_ordered = True
        self._best = None
        return Commit(accepted, list(before))

    def trim(self) -> list[int]:
        """Drop the worst nodes beyond the cap (Rule 7) and return them; to be called after each batch of adds."""
        dropped: list[int] = []
        if len(self._live) <= self.max_live_nodes:
            return dropped
        order = self._best_first()
        while len(order) > self.max_live_nodes:
            _, number, parent, token, _ = order.pop()  # the last in order has no children left
            del self._children[parent][token], self._live[number]
            self._children.pop(number, None)
            dropped.append(number)
        self._best = None
        return dropped

    def _new_root(self) -> Node:
        return 0.0, ROOT, ROOT, self.committed[-1], len(self.committed) - 1

    def _node(self, number: int) -> Node:
        return self._live[self.canonical(number)]

    def _parent(self, node: Node) -> int:
        return ROOT if node[2] == self._root[1] else node[2]

    def _best_first(self) -> list[Node]:
        if not self._is_ordered:
            self._order.sort()
            self._is_ordered = True
        return self._order
