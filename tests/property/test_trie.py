"""The draft trie against a naive set of hypotheses, alone and as a pair of tries joined by slow queues.

Three tokens and steps of 1/8 make repeats, matches and ties the normal case and every score exact.
"""

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specedge.errors import ProtocolError
from specedge.trie import DEAD, ROOT, DraftTrie, anchor_at

PROMPT = [0, 1]
Continuation = tuple[int, ...]

picks = st.integers(0, 1 << 16)
tokens = st.integers(0, 2)
steps = st.integers(-16, 0).map(lambda eighths: eighths / 8)


class Hypotheses:
    """Every node as (start position, tokens of the whole path), judged anew at every question."""

    def __init__(self) -> None:
        self.committed = list(PROMPT)
        self.paths: list[tuple[int, Continuation]] = []
        self.steps: list[float] = []
        self.dropped: set[int] = set()

    def add(self, parent: int, token: int, step: float) -> None:
        start, path = self.paths[parent] if parent >= 0 else (~parent + 1, ())
        if parent in self.dropped:
            self.dropped.add(len(self.paths))
        self.paths.append((start, (*path, token)))
        self.steps.append(step)

    def continuation(self, number: int) -> Continuation | None:
        """What a hypothesis says beyond the committed tokens: () if nothing, None if it is wrong or was dropped."""
        start, path = self.paths[number]
        known = self.committed[start : start + len(path)]
        if number in self.dropped or list(path[: len(known)]) != known:
            return None
        return path[len(known) :]

    def home(self, number: int) -> int:
        continuation = self.continuation(number)
        if continuation is None:
            return DEAD
        start, path = self.paths[number]
        return self.live()[continuation] if continuation else anchor_at(start + len(path) - 1)

    def live(self) -> dict[Continuation, int]:
        """Each live continuation and the first number that proposed it."""
        live: dict[Continuation, int] = {}
        for number in range(len(self.paths)):
            if continuation := self.continuation(number):
                live.setdefault(continuation, number)
        return live

    def scores(self) -> dict[int, float]:
        best_step: dict[Continuation, float] = {}  # of all names of a node
        for number, step in enumerate(self.steps):
            if continuation := self.continuation(number):
                best_step[continuation] = max(step, best_step.get(continuation, step))
        return {
            number: sum(best_step[continuation[:depth]] for depth in range(1, len(continuation) + 1))
            for continuation, number in self.live().items()
        }

    def best_first(self) -> list[int]:
        scores = self.scores()
        return sorted(scores, key=lambda number: (-scores[number], number))

    def drop(self, cap: int) -> list[int]:
        doomed = self.best_first()[cap:]
        self.dropped |= {number for number in range(len(self.paths)) if self.home(number) in doomed}
        return doomed


def parent_reference(trie: DraftTrie, pick: int) -> int:
    """Any reference the trie must accept: the frontier, any committed position, or any number whatever its fate."""
    kind, index = pick % 5, pick // 5
    if kind == 0 or trie.num_nodes == 0:
        return trie.frontier
    if kind == 1:
        return anchor_at(index % trie.num_committed)
    return index % min(trie.num_nodes, 6) if kind == 2 else trie.num_nodes - 1 - index % min(trie.num_nodes, 6)


def add_step(trie: DraftTrie, parent: int, token: int, step: float) -> int:
    return trie.add(parent, token, trie.score(parent) + step)


def continuations(trie: DraftTrie) -> dict[Continuation, int]:
    return {tuple(trie.token(step) for step in trie.path(number)): number for number in trie.live_numbers()}


def assert_same(trie: DraftTrie, model: Hypotheses) -> None:
    live = model.live()
    assert trie.committed == model.committed
    assert trie.num_nodes == len(model.paths)
    assert trie.num_live == len(live)
    assert continuations(trie) == live
    assert trie.live_numbers() == sorted(live.values())
    for number in range(trie.num_nodes):
        assert trie.canonical(number) == model.home(number)
    for continuation, number in live.items():
        assert trie.depth(number) == len(continuation)
        assert trie.position(number) == len(model.committed) + len(continuation) - 1


def assert_selections(trie: DraftTrie, model: Hypotheses, limit: int) -> None:
    scores = model.scores()
    expected = model.best_first()[:limit]
    numbers, values = trie.best(limit)
    assert trie.select(limit) == numbers.tolist() == expected
    assert values.tolist() == [scores[number] for number in expected] == [trie.score(number) for number in expected]
    for row, number in enumerate(expected):
        assert trie.parent(number) in (ROOT, *expected[:row]), "parents come first"


