"""Ranking of children against plain numpy, and the fit of tau."""

import numpy as np
import pytest
import torch

from specedge.drafting.growth import Candidates
from specedge.drafting.ranking import ChildRanking
from specedge.drafting.tau import TAUS, TauEstimate, log_likelihoods
from specedge.noise import gumbel_noise
from specedge.penalties import TokenCounts
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams

VOCAB_SIZE = 50


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def group(params: SamplingParams, positions: list[int]) -> RowGroup:
    return RowGroup(params, np.array(positions, dtype=np.int64), eos_ids=(2,), prompt_len=3)


def random_logits(num_rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(num_rows).normal(0, 4, (num_rows, VOCAB_SIZE)).astype(np.float32))


def test_children_are_ranked_by_noisy_logits_of_their_own_position() -> None:
    logits = random_logits(3)
    sampled, greedy = SamplingParams(temperature=0.7, seed=11), SamplingParams(temperature=0.0)
    ranking = ChildRanking(VOCAB_SIZE, "cpu", width=4)
    ranked = ranking.rank(logits, [group(sampled, [5, 9]), group(greedy, [5])])
    rows = logits.numpy().astype(np.float64)
    expected = [
        rows[0] / 0.7 + gumbel_noise(11, 5, VOCAB_SIZE),
        rows[1] / 0.7 + gumbel_noise(11, 9, VOCAB_SIZE),
        rows[2],
    ]
    for candidates, scores in zip(ranked, expected, strict=True):
        order = np.argsort(-scores)[:4]
        assert candidates.token_ids == order.tolist()
        np.testing.assert_allclose(candidates.log_probs, log_softmax(scores)[order], atol=1e-4)
        np.testing.assert_allclose(
            candidates.scores[:, None] / np.array(TAUS) - candidates.log_partitions,
            np.stack([log_softmax(scores / tau)[order] for tau in TAUS], axis=-1),
            atol=1e-4,
        )
    assert [candidates.is_greedy for candidates in ranked] == [False, False, True]


def test_the_first_child_is_what_the_target_would_draw_from_these_logits() -> None:
    logits = random_logits(64)
    rows = group(SamplingParams(temperature=1.0, top_p=0.9, min_p=0.02, seed=3), list(range(64)))
    first = [candidates.token_ids[0] for candidates in ChildRanking(VOCAB_SIZE, "cpu", width=2).rank(logits, [rows])]
    assert first == Sampler(VOCAB_SIZE, "cpu").choose(logits, [rows]).tolist()
    assert first != logits.argmax(dim=-1).tolist()


def test_uncoupled_ranking_is_the_drafts_own_probability() -> None:
    logits = random_logits(2)
    ranking = ChildRanking(VOCAB_SIZE, "cpu", width=4, coupled=False)
    params = SamplingParams(temperature=0.7, seed=5)
    ranked = ranking.rank(logits, [group(params, [5]), group(SamplingParams(temperature=0.0), [6])])
    for candidates, row, temperature in zip(ranked, logits.numpy().astype(np.float64), (0.7, 1.0), strict=True):
        order = np.argsort(-row)[:4]
        assert candidates.token_ids == order.tolist()
        np.testing.assert_allclose(candidates.log_probs, log_softmax(row / temperature)[order], atol=1e-4)


def test_filtered_and_foreign_tokens_are_no_candidates() -> None:
    logits = random_logits(1)
    only_one = ChildRanking(VOCAB_SIZE, "cpu", width=4).rank(logits, [group(SamplingParams(top_k=1), [4])])[0]
    assert only_one.token_ids == [int(logits.argmax())]
    assert only_one.log_probs == pytest.approx([0.0])
    padded = torch.cat((logits, torch.full((1, 6), 99.0)), dim=1)
    ranked = ChildRanking(VOCAB_SIZE, "cpu", width=4).rank(padded, [group(SamplingParams(temperature=0), [4])])[0]
    assert max(ranked.token_ids) < VOCAB_SIZE


