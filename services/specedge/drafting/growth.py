"""Best-first growth of one draft trie: which nodes to expand, which children to keep.

A child's score is its parent's plus ln(decay) plus its own log-probability; the root's is 0. Of the tree and the new
children together the best `max_live_nodes` stay (the budget-th best is the bar). Growth is over when no unexpanded node
could have a child that stays. The scheme is SpecExec's (Svirschevski et al. 2024), with published parameter names.

Nodes may also come from elsewhere, with nothing computed (`graft`); then the unexpanded nodes chosen for a forward
include all unexpanded ones above them.

What an expanded node's other candidates were is remembered: a verdict raises the scores of what survives, and children
that were not worth keeping before may be worth it then, without computing anything again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
import numpy.typing as npt

from specedge.trie import ROOT, Commit, DraftTrie

FloatArray = npt.NDArray[np.float64]

Node = tuple[float, int, int, int, int]
"""A live node: (loss, number, parent's number, token, position), so that nodes sort best first.

The loss is the negative score in a frame that commits do not move; `TreeGrowth.root_loss` minus it is the score. The
parent of the frontier's children is no live node. Plain tuples, because a draft step looks at hundreds of them.
"""


@dataclass(frozen=True, slots=True)
class GrowthSettings:
    """How a tree grows.

    Attributes:
        max_n_beams: nodes of one session expanded in one forward.
        max_beam_len: draft steps of one growth phase, so its greatest depth.
        max_branch_width: children per node.
        max_budget: nodes per tree.
        decay: what a further token is worth beside its probability.
    """

    max_n_beams: int = 32
    max_beam_len: int = 8
    max_branch_width: int = 4
    max_budget: int = 32
    decay: float = 0.9


@dataclass(frozen=True, slots=True)
class Candidates:
    """An expanded node's best children, best first.

    Attributes:
        token_ids: [width] the children's tokens.
        log_probs: [width] their log-probabilities given the node.
        scores: [width] the scores they were ranked by, before any tau.
        log_partitions: [num_taus] logsumexp of all tokens' scores / tau, for each tau of the grid.
        is_greedy: whether the session samples at temperature 0.
    """

    token_ids: list[int]
    log_probs: list[float]
    scores: FloatArray
    log_partitions: FloatArray
    is_greedy: bool


def score_bar(tree_scores: Iterable[float], child_scores: Iterable[float], budget: int) -> float:
    """The budget-th best score of tree and children together; -inf if there are fewer."""
    scores = sorted([*tree_scores, *child_scores], reverse=True)
    return scores[budget - 1] if 0 < budget <= len(scores) else -inf


_LEAST_GAIN = 0.5
"""Nats by which a node's score must rise before it is told: a verifier's calibration is no finer."""


class TreeGrowth:
    """Grows one trie; the trie's own cap is the budget.

    Args:
        trie: what to grow; changed through this object only.
        decay, max_branch_width: see GrowthSettings.
        is_final: tells whether nothing can follow a token at a position.
        floor: children with a lower path log-probability are not kept, nor nodes expanded that could only have such.
    """

    def __init__(
        self,
        trie: DraftTrie,
        *,
        decay: float,
        max_branch_width: int,
        is_final: Callable[[int, int], bool],
        floor: float = -inf,
    ) -> None:
        self.trie = trie
        self.fresh: list[int] = []  # nodes added since the owner last emptied this list; some may be dead by now
        self.num_late = 0  # results for what had been committed or had died
        self.log_decay = log(decay)
        self.max_branch_width = max_branch_width
        self._floor = floor
        self._is_final = is_final
        self._unexpanded: set[int] = set()
        self._candidates: dict[int, Candidates] = {}  # by expanded live node, or ROOT
        self.root_loss = 0.0
        self._nodes: dict[int, Node] = {}
        self._is_sorted = True
        self._is_exhausted = False  # nothing was worth a forward, and the trie is what it was then

    @property
    def nodes(self) -> dict[int, Node]:
        """The live nodes by number, best first; not to be kept while the trie changes."""
        if not self._is_sorted:
            self._nodes = {node[1]: node for node in sorted(self._nodes.values())}
            self._is_sorted = True
        return self._nodes

    def is_expanded(self, place: int) -> bool:
        """Whether the candidates below a live node, or the ROOT, are known."""
        return place in self._candidates

    def choose(self, limit: int) -> list[tuple[float, int]]:
        """The best unexpanded nodes that are worth a forward, as (score, number), best first."""
        unexpanded = self._unexpanded
        if self._is_exhausted or not unexpanded:
            return []
        nodes = self.nodes
        is_full = len(nodes) >= self.trie.max_live_nodes
        root_loss, log_decay = self.root_loss, self.log_decay
        bar = max(self._floor, self._worst_score()) if is_full else self._floor
        limit = min(limit, len(unexpanded))
        chosen: list[tuple[float, int]] = []
        for number, node in nodes.items():
            score = root_loss - node[0]
            best_child = score + log_decay
            if best_child < bar or (is_full and best_child == bar):
                break
            if number in unexpanded:
                chosen.append((score, number))
                if len(chosen) == limit:
                    break
        self._is_exhausted = not chosen
        return chosen

    def begin(self, numbers: Iterable[int]) -> None:
        """Marks nodes as being expanded: they are not chosen again."""
        self._unexpanded.difference_update(numbers)

    def attach(self, results: Sequence[tuple[int, Candidates]]) -> list[int]:
        """Takes expanded nodes' candidates and adds the children worth keeping; returns the nodes dropped for them.

        Args:
            results: (reference, candidates); what the reference named may have been committed or died since. A
                reference is a node's number or the anchor of a committed token.
        """
        places = [self._remember(reference, candidates) for reference, candidates in results]
        return self._offer([place for place in places if place is not None])

    def remember(self, results: Sequence[tuple[int, Candidates]]) -> None:
        """Takes expanded nodes' candidates without adding any child."""
        for reference, candidates in results:
            self._remember(reference, candidates)

    def reconsider(self) -> list[int]:
        """Adds candidates that have become worth keeping; returns the nodes dropped for them."""
        return self._offer(list(self._candidates))

    def retarget(self, settings: GrowthSettings, max_live_nodes: int) -> list[int]:
        """Goes on under other settings; returns the nodes dropped for them."""
        self.trie.max_live_nodes = max_live_nodes
        self.log_decay = log(settings.decay)
        self.max_branch_width = settings.max_branch_width
        self._is_exhausted = False
        return self.trim()

    def graft(self, parent: int, token_ids: Sequence[int], log_probs: Sequence[float]) -> list[int]:
        """Adds a chain that nothing was computed for, and so without decay; returns the nodes dropped for it.

        Where the tree has such a node already, the better score counts. A node that gains much by it is fresh again, so
        that it is sent once more.

        Args:
            parent: a live node's number, or ROOT.
            token_ids, log_probs: the chain, each token's log-probability given the one before it.
        """
        trie, nodes = self.trie, self.nodes
        loss, position = self.root_loss, trie.num_committed
        if parent != ROOT:
            loss, position = nodes[parent][0], nodes[parent][4] + 1
        is_full = 0 < trie.max_live_nodes <= len(nodes)
        least = max(self._floor, self._worst_score()) if is_full else self._floor
        for token, log_prob in zip(token_ids, log_probs, strict=True):
            loss -= log_prob
            known = trie.children(parent).get(token)
            if known is not None:
                if (gain := nodes[known][0] - loss) >= _LEAST_GAIN:
                    self._raise(known, gain)
                parent, loss = known, nodes[known][0]
            else:
                score = self.root_loss - loss
                if score < least:
                    break
                parent = self._add(parent, token, position, score)
            position += 1
        self._is_sorted = self._is_exhausted = False
        return self.trim()

    def _add(self, parent: int, token: int, position: int, score: float) -> int:
        trie = self.trie
        number = trie.add(trie.frontier if parent == ROOT else parent, token, score)
        self._nodes[number] = self.root_loss - score, number, parent, token, position
        self.fresh.append(number)
        if not self._is_final(token, position):
            self._unexpanded.add(number)
        return number

    def _raise(self, number: int, gain: float) -> None:
        """A node's score rises, and those of all below it."""
        self.trie.raise_score(number, gain)
        raised = [number]
        for place in raised:  # grows while it is walked
            loss, _, parent, token, position = self._nodes[place]
            above = self._nodes.get(parent)
            least = self.root_loss if above is None else above[0]  # rounding puts no child before its parent
            self._nodes[place] = max(loss - gain, least), place, parent, token, position
            raised += self.trie.children(place).values()
        self.fresh.append(number)
        self._is_sorted = self._is_exhausted = False

    def trim(self) -> list[int]:
        """Drops the worst nodes beyond the budget and returns them."""
        dropped = self.trie.trim()
        self._forget(dropped)
        return dropped

    def best_continuation(self) -> tuple[int, int] | None:
        """The most probable (leaf, next token) that is not in the tree, among expanded leaves."""
        best, best_score = None, -inf
        for place, candidates in self._candidates.items():
            if place == ROOT or not candidates.token_ids or self.trie.children(place):
                continue
            score = self.trie.score(place) + candidates.log_probs[0]
            if score > best_score:
                best, best_score = (place, candidates.token_ids[0]), score
        return best

    def unexpanded_leaves(self, limit: int) -> list[tuple[float, int]]:
        """The best unexpanded nodes, worth expanding in this tree or not, as (score, number), best first."""
        unexpanded = [node for number, node in self.nodes.items() if number in self._unexpanded]
        return [(self.root_loss - node[0], node[1]) for node in unexpanded[:limit]]

    def commit(self, token_ids: Sequence[int]) -> tuple[Commit, list[tuple[Candidates, int]]]:
        """Commits tokens; also returns, for each of them that followed an expanded node, that node's candidates."""
        evidence: list[tuple[Candidates, int]] = []
        place: int | None = ROOT
        for token in token_ids:
            if place is None:
                break
            candidates = self._candidates.get(place)
            if candidates is not None:
                evidence.append((candidates, token))
            place = self.trie.children(place).get(token)
        commit = self.trie.commit(token_ids)
        self._is_exhausted = False
        followed = len(commit.accepted) == len(token_ids)
        if token_ids:
            self._candidates.pop(ROOT, None)
            self.root_loss = self._nodes[commit.accepted[-1]][0] if followed else 0.0
        at_root = self._candidates.get(commit.accepted[-1]) if commit.accepted and followed else None
        self._forget(commit.accepted)
        self._forget(commit.dead)
        if at_root is not None:
            self._candidates[ROOT] = at_root
        return commit, evidence

    def _remember(self, reference: int, candidates: Candidates) -> int | None:
        home = self.trie.canonical(reference)
        if home == self.trie.frontier:
            home = ROOT
        elif home < 0:
            self.num_late += 1
            return None
        self._unexpanded.discard(home)
        self._candidates[home] = candidates
        return home

    def _offer(self, places: Sequence[int]) -> list[int]:
        trie, nodes = self.trie, self.nodes
        root_loss, width = self.root_loss, self.max_branch_width
        is_full = 0 < trie.max_live_nodes <= len(nodes)
        least = max(self._floor, self._worst_score()) if is_full else self._floor  # what is worse is below any bar
        offers: list[tuple[float, int, int, int]] = []
        raises: list[tuple[int, float]] = []
        for place in places:
            if place == ROOT:
                base, parent, position = self.log_decay, ROOT, trie.num_committed
            else:
                node = nodes[place]
                base, parent, position = root_loss - node[0] + self.log_decay, place, node[4] + 1
            if base < least:
                continue
            candidates = self._candidates[place]
            children = trie.children(place)
            for token, log_prob in zip(candidates.token_ids[:width], candidates.log_probs, strict=False):
                score = base + log_prob
                if score < least:
                    break
                if token not in children:
                    offers.append((score, parent, token, position))
                elif (gain := nodes[children[token]][0] - root_loss + score) >= _LEAST_GAIN:
                    raises.append((children[token], gain))
        if offers:
            self._accept(offers)
        for number, gain in raises:
            self._raise(number, gain)
        return self.trim() if offers else []

    def _accept(self, offers: Sequence[tuple[float, int, int, int]]) -> None:
        """Adds the children, as (score, parent, token, position), that are not below the bar."""
        trie, nodes, root_loss = self.trie, self.nodes, self.root_loss
        bar = -inf
        if len(nodes) + len(offers) > trie.max_live_nodes:
            held = [root_loss - node[0] for node in nodes.values()]
            bar = score_bar(held, [offer[0] for offer in offers], trie.max_live_nodes)
        kept = sorted((offer for offer in offers if offer[0] >= bar), key=lambda offer: -offer[0])
        first, frontier = trie.num_nodes, trie.frontier
        scores, parents, tokens, _ = zip(*kept, strict=True)
        trie.add_all([frontier if parent == ROOT else parent for parent in parents], tokens, scores)
        self.fresh += range(first, trie.num_nodes)
        for number, (score, parent, token, position) in enumerate(kept, first):
            nodes[number] = root_loss - score, number, parent, token, position
            if not self._is_final(token, position):
                self._unexpanded.add(number)
        self._is_sorted = self._is_exhausted = False

    def _worst_score(self) -> float:
        return self.root_loss - self.nodes[next(reversed(self.nodes))][0]

    def _forget(self, numbers: Sequence[int]) -> None:
        self._unexpanded.difference_update(numbers)
        for number in numbers:
            del self._nodes[number]
            self._candidates.pop(number, None)
