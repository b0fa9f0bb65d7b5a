"""The draft trie: hypotheses about the tokens after the committed text, kept alike by the edge and the verifier.

Let c[0..n) be the committed tokens and the frontier the position n - 1, after which every hypothesis begins.

Rule 1 (numbers)     Nodes are numbered 0, 1, 2, ... as they arrive, whatever becomes of them; both sides count alike.
Rule 2 (references)  A parent is a node's number, or the anchor ~p: "committed position p". A number that has not
                     arrived and a position that is not committed are protocol errors.
Rule 3 (resolution)  A child of position q - 1 with q < n is committed if its token is c[q], else dead. A child of the
                     frontier or of a live node is live. A child of a dead node is dead.
Rule 4 (aliases)     A node with the parent and the token of a live node is another name of it, now and later. Of their
                     scores the better one counts, and what hangs below the node gains as much.
Rule 5 (commit)      A commit walks from the frontier along its tokens. The nodes walked become committed positions,
                     the nodes below the last of them stay live, all others die. Death is final.
Rule 6 (scores)      A node's score is the log-probability of its path from the frontier: at most 0, at most its
                     parent's. So the best nodes, first come first on ties, are always closed under ancestors.
Rule 7 (cap)         Trimming drops the lowest scores first, the highest number first on ties; dropped nodes are dead.

What follows from them: as long as nothing is dropped, the live nodes are exactly the hypotheses that agree with the
committed tokens and reach beyond them, in whatever order nodes and commits arrive.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specedge.errors import ProtocolError
from specedge.node_store import FloatArray, IntArray, NodeStore

ROOT = -1
"""Stands for the frontier where a node of the trie is asked for."""

DEAD = -(1 << 62)
"""Where the number of a dead node leads; below every anchor."""

_LOWEST_SCORE = -1e6


def anchor_at(position: int) -> int:
    """The parent reference that means "the committed token at this position"."""
    return ~position


class Commit(NamedTuple):
    """What a commit did to the live nodes.

    Attributes:
        accepted: the ones it walked, in order.
        places: where the ones that died were, by number.
    """

    accepted: list[int]
    places: Mapping[int, int]

    @property
    def dead(self) -> list[int]:
        """The ones that died."""
        return list(self.places)


class DraftTrie:
    """One session's draft nodes, resolved against its committed tokens.

    Every arrival costs one list entry for good, so that late children find out what became of it; the rest of a node
    lives, at a place in the store, only as long as it does. The frontier has a place too, as the parent of its
    children. Methods about one node take any number that leads to a live node (KeyError if not).

    Args:
        committed: the prompt and what was generated so far; at least one token.
        max_live_nodes: how many nodes `trim` leaves alive.
        store: where the live nodes are kept; one of its own unless several tries are to be looked at together.

    Attributes:
        root_place: the frontier's place in the store; a node's score is the loss there minus the node's.
        live_places: the live nodes' places in the store, in order of arrival.
    """

    def __init__(self, committed: Sequence[int], *, max_live_nodes: int, store: NodeStore | None = None) -> None:
        assert committed, "a trie hangs below at least one committed token"
        assert max_live_nodes >= 0
        self.committed: list[int] = list(committed)
        self.max_live_nodes = max_live_nodes
        self._store = NodeStore() if store is None else store
        self._home: list[int] = []  # by number: the number it names (dead if not in _live), an anchor or DEAD
        self._live: dict[int, int] = {}  # place by number
        self.live_places = array("q")
        self._children: dict[int, dict[int, int]] = {}  # by the parent's place: child's number by token
        self._best: tuple[int, IntArray, FloatArray] | None = None
        self.root_place = self._store.reserve(1).pop()
        self._store.loss[self.root_place] = 0.0
        self._place_root()

    @property
    def num_nodes(self) -> int:
        """Nodes that ever arrived; the next one gets this number."""
        return len(self._home)

    @property
    def num_live(self) -> int:
        """Live nodes; aliases do not count."""
        return len(self._live)

    @property
    def reach(self) -> int:
        """Depth of the deepest live node; 0 where none is."""
        if not self.live_places:
            return 0
        return int(self._store.positions.take(self.live_places).max()) - len(self.committed) + 1

    @property
    def num_committed(self) -> int:
        """Committed tokens, the prompt included."""
        return len(self.committed)

    @property
    def frontier(self) -> int:
        """The anchor of the last committed token."""
        return -len(self.committed)

    def add(self, parent: int, token: int, score: float) -> int:
        """Take in one node and return its number.

        Args:
            parent: an earlier node's number, or an anchor.
            token: the token it supposes after its parent.
            score: log-probability of its path as seen from this trie's own frontier.

        Raises:
            ProtocolError: the parent is unknown.
        """
        self._take_in((parent,), (token,), (score,), is_step=False)
        return len(self._home) - 1

    def add_all(self, parents: Sequence[int], tokens: Sequence[int], scores: Sequence[float]) -> None:
        """`add` for several nodes, numbered from `num_nodes` on."""
        self._take_in(parents, tokens, scores, is_step=False)

    def extend(self, parents: Sequence[int], tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Take in nodes that tell the log-probability of their own step, which holds however late they are.

        Args:
            parents, tokens: as for `add`.
            log_probs: of each token after its parent.

        Raises:
            ProtocolError: a parent is unknown; the nodes before it have been taken in.
        """
        self._take_in(parents, tokens, log_probs, is_step=True)

    def _take_in(
        self, parents: Sequence[int], tokens: Sequence[int], scores: Sequence[float], *, is_step: bool
    ) -> None:
        home_of, live, children, root = self._home, self._live, self._children, self.root_place
        store = self._store
        free = store.reserve(len(tokens))
        number_at, parent_at, token_at = store.number, store.parent, store.token
        position_at, loss_at = store.position, store.loss
        root_loss = loss_at[root]
        highest_loss = root_loss - _LOWEST_SCORE
        first, places = len(home_of), self.live_places
        self._best = None
        for number, (parent, token, score) in enumerate(zip(parents, tokens, scores, strict=True), start=first):
            above = live.get(home_of[parent]) if 0 <= parent < number else None
            if above is None:
                parent = self.canonical(parent)
                if parent >= 0:
                    above = live[parent]
                elif parent == -len(self.committed):
                    above = root
                else:  # the anchor ~p is -(p + 1), so the child's own position is -parent and its own anchor parent - 1
                    is_committed = parent != DEAD and self.committed[-parent] == token
                    home_of.append(parent - 1 if is_committed else DEAD)
                    continue
            siblings = children.get(above)
            if siblings is None:
                children[above] = {token: number}
            elif token in siblings:
                known = siblings[token]
                home_of.append(known)
                gain = loss_at[live[known]] - max(loss_at[above], (loss_at[above] if is_step else root_loss) - score)
                if gain > 0:
                    self._raise(live[known], gain)
                continue
            else:
                siblings[token] = number
            above_loss = loss_at[above]
            loss = (above_loss if is_step else root_loss) - score
            if not loss < highest_loss:
                loss = highest_loss
            place = free.pop()
            number_at[place] = number
            parent_at[place] = above
            token_at[place] = token
            position_at[place] = position_at[above] + 1
            loss_at[place] = loss if loss > above_loss else above_loss
            live[number] = place
            places.append(place)
            home_of.append(number)

    def raise_score(self, number: int, gain: float) -> None:
        """Add `gain` to the score of a live node and of all below it; its parent's must leave room for it."""
        self._best = None
        self._raise(self._place(number), gain)

    def _raise(self, place: int, gain: float) -> None:
        loss, parent_at, live, children = self._store.loss, self._store.parent, self._live, self._children
        places = [place]
        for place in places:  # grows while it is walked
            raised, above_loss = loss[place] - gain, loss[parent_at[place]]
            loss[place] = raised if raised > above_loss else above_loss  # rounding puts no child before its parent
            if below := children.get(place):
                places += [live[number] for number in below.values()]

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
        return self._store.token[self._place(number)]

    def parent(self, number: int) -> int:
        """The live parent's number, or ROOT below the frontier."""
        store = self._store
        return store.number[store.parent[self._place(number)]]

    def position(self, number: int) -> int:
        """Absolute position of the node's token."""
        return self._store.position[self._place(number)]

    def depth(self, number: int) -> int:
        """Steps from the frontier: 1 for its children."""
        return self._store.position[self._place(number)] - len(self.committed) + 1

    def score(self, reference: int) -> float:
        """Log-probability of the path from the frontier: 0 for anything committed, -inf for the dead."""
        home = self.canonical(reference)
        if home >= 0:
            loss = self._store.loss
            return loss[self.root_place] - loss[self._live[home]]
        return 0.0 if home != DEAD else -float("inf")

    def children(self, number: int) -> Mapping[int, int]:
        """Live children by token, of a live node or of the ROOT; a view that follows the trie until a commit."""
        return self._children.setdefault(self.root_place if number == ROOT else self._place(number), {})

    def path(self, number: int) -> list[int]:
        """The numbers from depth 1 down to the node."""
        store, place, path = self._store, self._place(number), []
        while place != self.root_place:
            path.append(store.number[place])
            place = store.parent[place]
        path.reverse()
        return path

    def live_numbers(self) -> list[int]:
        """All live nodes in order of arrival."""
        return sorted(self._live)

    def select(self, limit: int) -> list[int]:
        """The best nodes, best first and parents before children (Rule 6)."""
        numbers: list[int] = self.best(limit)[0].tolist()
        return numbers

    def best(self, limit: int) -> tuple[IntArray, FloatArray]:
        """`select` as read-only arrays of numbers and of scores; cached until the trie changes."""
        if self._best is None or self._best[0] != limit:
            store = self._store
            places = store.rank([self.live_places], limit)[0]
            numbers, scores = store.numbers[places], store.loss[self.root_place] - store.losses[places]
            numbers.flags.writeable = scores.flags.writeable = False
            self._best = limit, numbers, scores
        return self._best[1:]

    def commit(self, tokens: Sequence[int]) -> Commit:
        """Append tokens to the committed ones and hang the surviving nodes below the last (Rule 5)."""
        accepted: list[int] = []
        if not tokens:
            return Commit(accepted, {})
        children, before = self._children, self._live
        freed: list[int] = []
        root, anchor = self.root_place, self.frontier
        for token in tokens:
            anchor -= 1
            below = children.get(root)
            if not below or (match := below.get(token)) is None:  # the tokens leave the trie
                children = {}
                self._store.loss[root] = 0.0
                break
            freed.append(root)
            root = before.pop(match)
            self._home[match] = anchor
            accepted.append(match)
        self.committed += tokens
        self.root_place = root
        self._place_root()
        self._children = {}
        self._live = survivors = {}
        if root in children:
            places = [root]
            for place in places:  # grows while it is walked
                if below := children.get(place):
                    self._children[place] = below
                    for number in below.values():
                        survivors[number] = place = before.pop(number)
                        places.append(place)
            self._list_places()
        else:
            self.live_places = array("q")
        freed += before.values()
        self._store.release(freed)
        self._best = None
        return Commit(accepted, before)

    def trim(self) -> list[int]:
        """Drop the worst nodes beyond the cap (Rule 7) and return them; to be called after each batch of adds."""
        if len(self._live) <= self.max_live_nodes:
            return []
        dropped = self.select(len(self._live))[self.max_live_nodes :]
        dropped.reverse()
        store = self._store
        for number in dropped:  # the worst first: it has no children left
            place = self._live.pop(number)
            del self._children[store.parent[place]][store.token[place]]
            self._children.pop(place, None)
            store.release((place,))
        self._list_places()
        self._best = None
        return dropped

    def release(self) -> None:
        """Give back all places in the store; the trie must not be used afterwards."""
        self._store.release((*self._live.values(), self.root_place))
        self._live = {}

    def _list_places(self) -> None:
        live = self._live
        self.live_places = array("q", [live[number] for number in sorted(live)]) if live else array("q")

    def _place_root(self) -> None:
        store, root = self._store, self.root_place
        store.number[root] = ROOT
        store.token[root] = self.committed[-1]
        store.position[root] = len(self.committed) - 1

    def _place(self, number: int) -> int:
        return self._live[self.canonical(number)]
