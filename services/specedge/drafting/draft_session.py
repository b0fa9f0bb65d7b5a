"""What the drafter keeps for one session: its tree, the numbers its nodes have in the stream, and when to draft.

This is streamed drafting: the tree grows without pause, past the part that is being verified, and every step's new
nodes are sent as soon as they have survived the budget. `specedge.drafting.rounds` has the published modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log
from typing import TYPE_CHECKING, Literal

from specedge.block_pool import BlockPool
from specedge.drafting.draft_stats import DrafterStats
from specedge.drafting.draft_tree import DraftTree
from specedge.drafting.followed_grammar import FollowedGrammar
from specedge.drafting.growth import Candidates, GrowthSettings
from specedge.drafting.lookup import Chain, SessionLookup
from specedge.drafting.lookup_acceptance import LookupAcceptance, Source
from specedge.drafting.payoff import Payoff, PayoffSettings
from specedge.penalties import TokenCounts
from specedge.sampling import SamplingParams
from specedge.trie import ROOT
from specedge.wire.messages import DraftNodes

_MAX_TIPS = 2  # drafted nodes of a step whose last tokens are looked up
_LEAST_TIP_SCORE = log(0.2)
if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState


@dataclass(frozen=True, slots=True)
class DraftingSettings:
    """How sessions draft.

    Attributes:
        mode: "streamed", or one of the published modes (see rounds).
        growth: growth of the tree that is sent.
        proactive: growth while a sent tree is in flight ("included" and "excluded").
        max_positions: positions the draft model knows.
        min_path_probability: streamed nodes less probable than this are not sent.
        payoff: when a session stops drafting because hardly anything is accepted.
        overall_payoff: when all of them do; by the verdicts of those that have not.
        looks_up: add what followed the same tokens before (see lookup); in streamed mode only.
    """

    mode: Literal["streamed", "included", "excluded", "off"] = "streamed"
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    proactive: GrowthSettings = field(default_factory=lambda: GrowthSettings(decay=0.95))
    max_positions: int = 1 << 31
    min_path_probability: float = 0.003
    payoff: PayoffSettings = field(default_factory=PayoffSettings)
    overall_payoff: PayoffSettings = field(default_factory=lambda: PayoffSettings(window=512, rest=1024, trial=128))
    looks_up: bool = False


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One session as it was opened.

    Attributes:
        session_id: for the log.
        committed: prompt and tokens committed so far.
        sampling: the session's parameters.
        eos_ids: the target's end-of-sequence tokens.
        max_live_nodes: the verifier's limit.
        prompt_len: how many of the committed tokens are the prompt; None: all of them.
        prediction: what the user expects the answer to be, if anything.
    """

    session_id: str
    committed: Sequence[int]
    sampling: SamplingParams
    eos_ids: tuple[int, ...]
    max_live_nodes: int
    prompt_len: int | None = None
    prediction: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a session would do in the next step.

    Attributes:
        tree: the tree to compute.
        num_uncomputed: committed tokens to compute first; if there are any, no node is expanded.
        nodes: (score, number) of the nodes to expand, best first.
    """

    tree: DraftTree
    num_uncomputed: int
    nodes: list[tuple[float, int]]


class SessionDrafting:
    """One session's drafting; lives on the drafter's thread.

    Args:
        request: the session.
        settings: the drafter's.
        pool: KV slots.
        stats: the drafter's counters.
        overall: whether drafting pays for anyone.
        acceptance: what looked-up tokens have been worth; None looks nothing up.
    """

    def __init__(
        self,
        request: DraftRequest,
        settings: DraftingSettings,
        pool: BlockPool,
        stats: DrafterStats,
        overall: Payoff,
        acceptance: LookupAcceptance | None = None,
    ) -> None:
        self.request = request
        self.settings = settings
        committed = request.committed
        self.prompt_len = len(committed) if request.prompt_len is None else request.prompt_len
        self.counts: TokenCounts | None = None
        if request.sampling.has_penalties:
            self.counts = TokenCounts(committed[: self.prompt_len])
            self.counts.append(committed[self.prompt_len :])
        self.max_tree_nodes = min(settings.growth.max_budget, request.max_live_nodes)
        self._followed = FollowedGrammar()
        self.epoch = 0
        self.is_paused = False
        self.is_starved = False
        self.is_given_up = False
        self._pool = pool
        self._stats = stats
        self._payoff = Payoff(settings.payoff)
        self._overall = overall
        sampling = request.sampling
        self._final_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else request.eos_ids)}
        self._last_position = min(self.prompt_len + sampling.max_tokens - 1, settings.max_positions)
        self._stream_numbers: dict[int, int] = {}  # of the live nodes that have been sent in this epoch
        self._num_sent = 0
        self.tree = self._new_tree(committed)
        self._sources: dict[int, Source] = {}  # of the live nodes that were looked up
        self.lookup: SessionLookup | None = None
        if acceptance is not None:
            capacity = self.prompt_len + sampling.max_tokens
            self.lookup = SessionLookup(
                committed, self.prompt_len, capacity, request.prediction, acceptance, self._is_final, self._followed
            )
            self._look_up()

    @property
    def committed(self) -> list[int]:
        return self.tree.trie.committed

    @property
    def grammar(self) -> "GrammarState | None":
        """What the drafts follow, where it is known."""
        return self._followed.state

    @property
    def num_slots(self) -> int:
        """KV slots in use."""
        return self.tree.num_slots

    @property
    def num_looked_up(self) -> int:
        """Live nodes that were looked up."""
        return len(self._sources)

    @property
    def num_slots_wanted(self) -> int:
        """KV slots with which a session that has none can draft for a while."""
        return len(self.committed) + 4 * self.max_tree_nodes

    @property
    def is_drafting(self) -> bool:
        """Whether the session wants rows at all."""
        is_held_back = self.is_paused or self.is_starved or self.is_given_up
        pays = self._payoff.is_drafting and self._overall.is_drafting
        return not is_held_back and pays and not self.is_over(self.tree)

    def is_over(self, tree: DraftTree) -> bool:
        """Whether nothing can follow the tree's committed tokens."""
        text = tree.trie.committed
        is_answer = len(text) > self.prompt_len  # a prompt may well end with a stop token
        return len(text) > self.settings.max_positions or (is_answer and self._is_final(text[-1], len(text) - 1))

    def bind(self, grammar: "GrammarState", num_followed: int) -> None:
        """Draft from now on only what the grammar allows.

        Args:
            grammar: this session's own, after the prompt and the first `num_followed` tokens of the answer.
            num_followed: how many tokens of the answer it has accepted.
        """
        self._followed.bind(grammar, self.committed[self.prompt_len + num_followed :])

    def demand(self) -> Demand | None:
        """What to compute next; None when nothing is worth a forward."""
        return self._growth_of(self.tree, self.settings.growth) if self.is_drafting else None

    def settle(self, tree: DraftTree, results: Sequence[tuple[int, Candidates]]) -> None:
        """Takes the children of a step's rows; they are dropped if their tree is gone."""
        if tree is self.tree:
            first = tree.trie.num_nodes
            self._attach(tree, results)
            if self.lookup is not None:
                self._look_up_after(self.lookup, first)
        else:
            self._stats.num_late_results += len(results)

    def verdict(self, token_ids: Sequence[int]) -> list[tuple[Candidates, int]]:
        """Commits tokens, re-roots the tree, and returns what they tell about the ranking."""
        num_accepted = max(0, len(token_ids) - 1)  # the last one is the target's own
        self._stats.verdict(num_accepted)
        if self.counts is not None:
            self.counts.append(token_ids)
        self._followed.follow(token_ids)
        commit = self.tree.commit(token_ids)
        self._stats.lead(self.tree.trie.reach)
        self._stats.num_confirmed += len(commit.accepted)
        self._lose(commit.dead, "rejected")
        num_paid = 0
        for depth, number in enumerate(commit.accepted):
            was_sent = self._stream_numbers.pop(number, None) is not None
            if (source := self._sources.pop(number, None)) is not None:
                self._stats.lookup.confirmed[source] += 1
            else:
                num_paid += was_sent and depth < num_accepted
        self._pay(num_paid)
        if self.lookup is not None:
            self.lookup.commit(token_ids)
            self._look_up()
        self._after_commit(token_ids)
        return commit.evidence

    def restart(self, epoch: int) -> None:
        """A new stream counts nodes from 0: what is live will be sent again."""
        self.epoch = epoch
        self._num_sent = 0
        self._stream_numbers.clear()
        self.tree.growth.fresh = self.tree.trie.live_numbers()

    def take_nodes(self) -> DraftNodes | None:
        """The message to send now, if any; its nodes count as sent."""
        growth = self.tree.growth
        if not growth.fresh:
            return None
        nodes, root_loss = growth.nodes, growth.root_loss
        fresh = [nodes[number] for number in dict.fromkeys(growth.fresh) if number in nodes]
        growth.fresh = []
        if not fresh:
            return None
        parents, scores = [], []
        for loss, number, above, _, _ in fresh:
            # The wire carries each step's own log-probability, which no commit outdates.
            if above in nodes:
                parents.append(self._stream_numbers[above])
                scores.append((root_loss - loss) - (root_loss - nodes[above][0]))
            else:
                parents.append(self.tree.trie.frontier)
                scores.append(root_loss - loss)
            self._stream_numbers[number] = self._num_sent
            self._num_sent += 1
        looked_up = [node[1] in self._sources for node in fresh] if self._sources else ()
        return DraftNodes(token_ids=[node[3] for node in fresh], parents=parents, scores=scores, looked_up=looked_up)

    def paths(self, tree: DraftTree, references: Sequence[int]) -> list[list[int]]:
        """The tokens between the committed ones and each reference's child, as the sampler's penalties need them."""
        supposed = tree.trie.committed[len(self.committed) :]
        trie = tree.trie
        return [
            [*supposed, *(trie.token(number) for number in trie.path(reference))] if reference >= 0 else supposed
            for reference in references
        ]

    def release(self) -> None:
        """Gives up the tree and all slots; drafting can begin again from the committed tokens."""
        self._stats.wasted["released"] += self.tree.trie.num_live
        self.tree.release()
        self._stream_numbers.clear()
        self._sources.clear()
        self.tree = self._new_tree(self.committed)

    def _growth_of(self, tree: DraftTree, growth: GrowthSettings) -> Demand | None:
        if tree is not self.tree and self.is_over(tree):  # of its own tree `is_drafting` has told
            return None
        if tree.num_uncomputed:
            return Demand(tree, tree.num_uncomputed, [])
        nodes = tree.growth.choose(growth.max_n_beams)
        return Demand(tree, 0, nodes) if nodes else None

    def _look_up(self) -> None:
        """Hangs what may follow the committed text below its last token."""
        if self.lookup is not None and not self.is_paused and not self.is_over(self.tree):
            for chain in self.lookup.chains():
                self._graft(ROOT, chain)

    def _look_up_after(self, lookup: SessionLookup, first: int) -> None:
        """Hangs what may follow the best of the newest nodes, from number `first` on, below them."""
        trie = self.tree.trie
        newest = range(first, trie.num_nodes)
        scores = sorted(((trie.score(number), -number) for number in newest if trie.is_live(number)), reverse=True)
        for score, number in scores[:_MAX_TIPS]:
            if score < _LEAST_TIP_SCORE or not trie.is_live(-number) or trie.children(-number):
                continue
            token, position = trie.token(-number), trie.position(-number)
            if self._is_final(token, position):
                continue
            chain = lookup.chain_after([trie.token(node) for node in trie.path(-number)])
            if chain is not None:
                self._graft(-number, chain)

    def _graft(self, parent: int, chain: Chain) -> None:
        first = self.tree.trie.num_nodes
        dropped = self.tree.graft(parent, chain.token_ids, chain.log_probs)
        num_nodes = self.tree.trie.num_nodes - first
        self._sources.update(dict.fromkeys(range(first, first + num_nodes), chain.source))
        self._stats.num_drafted += num_nodes
        self._stats.lookup.drafted[chain.source] += num_nodes
        self._lose(dropped, "trimmed")

    def _pay(self, num_accepted: int) -> None:
        """Counts what a verdict accepted of the draft model's own tokens: for the session, and for all of them."""
        if not self._payoff.is_drafting or self._overall.is_drafting:
            self._stats.num_rests += self._payoff.verdict(num_accepted)
        if self._payoff.is_drafting:
            self._stats.num_rests += self._overall.verdict(num_accepted)

    def _after_commit(self, token_ids: Sequence[int]) -> None:
        self._reconsider()

    def _attach(self, tree: DraftTree, results: Sequence[tuple[int, Candidates]]) -> None:
        num_nodes, num_late = tree.trie.num_nodes, tree.growth.num_late
        dropped = tree.attach(results)
        self._stats.num_drafted += tree.trie.num_nodes - num_nodes
        self._stats.num_late_results += tree.growth.num_late - num_late
        if tree is self.tree:
            self._lose(dropped, "trimmed")
        else:  # a guess numbers its nodes itself, and none of them has been sent
            self._stats.wasted["trimmed"] += len(dropped)

    def _reconsider(self) -> None:
        num_nodes = self.tree.trie.num_nodes
        dropped = self.tree.reconsider()
        self._stats.num_drafted += self.tree.trie.num_nodes - num_nodes
        self._lose(dropped, "trimmed")

    def _lose(self, numbers: Sequence[int], reason: str) -> None:
        self._stats.wasted[reason] += len(numbers)
        for number in numbers:
            self._stream_numbers.pop(number, None)
            self._sources.pop(number, None)

    def _new_tree(self, committed: Sequence[int]) -> DraftTree:
        floor = log(self.settings.min_path_probability) if self.settings.mode == "streamed" else -inf
        return DraftTree(
            committed,
            self._pool,
            max_live_nodes=self.max_tree_nodes,
            decay=self.settings.growth.decay,
            max_branch_width=self.settings.growth.max_branch_width,
            is_final=self._is_final,
            floor=floor,
        )

    def _is_final(self, token: int, position: int) -> bool:
        return position >= self._last_position or token in self._final_ids
