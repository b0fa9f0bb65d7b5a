"""Drafting without a draft model, against a verifier that only keeps the trie."""

from collections.abc import Sequence
from random import Random

import pytest
from fake_target import next_token
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.lookup_source import LookupSource
from specedge.drafting.draft_session import DraftRequest
from specedge.sampling import SamplingParams
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes


class Verifier:
    """One session's other side: takes every message at once and commits what the target says.

    Args:
        source: opens the session.
        prompt: of the session.
        answer: the target's.
    """

    def __init__(
        self,
        source: LookupSource,
        prompt: Sequence[int],
        answer: Sequence[int],
        prediction: Sequence[int] = (),
        max_live_nodes: int = 64,
        **sampling: object,
    ) -> None:
        self.answer = list(answer)
        self.epoch = 0
        self.num_nodes = 0
        self.num_verdicts = 0
        self.trie = DraftTrie(prompt, max_live_nodes=1 << 20)
        self.num_prompt = len(prompt)
        params = SamplingParams(**{"max_tokens": len(answer), **sampling})  # type: ignore[arg-type]
        self.session = source.open(
            DraftRequest("s", prompt, params, (0,), max_live_nodes, prediction=prediction), self.receive
        )

    def receive(self, epoch: int, nodes: DraftNodes) -> None:
        assert epoch == self.epoch and nodes.token_ids and max(nodes.scores) <= 0
        self.num_nodes += len(nodes.token_ids)
        self.trie.extend(nodes.parents, nodes.token_ids, nodes.scores)

    @property
    def num_given(self) -> int:
        return self.trie.num_committed - self.num_prompt

    def verify(self) -> int:
        """Commits the accepted path and one token; returns how many were accepted."""
        node, verdict = ROOT, []
        for token in self.answer[self.num_given :]:
            verdict.append(token)
            if token not in self.trie.children(node):
                break
            node = self.trie.children(node)[token]
        self.num_verdicts += 1
        self.trie.commit(verdict)
        self.session.verdict(verdict)
        return len(verdict) - 1

    def reconnect(self) -> None:
        self.trie, self.epoch = DraftTrie(self.trie.committed, max_live_nodes=1 << 20), self.epoch + 1
        assert self.session.restart() == self.epoch


def run(verifier: Verifier) -> None:
    while verifier.num_given < len(verifier.answer):
        verifier.verify()


TEXT = [7, 3, 9, 4, 8, 2, 6, 5, 1, 11, 14, 12, 17, 13, 19, 15]


def test_a_repeated_text_takes_few_verifications() -> None:
    source = LookupSource(max_nodes=64)
    verifier = Verifier(source, TEXT * 2, TEXT * 4)
    run(verifier)
    assert verifier.num_verdicts <= 8
    assert source.stats.confirmed["lookup"] >= len(TEXT) * 4 - verifier.num_verdicts
    assert source.stats.drafted["lookup"] == verifier.num_nodes


def test_a_prediction_shortens_an_answer_that_the_prompt_knows_nothing_of() -> None:
    plain, predicted = LookupSource(64), LookupSource(64)
    answer = [Random(1).randrange(1, 1000) for _ in range(1)] + [100 + index for index in range(80)]
    without, with_it = Verifier(plain, [1, 2], answer), Verifier(predicted, [1, 2], answer, prediction=answer[1:])
    run(without)
    run(with_it)
    assert without.num_verdicts == len(answer)
    assert with_it.num_verdicts < 15
    assert predicted.stats.confirmed["prediction"] > 60


def test_a_text_without_repeats_costs_no_node() -> None:
    verifier = Verifier(LookupSource(64), [1, 2, 3], [100 + index for index in range(50)])
    run(verifier)
    assert verifier.num_nodes == 0


@pytest.mark.parametrize("max_live_nodes", [1, 5])
def test_a_requests_own_budget_holds(max_live_nodes: int) -> None:
    verifier = Verifier(LookupSource(64), TEXT * 3, TEXT * 3, TEXT, max_live_nodes=max_live_nodes)
    while verifier.num_given < len(verifier.answer):
        assert verifier.trie.num_live <= max_live_nodes
        assert verifier.verify() <= max_live_nodes


def test_nothing_is_drafted_where_it_cannot_shorten_the_answer() -> None:
    assert Verifier(LookupSource(64), TEXT * 3, TEXT[:1]).num_nodes == 0
    verifier = Verifier(LookupSource(64), TEXT * 3, TEXT[:5])
    assert max(verifier.trie.depth(number) for number in verifier.trie.live_numbers()) == 4
    ended = Verifier(LookupSource(64), [1, 2, 0, 5, 1, 2], [0], max_tokens=30)  # 0 ends an answer
    assert [ended.trie.token(number) for number in ended.trie.live_numbers()] == [0]
    stopped = Verifier(LookupSource(64), TEXT * 3, TEXT, stop_token_ids=(TEXT[1],))
    assert [stopped.trie.token(number) for number in stopped.trie.live_numbers()] == TEXT[:2]


def test_a_paused_session_sends_nothing_and_a_closed_one_never_again() -> None:
    verifier = Verifier(LookupSource(64), TEXT * 3, TEXT * 2)
    verifier.session.pause()
    num_nodes = verifier.num_nodes
    verifier.verify()
    assert verifier.num_nodes == num_nodes
    verifier.session.resume()
    assert verifier.num_nodes > num_nodes
    num_nodes = verifier.num_nodes
    verifier.session.close()
    verifier.verify()
    verifier.session.resume()
    assert verifier.num_nodes == num_nodes


@settings(max_examples=150)
@given(
    prompt=st.lists(st.integers(1, 4), min_size=1, max_size=40),
    length=st.integers(1, 60),
    seed=st.integers(0, 1 << 20),
    prediction=st.lists(st.integers(1, 4), max_size=40),
    budget=st.sampled_from([1, 3, 16, 64]),
)
def test_any_text_is_the_targets_and_both_sides_agree(
    prompt: list[int], length: int, seed: int, prediction: list[int], budget: int
) -> None:
    """With four tokens every text is rich in repeats; reconnections and pauses come at any time."""
    random = Random(seed)
    text = list(prompt)
    for _ in range(length):  # half of it copied from further back, half of it the target's own
        back = random.randrange(1, len(text) + 1)
        text.append(text[-back] if random.random() < 0.5 else 1 + next_token(text) % 4)
    verifier = Verifier(LookupSource(32), prompt, text[len(prompt) :], prediction, max_live_nodes=budget)
    while verifier.num_given < length:
        if random.random() < 0.1:
            verifier.session.pause()
            verifier.reconnect()
            verifier.session.resume()
        mine, theirs = verifier.session._trie, verifier.trie
        assert mine.committed == theirs.committed
        assert mine.live_numbers() == theirs.live_numbers()
        assert mine.num_live <= min(32, budget)
        assert mine.select(99) == theirs.select(99)
        verifier.verify()
    assert verifier.trie.committed == text
