"""The torch sampler against the reference, for random parameters, contexts, trees and batches."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specedge import filters, row_scoring
from specedge.grammar.hold_back import hold_back
from specedge.penalties import TokenCounts, penalised_rows
from specedge.reference_sampler import reference_scores
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams

torch.set_num_threads(1)

MAX_TOKEN = 11
TOKENS = st.lists(st.integers(0, MAX_TOKEN), max_size=12)


@st.composite
def sampling_params(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    def maybe(off: float, low: float, high: float) -> float:
        return draw(st.one_of(st.just(off), st.floats(low, high)))

    min_tokens = draw(st.integers(0, 6))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.01, 0.5, 0.7, 1.0, 2.0])),
        top_p=maybe(1.0, 0.01, 1.0),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, vocab_size - 1, vocab_size])),
        min_p=maybe(0.0, 0.0, 1.0),
        presence_penalty=maybe(0.0, -2.0, 2.0),
        frequency_penalty=maybe(0.0, -2.0, 2.0),
        repetition_penalty=maybe(1.0, 0.5, 2.0),
        logit_bias=tuple(draw(st.dictionaries(st.integers(0, MAX_TOKEN), st.floats(-100, 100), max_size=3)).items()),
        seed=draw(st.integers(0, 2**64 - 1)),
        min_tokens=min_tokens,
        max_tokens=min_tokens + 1,
        stop_token_ids=tuple(draw(st.sets(st.integers(0, MAX_TOKEN), max_size=2))),
        bad_words=tuple(draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4))),
        allowed_token_ids=tuple(draw(st.just([]) | st.lists(st.integers(0, MAX_TOKEN), max_size=6))),
    )
    params.validate(vocab_size)
    return params


@dataclass
class Session:
    """One session's group, and what a naive recomputation needs to know of it."""

    params: SamplingParams
    prompt_ids: list[int]
    generated_ids: list[int]
    paths: list[list[int]]
    eos_ids: tuple[int, ...]
    allowed: np.ndarray | None  # bool [rows, vocab]

    def masks(self) -> np.ndarray | None:
        if self.allowed is None:
            return None
        padded = np.pad(self.allowed, ((0, 0), (0, -self.allowed.shape[1] % 32)))
        masks = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
        num_generated = np.array([len(self.generated_ids) + len(path) for path in self.paths])
        stop_ids = (*self.eos_ids, *self.params.stop_token_ids)
        hold_back(masks, num_generated < self.params.min_tokens, stop_ids)
        return masks

    def group(self) -> RowGroup:
        counts = TokenCounts(self.prompt_ids)
        counts.append(self.generated_ids)
        num_committed = len(self.prompt_ids) + len(self.generated_ids)
        return RowGroup(
            params=self.params,
            positions=np.array([num_committed + len(path) for path in self.paths], dtype=np.int64),
            eos_ids=self.eos_ids,
            prompt_len=len(self.prompt_ids),
            counts=counts if self.params.has_penalties else None,
            paths=self.paths if self.params.needs_paths else None,
            committed=[*self.prompt_ids, *self.generated_ids],
            allowed=self.masks(),
        )

    def reference(self, row: int, logits: np.ndarray) -> np.ndarray:
        return reference_scores(
            logits,
            self.params,
            prompt_ids=self.prompt_ids,
            generated_ids=self.generated_ids + self.paths[row],
            eos_ids=self.eos_ids,
            allowed=None if self.allowed is None else np.flatnonzero(self.allowed[row]).tolist(),
        )


@st.composite
def sessions(draw: st.DrawFn, vocab_size: int) -> Session:
    """A session whose rows are the root and the nodes of a random tree."""
    paths: list[list[int]] = [[]]
    for parent, token in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, MAX_TOKEN)), max_size=6)):
        paths.append([*paths[parent % len(paths)], token])
    allowed = None
    if draw(st.booleans()):
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        allowed = random.random((len(paths), vocab_size)) < draw(st.sampled_from([0.05, 0.5, 1.0]))
    return Session(
        params=draw(sampling_params(vocab_size)),
        prompt_ids=draw(TOKENS),
        generated_ids=draw(TOKENS),
        paths=paths,
        eos_ids=tuple(draw(st.sets(st.integers(0, MAX_TOKEN), max_size=2))),
        allowed=allowed,
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Session], np.ndarray]:
    """Sessions and their logits: smooth, or on a coarse grid so that many are equal, with some values broken."""
    vocab_size = draw(st.sampled_from([MAX_TOKEN + 1, 40, 600]))
    batch = draw(st.lists(sessions(vocab_size), min_size=1, max_size=4))
    num_rows = sum(len(session.paths) for session in batch)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = random.normal(scale=draw(st.sampled_from([0.0, 0.3, 3.0])), size=(num_rows, vocab_size))
    if draw(st.booleans()):
        logits = np.round(logits * 2) / 2
    if draw(st.integers(0, 3)) == 0:
        broken = random.choice([np.nan, np.inf, -np.inf, 1.0], size=logits.shape)
        logits = np.where(random.random(logits.shape) < 0.2, broken, logits)
    return batch, logits.astype(np.float32)


