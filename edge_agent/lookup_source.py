"""Drafts without a draft model: what followed the same tokens before, looked up on the event loop thread.

A verdict costs some microseconds, and so does each node; nothing is computed, so there is nothing to wait for.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edge_agent.draft_grammars import DraftGrammars, MakeGrammars
from edge_agent.draft_source import OnNodes
from specedge.background import call_on_loop
from specedge.drafting.draft_session import DraftRequest
from specedge.drafting.draft_stats import LookupStats
from specedge.drafting.followed_grammar import FollowedGrammar
from specedge.drafting.lookup import Chain, SessionLookup
from specedge.drafting.lookup_acceptance import LookupAcceptance, Source
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

_LEAST_GAIN = 0.5
"""Nats by which a node's own log-probability must have risen to be told again: a verifier's calibration is no finer."""


class _Columns(NamedTuple):
    """Nodes of a message to be."""

    token_ids: list[int]
    parents: list[int]
    scores: list[float]


class LookupSource:
    """Looks up for all sessions of this process; implements `edge_agent.draft_source.DraftSource`.

    Args:
        max_nodes: most live draft nodes of a session.
        make_grammars: from the target's end-of-sequence tokens; None: drafts do not follow grammars.
    """

    drafter_id = "lookup"

    def __init__(self, max_nodes: int, make_grammars: MakeGrammars | None = None) -> None:
        self._grammars = DraftGrammars(make_grammars)
        self.stats = LookupStats()
        self.acceptance = LookupAcceptance()
        self._max_nodes = max_nodes

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> "LookupSession":
        """Sends what follows the committed tokens at once."""
        sampling = request.sampling
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else request.eos_ids)}
        trie = DraftTrie(request.committed, max_live_nodes=min(self._max_nodes, request.max_live_nodes))
        prompt_len = len(request.committed) if request.prompt_len is None else request.prompt_len
        session = LookupSession(self, trie, prompt_len, request.prediction, sampling.max_tokens, ends, on_nodes)
        if sampling.grammar is not None:  # before it is compiled drafts are plain guesses
            loop = asyncio.get_running_loop()
            self._grammars.begin(request, lambda state: call_on_loop(loop, session.bind, state))
        return session

    def stop(self) -> None:
        """Ends what is being compiled."""
        self._grammars.close()


class LookupSession:
    """One answer's drafts; implements `edge_agent.draft_source.DraftSession`.

    The trie numbers nodes as the stream does, since every node that it takes in is sent.

    Args:
        source: the process's.
        trie: the prompt and what is committed of the answer, and no node.
        prompt_len: tokens of the prompt.
        prediction: what the user expects the answer to be, if anything.
        max_tokens: the answer's.
        final_ids: tokens that end it.
        on_nodes: takes the nodes.
    """

    def __init__(
        self,
        source: LookupSource,
        trie: DraftTrie,
        prompt_len: int,
        prediction: Sequence[int],
        max_tokens: int,
        final_ids: set[int],
        on_nodes: OnNodes,
    ) -> None:
        self._stats = source.stats
        self._trie = trie
        self._final_ids = final_ids
        self._deepest_position = prompt_len + max_tokens - 2  # after it comes only the last token
        self._on_nodes = on_nodes
        self._sources: dict[int, Source] = {}  # by live node
        self._epoch = 0
        self._is_paused = self._is_closed = False
        self._prompt_len = prompt_len
        self._grammar = FollowedGrammar()
        capacity = prompt_len + max_tokens
        self._lookup = SessionLookup(
            trie.committed, prompt_len, capacity, prediction, source.acceptance, self._is_final, self._grammar
        )
        self._send()

    def bind(self, state: "GrammarState") -> None:
        """Drafts from now on only what the grammar allows.

        Args:
            state: this session's own, at the beginning of the answer.
        """
        self._grammar.bind(state, self._trie.committed[self._prompt_len :])
        self._send()

    def verdict(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens were committed next, and sends what may follow them."""
        if self._is_closed:
            return
        commit = self._trie.commit(token_ids)
        for number in commit.accepted:
            self._stats.confirmed[self._sources.pop(number)] += 1
        for number in commit.dead:
            del self._sources[number]
        self._grammar.follow(token_ids)
        self._lookup.commit(token_ids)
        self._send()

    def restart(self) -> int:
        """Begins a new epoch: what may follow is sent again, numbered from 0."""
        self._epoch += 1
        self._trie = DraftTrie(self._trie.committed, max_live_nodes=self._trie.max_live_nodes)
        self._sources.clear()
        self._send()
        return self._epoch

    def pause(self) -> None:
        """Sends nothing until `resume`."""
        self._is_paused = True

    def resume(self) -> None:
        """Goes on sending."""
        self._is_paused = False
        self._send()

    def close(self) -> None:
        """Ends the session; further calls do nothing."""
        self._is_closed = True

    def _send(self) -> None:
        if self._is_paused or self._is_closed or self._trie.num_committed > self._deepest_position:
            return
        columns = _Columns([], [], [])
        for chain in sorted(self._lookup.chains(), key=lambda chain: -chain.log_probs[0]):
            self._hang(chain, columns)
        if columns.token_ids:
            looked_up = [True] * len(columns.token_ids)
            self._on_nodes(self._epoch, DraftNodes(*columns, looked_up=looked_up))

    def _hang(self, chain: Chain, nodes: _Columns) -> None:
        """Adds what is new of a chain, or has become likelier, to the trie and to the nodes to send."""
        trie, parent = self._trie, ROOT
        for token, log_prob in zip(chain.token_ids, chain.log_probs, strict=True):
            reference = trie.frontier if parent == ROOT else parent
            known = trie.children(parent).get(token)
            if known is None:
                if trie.num_live >= trie.max_live_nodes:
                    return
                known = trie.num_nodes
                self._sources[known] = chain.source
                self._stats.drafted[chain.source] += 1
            elif log_prob - (trie.score(known) - trie.score(reference)) < _LEAST_GAIN:
                parent = known
                continue
            trie.extend((reference,), (token,), (log_prob,))
            nodes.token_ids.append(token)
            nodes.parents.append(reference)
            nodes.scores.append(log_prob)
            parent = known

    def _is_final(self, token: int, position: int) -> bool:
        return position >= self._deepest_position or token in self._final_ids