class TrieMachine(RuleBasedStateMachine):
    """One trie under every interleaving of arrivals, commits and trims."""

    def __init__(self) -> None:
        super().__init__()
        self.trie = DraftTrie(PROMPT, max_live_nodes=1000)
        self.model = Hypotheses()

    @rule(pick=picks, token=tokens, step=steps)
    def add(self, pick: int, token: int, step: float) -> None:
        parent = parent_reference(self.trie, pick)
        assert add_step(self.trie, parent, token, step) == len(self.model.paths)
        self.model.add(parent, token, step)

    @rule(excess=st.integers(0, 3), token=tokens)
    def add_below_nothing(self, excess: int, token: int) -> None:
        for parent in (self.trie.num_nodes + excess, anchor_at(self.trie.num_committed + excess)):
            with pytest.raises(ProtocolError):
                self.trie.add(parent, token, -1.0)

    @rule(committed=st.lists(tokens, max_size=3))
    def commit_anything(self, committed: list[int]) -> None:
        self._commit(committed)

    @precondition(lambda self: self.trie.num_live > 0)
    @rule(pick=picks, bonus=tokens)
    def commit_a_path(self, pick: int, bonus: int) -> None:
        numbers = self.trie.live_numbers()
        path = self.trie.path(numbers[pick % len(numbers)])
        self._commit([*(self.trie.token(number) for number in path), bonus])

    def _commit(self, committed: Sequence[int]) -> None:
        before = self.model.live()
        commit = self.trie.commit(committed)
        self.model.committed += committed
        after = set(self.model.live().values())
        walked = [before.get(tuple(committed[:length])) for length in range(1, len(committed) + 1)]
        assert commit.accepted == [number for number in walked if number is not None]
        assert sorted(commit.dead) == sorted(set(before.values()) - after - set(commit.accepted))

    @rule(cap=st.integers(0, 8))
    def trim(self, cap: int) -> None:
        assert_selections(self.trie, self.model, cap + 1)
        self.trie.max_live_nodes = cap
        assert self.trie.trim() == self.model.drop(cap)[::-1]
        assert_selections(self.trie, self.model, cap + 1)

    @rule(limit=st.integers(0, 12))
    def select(self, limit: int) -> None:
        assert_selections(self.trie, self.model, limit)

    @invariant()
    def live_set_equals_the_naive_one(self) -> None:
        assert_same(self.trie, self.model)

    def teardown(self) -> None:
        assert_selections(self.trie, self.model, 1000)


class PairMachine(RuleBasedStateMachine):
    """An edge's trie and a verifier's: nodes travel up one queue, verdicts down another, both as late as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = DraftTrie(PROMPT, max_live_nodes=1000)
        self.verifier = DraftTrie(PROMPT, max_live_nodes=1000)
        self.arrived = Hypotheses()
        self.up: deque[tuple[int, int, float]] = deque()
        self.down: deque[list[int]] = deque()

    @rule(nodes=st.lists(st.tuples(picks, tokens, steps), min_size=1, max_size=4))
    def draft(self, nodes: list[tuple[int, int, float]]) -> None:
        for pick, token, step in nodes:
            parent = parent_reference(self.edge, pick)
            add_step(self.edge, parent, token, step)
            self.up.append((parent, token, step))

    @rule(depth=st.integers(0, 3), bonus=tokens)
    def verify(self, depth: int, bonus: int) -> None:
        path = [self.verifier.token(number) for number in self.verifier.path(n)] if (n := self._best()) >= 0 else []
        verdict = [*path[:depth], bonus]
        self.verifier.commit(verdict)
        self.arrived.committed += verdict
        self.down.append(verdict)

    def _best(self) -> int:
        selected = self.verifier.select(4)
        return selected[-1] if selected else ROOT

    @rule(count=st.integers(1, 4))
    def deliver_nodes(self, count: int) -> None:
        for _ in range(min(count, len(self.up))):
            node = self.up.popleft()
            add_step(self.verifier, *node)
            self.arrived.add(*node)

    @rule(count=st.integers(1, 2))
    def deliver_verdicts(self, count: int) -> None:
        for _ in range(min(count, len(self.down))):
            self.edge.commit(self.down.popleft())

    @rule()
    def settle(self) -> None:
        self.deliver_nodes(len(self.up))
        self.deliver_verdicts(len(self.down))
        assert_same(self.edge, self.arrived)
        assert_selections(self.edge, self.arrived, 1000)
        assert_selections(self.verifier, self.arrived, 1000)
        assert self.edge.select(1000) == self.verifier.select(1000)

    @invariant()
    def verifier_holds_what_arrived(self) -> None:
        assert_same(self.verifier, self.arrived)

    def teardown(self) -> None:
        self.settle()


TestTrieMachine = TrieMachine.TestCase
TestTrieMachine.settings = settings(max_examples=100, stateful_step_count=40)

TestPairMachine = PairMachine.TestCase
TestPairMachine.settings = settings(max_examples=100, stateful_step_count=40)
