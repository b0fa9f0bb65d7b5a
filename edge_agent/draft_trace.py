"""What the rounds of one answer looked like, for who wants to watch: the draft trie at each verdict, and its times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes, Verdict

MAX_SHOWN_NODES: Final = 32


@dataclass(frozen=True, slots=True)
class TrieTrace:
    """The best draft nodes that were live when a verdict came, best first and parents before children.

    The verifier tells how many nodes it verified, not which: some of these may have come too late for its step.

    Attributes:
        num_live: all live nodes; at most `MAX_SHOWN_NODES` of them, and the accepted ones, are here.
        parents: index of each node's parent among these, -1 below the last committed token.
        token_ids: what each node supposed.
        accepted: indexes of the accepted nodes, from the first token on.
        bonus: index of the node that supposed the token after these, None where there was none.
        looked_up: indexes of the nodes that no draft model computed.
    """

    num_live: int
    parents: tuple[int, ...]
    token_ids: tuple[int, ...]
    accepted: tuple[int, ...]
    bonus: int | None
    looked_up: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundTrace:
    """One verdict as its edge saw it.

    Attributes:
        trie: None where this edge had drafted nothing.
        gap_s: time since the verdict before it, or since the answer was asked for.
        draft_s: after how much of that time the first new draft nodes were sent; None where none were.
        network_s: the last round trip measured between edge and verifier; None before the first.
    """

    trie: TrieTrace | None
    gap_s: float
    draft_s: float | None
    network_s: float | None


class DraftTracer:
    """Keeps the trie that one answer's verifier keeps.

    Args:
        prompt_ids: of the answer.
        max_live_nodes: the verifier's limit.
        clock: seconds, ever rising.
    """

    def __init__(self, prompt_ids: Sequence[int], max_live_nodes: int, clock: Callable[[], float]) -> None:
        self._trie = DraftTrie(prompt_ids, max_live_nodes=max_live_nodes)
        self._clock = clock
        self._began_s = clock()
        self._first_sent_s: float | None = None
        self._looked_up: set[int] = set()  # of the trie's numbers

    def sent(self, nodes: DraftNodes) -> None:
        """Nodes left for the verifier."""
        if self._first_sent_s is None:
            self._first_sent_s = self._clock()
        first = self._trie.num_nodes
        self._looked_up.update(first + index for index, is_found in enumerate(nodes.looked_up) if is_found)
        self._trie.extend(nodes.parents, nodes.token_ids, nodes.scores)
        self._trie.trim()

    def restart(self) -> None:
        """A new stream begins: nodes are counted from 0 again."""
        self._trie = DraftTrie(self._trie.committed, max_live_nodes=self._trie.max_live_nodes)
        self._looked_up.clear()

    def verdict(self, verdict: Verdict, network_s: float | None) -> RoundTrace:
        """The round that ends with this verdict."""
        now_s = self._clock()
        draft_s = None if self._first_sent_s is None else self._first_sent_s - self._began_s
        trace = RoundTrace(self._commit(verdict), now_s - self._began_s, draft_s, network_s)
        self._began_s, self._first_sent_s = now_s, None
        return trace

    def _commit(self, verdict: Verdict) -> TrieTrace | None:
        trie = self._trie
        num_live = trie.num_live
        tokens = {number: trie.token(number) for number in trie.live_numbers()}
        parents = {number: trie.parent(number) for number in tokens}
        shown = trie.select(MAX_SHOWN_NODES)
        walked = trie.commit(verdict.token_ids).accepted
        if not num_live:
            return None
        shown += [number for number in walked if number not in shown]
        index_of = {ROOT: -1} | {number: index for index, number in enumerate(shown)}
        path = [index_of[number] for number in walked]
        return TrieTrace(
            num_live=num_live,
            parents=tuple(index_of[parents[number]] for number in shown),
            token_ids=tuple(tokens[number] for number in shown),
            accepted=tuple(path[: verdict.num_accepted]),
            bonus=next(iter(path[verdict.num_accepted :]), None),
            looked_up=tuple(index for index, number in enumerate(shown) if number in self._looked_up),
        )
