"""What the sampler does, on logits small enough to follow by hand; torch and the reference side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from specedge.noise import gumbel_noise
from specedge.penalties import TokenCounts
from specedge.reference_sampler import reference_scores
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams

NAN, INF = float("nan"), float("inf")
EOS = (2,)


def torch_scores(
    logits: list[float], params: SamplingParams, prompt_ids: list[int], generated_ids: list[int]
) -> np.ndarray:
    counts = TokenCounts(prompt_ids)
    counts.append(generated_ids)
    position = len(prompt_ids) + len(generated_ids)
    group = RowGroup(params, np.array([position]), EOS, len(prompt_ids), counts)
    return Sampler(len(logits), "cpu").scores(torch.tensor([logits]), [group])[0].numpy()


def numpy_scores(
    logits: list[float], params: SamplingParams, prompt_ids: list[int], generated_ids: list[int]
) -> np.ndarray:
    return reference_scores(
        np.array(logits, dtype=np.float32), params, prompt_ids=prompt_ids, generated_ids=generated_ids, eos_ids=EOS
    )


Scores = Callable[[list[float], SamplingParams, list[int], list[int]], np.ndarray]
both = pytest.mark.parametrize("scores", [torch_scores, numpy_scores])


def kept(scores: np.ndarray) -> list[int]:
    return np.flatnonzero(scores > -np.inf).tolist()


def logs(*probabilities: float) -> list[float]:
    return np.log(probabilities).tolist()


@both
def test_scores_are_logits_over_temperature_plus_the_noise_of_the_position(scores: Scores) -> None:
    result = scores([1.0, -2.0, 0.5], SamplingParams(temperature=0.5, seed=9), [1, 1, 1], [1])
    np.testing.assert_allclose(result, np.array([2.0, -4.0, 1.0]) + gumbel_noise(9, 4, 3), rtol=1e-6)


@both
def test_greedy_scores_are_the_logits(scores: Scores) -> None:
    result = scores([1.0, -2.0, 0.5], SamplingParams(temperature=0.0, top_k=1, top_p=0.1, min_p=1.0), [], [])
    np.testing.assert_array_equal(result, np.array([1.0, -2.0, 0.5], np.float32))


@both
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.99}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.09}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.14}, [1, 2, 3, 4]),
        ({"min_p": 0.16}, [1, 2, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.56}, [1]),  # 0.4 of the 0.7 that top_k left is 0.571
        ({"top_k": 2, "top_p": 0.58}, [1, 3]),
        ({"min_p": 0.26, "top_p": 0.43}, [1]),  # 0.4 of the 0.9 that min_p left is 0.444
        ({"min_p": 0.26, "top_p": 0.45}, [1, 3]),
        ({"min_p": 0.7, "top_k": 4}, [1, 3]),
    ],
)
def test_filters_keep_the_best_tokens(scores: Scores, values: dict[str, Any], expected: list[int]) -> None:
    probabilities = logs(0.04, 0.4, 0.2, 0.3, 0.06)
    assert kept(scores(probabilities, SamplingParams(**values), [], [])) == expected


@both
def test_filters_see_the_temperature(scores: Scores) -> None:
    probabilities = logs(0.6, 0.4)
    assert kept(scores(probabilities, SamplingParams(temperature=1.0, top_p=0.65), [], [])) == [0, 1]
    assert kept(scores(probabilities, SamplingParams(temperature=0.5, top_p=0.65), [], [])) == [0]


@both
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": 2}, [1, 2]),
        ({"top_p": 0.5}, [1, 2]),
        ({"top_p": 0.51}, [1, 2, 3]),
        ({"top_p": 0.25 + 1e-13}, [1, 2]),
        ({"top_k": 3, "top_p": 0.6}, [1, 2]),
    ],
)
def test_equal_scores_are_kept_by_lower_id(scores: Scores, values: dict[str, Any], expected: list[int]) -> None:
    assert kept(scores([-INF, 3.0, 3.0, 3.0, 3.0], SamplingParams(**values), [], [])) == expected


@both
def test_the_two_zeros_are_equal_scores(scores: Scores) -> None:
    assert kept(scores([-0.0, 0.0, -1.0], SamplingParams(top_k=1), [], [])) == [0]


@both
@pytest.mark.parametrize("num_tokens", [31, 32, 33, 511, 512, 513, 999])
def test_a_nucleus_of_any_size_is_found(scores: Scores, num_tokens: int) -> None:
    result = scores([0.5] * 1000, SamplingParams(top_p=(num_tokens - 0.5) / 1000), [], [])
    assert kept(result) == list(range(num_tokens))


def test_the_largest_top_p_below_1_works_where_float64_rounds_the_total() -> None:
    logits = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(1)) * 0.1
    group = RowGroup(SamplingParams(top_p=1 - 2**-53), np.arange(8), EOS, 0)
    assert torch.isfinite(Sampler(20_000, "cpu").scores(logits, [group])).all()


@both
def test_bias_comes_first_then_repetition_then_the_other_penalties(scores: Scores) -> None:
    params = SamplingParams(
        temperature=0.0,
        logit_bias=((0, 3.0), (4, 0.5)),
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
    )
    result = scores([-1.0, 4.0, -4.0, 1.0, 1.0], params, [1, 0], [0, 2, 2])
    expected = [(-1 + 3) / 2 - 0.5 - 0.25, 4 / 2, -4 * 2 - 2 * 0.5 - 0.25, 1.0, 1.5]
    np.testing.assert_array_equal(result, np.array(expected, dtype=np.float32))


@both
def test_presence_and_frequency_ignore_the_prompt(scores: Scores) -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=1.0, frequency_penalty=1.0)
    result = scores([5.0, 5.0, 5.0], params, [0, 0, 1], [1])
    np.testing.assert_array_equal(result, np.array([5.0, 3.0, 5.0], dtype=np.float32))


@both
@pytest.mark.parametrize(("num_generated", "is_masked"), [(0, True), (2, True), (3, False), (4, False)])
def test_stop_tokens_are_masked_until_min_tokens(scores: Scores, num_generated: int, is_masked: bool) -> None:
    params = SamplingParams(min_tokens=3, stop_token_ids=(3, 2), ignore_eos=True, logit_bias=((2, 50.0),))
    allowed = kept(scores([1.0, 2.0, 3.0, INF], params, [0] * 7, [0] * num_generated))
    assert allowed == ([0, 1] if is_masked else [0, 1, 2, 3])


@both
@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([NAN, 1.0, 2.0], 2),
        ([NAN, -INF, -1e30], 2),
        ([1.0, INF, INF], 1),
        ([NAN, INF, -INF], 1),
        ([-INF, -INF, -INF], 0),
        ([NAN, NAN, NAN], 0),
    ],
)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, repetition_penalty=1e-40),
        SamplingParams(temperature=0.0, repetition_penalty=1e300),
        SamplingParams(temperature=0.01, seed=3),
        SamplingParams(temperature=0.01, seed=3, top_k=2, top_p=0.5, min_p=0.5),
        SamplingParams(temperature=0.01, seed=3, top_p=0.5, presence_penalty=2.0),
    ],
)
def test_broken_logits_choose_without_a_crash(
    scores: Scores, logits: list[float], token: int, params: SamplingParams
) -> None:
    result = scores(logits, params, [7 % 3], [])
    assert not np.isnan(result).any()
    assert not (result == INF).any()
    if params.repetition_penalty == 1:
        assert result.argmax() == token


def test_choose_takes_the_lowest_id_among_equals_in_every_row() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [NAN, NAN, -1.0], [NAN, -INF, NAN]])
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, logit_bias=((0, 0.0),))):
        chosen = Sampler(3, "cpu").choose(logits, [RowGroup(params, np.arange(4), EOS, 0)])
        assert chosen.dtype == np.int64
        assert chosen.tolist() == [1, 0, 2, 0]


def test_choose_is_the_argmax_of_scores_and_leaves_the_logits_alone() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    counts = TokenCounts([1, 2])
    penalised = SamplingParams(top_k=4, repetition_penalty=1.5)
    groups = [
        RowGroup(SamplingParams(seed=5), np.array([10, 11]), EOS, 8),
        RowGroup(SamplingParams(temperature=0.0), np.array([3]), EOS, 2),
        RowGroup(penalised, np.array([2, 3, 3]), EOS, 2, counts, [(), (4,), (5,)]),
    ]
    sampler = Sampler(50, "cpu")
    scores = sampler.scores(logits, groups)
    assert sampler.choose(logits, groups).tolist() == scores.argmax(dim=-1).tolist()
    assert torch.equal(logits, before)
    assert torch.equal(scores[2], logits[2])


def test_an_empty_batch_chooses_nothing() -> None:
    sampler = Sampler(5, "cpu")
    assert sampler.choose(torch.empty(0, 5), []).tolist() == []
    empty = RowGroup(SamplingParams(top_p=0.5, top_k=2, min_tokens=1), np.array([], dtype=np.int64), EOS, 0)
    assert sampler.choose(torch.empty(0, 5), [empty]).tolist() == []
    one = RowGroup(SamplingParams(temperature=0.0), np.array([1]), EOS, 0)
    assert sampler.choose(torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]), [empty, one]).tolist() == [1]


def test_ids_past_the_logits_of_a_smaller_model_are_ignored() -> None:
    params = SamplingParams(
        temperature=0.0, logit_bias=((1, 5.0), (4, 9.0)), presence_penalty=1.0, min_tokens=4, stop_token_ids=(6,)
    )
    group = RowGroup(params, np.array([2]), EOS, 1, TokenCounts([5]), [(0, 7)])
    scores = Sampler(4, "cpu").scores(torch.zeros(1, 4), [group])
    assert scores.tolist() == [[-1.0, 5.0, -INF, 0.0]]


def test_rows_of_equal_seed_and_position_share_their_noise() -> None:
    group = RowGroup(SamplingParams(seed=2**64 - 1), np.array([5, 6, 5]), EOS, 0)
    scores = Sampler(40, "cpu").scores(torch.zeros(3, 40), [group])
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])


def test_a_tree_row_counts_its_own_path_and_no_siblings() -> None:
    counts = TokenCounts([0])
    counts.append([1])
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    group = RowGroup(params, np.array([2, 3, 3, 4]), EOS, 1, counts, [(), (2,), (3,), (2, 1)])
    scores = Sampler(4, "cpu").scores(torch.zeros(4, 4), [group])
    assert scores.tolist() == [[0, -1, 0, 0], [0, -1, -1, 0], [0, -1, 0, -1], [0, -2, -1, 0]]