def test_logits_that_are_not_numbers_give_no_candidates_and_teach_nothing() -> None:
    ranking = ChildRanking(VOCAB_SIZE, "cpu", width=4)
    ranked = ranking.rank(torch.full((1, VOCAB_SIZE), torch.nan), [group(SamplingParams(temperature=0), [4])])
    assert ranked[0].token_ids == []
    sure = Candidates([4], [0.0], np.zeros(1), np.log(1 + np.exp(-2 / np.array(TAUS))), is_greedy=True)
    ranking.observe([(ranked[0], 4)] + [(sure, 4)] * 30)
    assert ranking.greedy_tau.value == min(TAUS)


def test_penalties_follow_each_rows_own_path() -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 7], logits[:, 8] = 3.0, 2.0
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    rows = RowGroup(params, np.array([4, 4]), (2,), prompt_len=3, counts=TokenCounts([1, 2, 3]), paths=[[7], [8]])
    ranked = ChildRanking(VOCAB_SIZE, "cpu", width=1).rank(logits, [rows])
    assert [candidates.token_ids for candidates in ranked] == [[8], [7]]


def test_masked_tokens_are_never_proposed() -> None:
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 7], logits[:, 8], logits[:, 9] = 3.0, 2.0, 1.0
    params = SamplingParams(temperature=0.0, bad_words=((7,), (4, 5, 8)), allowed_token_ids=(5, 7, 8, 9))
    rows = RowGroup(params, np.array([5, 6, 6]), (2,), prompt_len=3, paths=[[], [5], [6]], committed=[1, 2, 3, 4])
    ranked = ChildRanking(VOCAB_SIZE, "cpu", width=2).rank(logits, [rows])
    assert [candidates.token_ids for candidates in ranked] == [[8, 9], [9, 5], [8, 9]]
    unanswered = rows._replace(prompt_len=4)  # the prompt's end begins no bad word
    ranked = ChildRanking(VOCAB_SIZE, "cpu", width=2).rank(logits, [unanswered])
    assert [candidates.token_ids for candidates in ranked] == [[8, 9]] * 3


def test_tokens_outside_the_candidates_share_what_is_left() -> None:
    scores = np.array([2.0, 1.0, 0.0, -1.0])
    partitions = np.log(np.exp(scores[:, None] / np.array(TAUS)).sum(axis=0))
    candidates = Candidates([10, 11], [0.0, 0.0], scores[:2], partitions, is_greedy=False)
    for index, tau in enumerate(TAUS):
        probabilities = np.exp(log_softmax(scores / tau))
        assert log_likelihoods(candidates, 11)[index] == pytest.approx(np.log(probabilities[1]))
        assert log_likelihoods(candidates, 99)[index] == pytest.approx(np.log(probabilities[2:].sum()))


@pytest.mark.parametrize("true_tau", TAUS)
def test_tau_is_found_from_committed_tokens(true_tau: float) -> None:
    rng = np.random.default_rng(0)
    ranking = ChildRanking(VOCAB_SIZE, "cpu", width=4)
    for _ in range(40):
        logits = torch.from_numpy(rng.normal(0, 2, (50, VOCAB_SIZE)).astype(np.float32))
        ranked = ranking.rank(logits, [group(SamplingParams(temperature=0.0), list(range(50)))])
        probabilities = torch.softmax(logits.double() / true_tau, dim=-1).numpy()
        tokens = [int(rng.choice(VOCAB_SIZE, p=row / row.sum())) for row in probabilities]
        ranking.observe(zip(ranked, tokens, strict=True))
    assert ranking.greedy_tau.value == true_tau
    assert ranking.sampled_tau.value == 1.0


def test_tau_starts_at_one_and_waits_for_enough_tokens() -> None:
    estimate = TauEstimate(min_observations=3)
    sure = Candidates([4], [0.0], np.zeros(1), np.log(1 + np.exp(-2 / np.array(TAUS))), is_greedy=True)
    for _ in range(2):
        estimate.observe(sure, 4)
        assert estimate.value == 1.0
    estimate.observe(sure, 4)
    assert estimate.value == min(TAUS)