@settings(max_examples=60)
@given(batches())
def test_torch_scores_equal_the_reference_row_by_row(batch: tuple[list[Session], np.ndarray]) -> None:
    members, logits = batch
    groups = [session.group() for session in members]
    sampler = Sampler(logits.shape[1], "cpu")
    scores = sampler.scores(torch.from_numpy(logits), groups).numpy()
    rows = [(session, row) for session in members for row in range(len(session.paths))]
    expected = np.stack([session.reference(row, logits[index]) for index, (session, row) in enumerate(rows)])
    np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(expected))
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=2e-6)

    chosen = sampler.choose(torch.from_numpy(logits), groups)
    picked = np.take_along_axis(expected, chosen[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        shortfall = np.where(picked == expected.max(axis=1), 0.0, expected.max(axis=1) - picked)
    assert (shortfall <= 4e-6 * np.maximum(1.0, np.abs(picked))).all(), "the chosen token is the reference's best"


@settings(max_examples=60)
@given(
    batch=batches(), max_leaders=st.integers(1, 5), block=st.sampled_from([1, 3, 64]), narrow=st.sampled_from([0, 100])
)
def test_the_chosen_token_has_the_highest_score_however_few_are_looked_at(
    batch: tuple[list[Session], np.ndarray], max_leaders: int, block: int, narrow: int
) -> None:
    members, logits = batch
    groups = [session.group() for session in members]
    sampler = Sampler(logits.shape[1], "cpu")
    expected = sampler.scores(torch.from_numpy(logits), groups).argmax(dim=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_scoring, "MAX_LEADERS", max_leaders)
        patch.setattr(row_scoring, "NARROW", narrow)
        patch.setattr(filters, "_BLOCK", block)
        assert sampler.choose(torch.from_numpy(logits), groups).tolist() == expected.tolist()


@settings(max_examples=30)
@given(batches())
def test_a_row_gives_the_same_scores_in_any_batch(batch: tuple[list[Session], np.ndarray]) -> None:
    members, logits = batch
    groups = [session.group() for session in members]
    sizes = [len(session.paths) for session in members]
    parts = torch.from_numpy(logits).split(sizes)
    sampler = Sampler(logits.shape[1], "cpu")
    together = sampler.scores(torch.from_numpy(logits), groups)
    alone = torch.cat([sampler.scores(part, [group]) for part, group in zip(parts, groups, strict=True)])
    assert torch.equal(together, alone)
    reversed_parts = sampler.scores(torch.cat(parts[::-1]), groups[::-1]).split(sizes[::-1])
    assert torch.equal(together, torch.cat(reversed_parts[::-1]))


@settings(max_examples=100)
@given(prompt_ids=TOKENS, bursts=st.lists(TOKENS, max_size=4), path=TOKENS, data=st.data())
def test_incremental_counts_equal_a_naive_count(
    prompt_ids: list[int], bursts: list[list[int]], path: list[int], data: st.DataObject
) -> None:
    counts = TokenCounts(prompt_ids)
    for burst in bursts:
        counts.append(burst)
        next(counts.with_paths([path]))
    generated_ids = [token_id for burst in bursts for token_id in burst]
    ids, generated = next(counts.with_paths([path]))
    naive = Counter([*generated_ids, *path])
    assert len(set(ids.tolist())) == len(ids)
    assert dict(zip(ids.tolist(), generated.tolist(), strict=True)) == {
        token_id: naive[token_id] for token_id in {*prompt_ids, *generated_ids, *path}
    }

    params = data.draw(sampling_params(MAX_TOKEN + 1))
    entries = next(penalised_rows(params, counts, [path]))
    changed = dict(zip(entries.ids.tolist(), zip(*entries[1:], strict=True), strict=True))
    for token_id in range(MAX_TOKEN + 1):
        is_repeated = token_id in {*prompt_ids, *generated_ids, *path}
        additive, multiplicative = changed.get(token_id, (0.0, 1.0))
        assert multiplicative == np.float32(params.repetition_penalty if is_repeated else 1.0)
        occurrences = naive[token_id]
        penalty = params.frequency_penalty * occurrences + params.presence_penalty * (occurrences > 0)
        assert -additive == np.float32(penalty)
