"""The session protocol on both sides under some hundred seeds of trouble, and proof that a broken rule is noticed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from protocol_simulation.command import run
from protocol_simulation.scenario import FAULTS
from protocol_simulation.simulation import Outcome, simulate

from edge_agent.committed_answer import CommittedAnswer
from edge_agent.drafter import DraftHandle
from edge_agent.verifier_stream import VerifierStream
from specedge.drafting.draft_session import SessionDrafting
from specedge.trie import DraftTrie
from specedge.wire import codec

NUM_SEEDS = 120


def test_no_rule_is_broken_and_everything_that_can_go_wrong_did() -> None:
    totals = run(range(NUM_SEEDS))
    assert not totals.broken, f'again: make simulate-protocol ARGS="--seed {min(totals.broken)}": {totals.broken}'
    happened = (*FAULTS, "preemption", "failed over", "accepted draft tokens", "accepted KV moved", "user left")
    recovered = [kind for kind in totals.counts if kind.startswith("stream broke")]
    assert [kind for kind in happened if not totals.counts[kind]] == []
    assert len(recovered) >= 6, recovered


def test_a_seed_does_the_same_again_whatever_ran_before() -> None:
    before = simulate(1)
    simulate(2)
    assert simulate(1) == before


@pytest.mark.parametrize("seed", [0, 1, 3, 19])
def test_an_answer_never_goes_on_with_another_model_and_waits_for_its_own(seed: int) -> None:
    """Seeds that once mixed two models in one answer (0, 1), or never looked whether theirs had come back (3, 19)."""
    outcome = simulate(seed, kinds={"model replaced": 1})
    assert outcome.broken == []
    assert outcome.counts["model replaced"] and outcome.counts["answered"]


def first_broken(kinds: Mapping[str, int], most: int = 60) -> Outcome:
    """The first seed that breaks a rule when nothing but these faults happens."""
    for seed in range(most):
        outcome = simulate(seed, kinds=kinds)
        if outcome.broken:
            return outcome
    raise AssertionError(f"{most} seeds have not noticed")


def test_an_edge_that_keeps_a_stale_verdict_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    append = CommittedAnswer.append

    def keep(self: CommittedAnswer, verdict: Any) -> Any:
        return append(self, verdict._replace(first_position=self.next_position))

    monkeypatch.setattr(CommittedAnswer, "append", keep)
    found = first_broken({"verdict repeated": 1})
    assert "committed" in found.broken[0] or "is no beginning of" in found.broken[0]


def test_an_edge_whose_trie_goes_on_as_before_on_a_new_stream_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(self: SessionDrafting, epoch: int) -> None:
        self.epoch = epoch

    monkeypatch.setattr(SessionDrafting, "restart", restart)
    first_broken({"connection cut": 1})


def test_an_edge_that_sends_old_nodes_on_a_new_stream_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver(self: DraftHandle, epoch: int, nodes: Any) -> None:
        self._on_nodes(self._epoch, nodes)

    monkeypatch.setattr(DraftHandle, "deliver", deliver)
    first_broken({"connection cut": 1, "verifier drained": 2}, most=150)


def test_a_trie_that_keeps_what_the_text_has_overtaken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = DraftTrie.commit

    def forget_the_last(self: DraftTrie, tokens: Any) -> Any:
        return commit(self, tokens[:-1] if len(tokens) > 1 else tokens)

    monkeypatch.setattr(DraftTrie, "commit", forget_the_last)
    first_broken({"connection cut": 1})


def test_an_edge_that_goes_on_with_another_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = codec.encode_open
    monkeypatch.setattr(codec, "encode_open", lambda message: encode(replace(message, target_model="")))
    found = first_broken({"model replaced": 1})
    assert "is not the target's" in found.broken[0]


def test_blocks_of_a_closed_session_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specedge_verifier.session_blocks.SessionBlocks.release", lambda self: None)
    found = first_broken({"connection cut": 1})
    assert "blocks" in found.broken[0]


def test_a_quota_that_is_not_given_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specedge_verifier.session_quota.SessionQuota.closed", lambda self, account: None)
    found = first_broken({"connection cut": 1})
    assert "quota" in found.broken[0] or "no progress" in found.broken[0]


def test_an_answer_that_is_never_taken_up_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-open connection, without keepalives and with an edge that waits for ever."""
    read = VerifierStream.read

    async def wait_for_ever(self: VerifierStream, timeout_s: float) -> Any:
        return await read(self, 1e6)

    monkeypatch.setattr(VerifierStream, "read", wait_for_ever)
    monkeypatch.setattr("protocol_simulation.network.Connection._client_notices", lambda self: None)
    found = first_broken({"half-open connection": 1})
    assert "no progress" in found.broken[0]
