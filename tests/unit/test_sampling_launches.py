"""What a sampling step and a ranking step ask of a device: how many operations, how many copies, no waiting.

Operations are counted on the CPU, which runs the same ones as a GPU except where a module says otherwise; the constants
that say so are set to what a GPU would see.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specedge import filters, row_chunks, sampler
from specedge.device_copy import Fetching, Upload
from specedge.drafting import ranking
from specedge.drafting.ranking import ChildRanking
from specedge.penalties import TokenCounts
from specedge.row_group import RowGroup
from specedge.row_scoring import MAX_LEADERS
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge_verifier.token_logprobs import PendingLogprobs

NARROW, WIDE = 1000, 20_000
WAITS_OR_SORTS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "unique_dim", "sort"}

PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=0.7),
    "top_p": SamplingParams(temperature=0.7, top_p=0.9),
    "top_k": SamplingParams(temperature=0.7, top_k=40),
    "top_k and top_p": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "min_p": SamplingParams(min_p=0.05),
    "penalised": SamplingParams(temperature=0.7, presence_penalty=0.5, repetition_penalty=1.1),
}
MASKED = SamplingParams(temperature=0.7, bad_words=((3,), (4, 5)), allowed_token_ids=tuple(range(3, 90)))
# The most launches of (choose, rank), by vocabulary: to be lowered with the code, and raised only for a reason.
MOST = {
    "greedy": {NARROW: (2, 13), WIDE: (2, 23)},
    "sampled": {NARROW: (25, 36), WIDE: (25, 46)},
    "top_p": {NARROW: (75, 86), WIDE: (85, 90)},
    "top_k": {NARROW: (48, 53), WIDE: (65, 70)},
    "top_k and top_p": {NARROW: (63, 68), WIDE: (80, 85)},
    "min_p": {NARROW: (29, 40), WIDE: (70, 75)},
    "penalised": {NARROW: (33, 44), WIDE: (33, 54)},
    "all of them": {NARROW: (155, 172), WIDE: (127, 154)},
}


class Operations(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.widest_topk = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        is_new = not {*storages(result)} & {*storages(args)}
        if (is_new or func._schema.is_mutable) and not name.startswith("empty"):  # else it is a view of what there was
            self.counts[name] += 1
        if name == "topk":
            self.widest_topk = max(self.widest_topk, args[1])
        return result


def storages(values: Any) -> Iterator[int]:
    """Where the tensors among some values lie."""
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage().data_ptr()


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_NO_WAIT", ())
    monkeypatch.setattr(row_chunks, "_MAX_CPU_CHUNK", 2**22)
    monkeypatch.setattr(sampler, "_best", lambda scores: scores.argmax(dim=-1))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often something was sent to the device and fetched from it."""
    counts: Counter[str] = Counter()

    def send(upload: Upload, device: torch.device, original: Callable[..., Any] = Upload.send) -> Any:
        counts["sent"] += 1
        return original(upload, device)

    def result(fetching: Fetching, original: Callable[..., Any] = Fetching.result) -> Any:
        counts["fetched"] += 1
        return original(fetching)

    monkeypatch.setattr(Upload, "send", send)
    monkeypatch.setattr(Fetching, "result", result)
    yield counts


def batch(kind: str, vocab_size: int, num_groups: int) -> tuple[torch.Tensor, list[RowGroup]]:
    """Two rows for each session; a few tokens have nearly all the probability, as with a trained model."""
    groups = []
    for index in range(num_groups):
        params = PARAMS[kind] if kind in PARAMS else list(PARAMS.values())[index % len(PARAMS)]
        counts = TokenCounts(range(8)) if params.needs_paths else None
        groups.append(RowGroup(params, np.array([8, 9]), (2,), 8, counts, [(), (index,)]))
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * num_groups, vocab_size, generator=random)
    logits.scatter_(1, torch.randint(0, vocab_size, (2 * num_groups, 12), generator=random), 14.0)
    return logits, groups


def count(run: Callable[[], object]) -> Operations:
    with torch.inference_mode(), Operations() as operations:
        run()
    return operations


@pytest.mark.parametrize("vocab_size", [NARROW, WIDE])
@pytest.mark.parametrize("kind", MOST)
def test_a_step_is_few_launches_and_one_copy_each_way(kind: str, vocab_size: int, copies: Counter[str]) -> None:
    choosing, children = Sampler(vocab_size, "cpu"), ChildRanking(vocab_size, "cpu", width=4)
    small, large = batch(kind, vocab_size, len(PARAMS)), batch(kind, vocab_size, 3 * len(PARAMS))
    for step, most in zip((choosing.choose, children.rank), MOST[kind][vocab_size], strict=True):
        copies.clear()
        operations = count(lambda step=step: step(*small))
        assert copies["fetched"] == 1
        assert copies["sent"] == (0 if kind == "greedy" else 1)
        assert 0 < operations.counts.total() <= most, operations.counts
        assert not WAITS_OR_SORTS & set(operations.counts), operations.counts
        more = count(lambda step=step: step(*large)).counts
        assert more.total() <= most, "the same for any number of sessions"
        if vocab_size == WIDE:
            assert operations.widest_topk <= MAX_LEADERS


def test_masks_are_few_launches_and_no_copies_of_their_own(copies: Counter[str]) -> None:
    logits, _ = batch("sampled", WIDE, 8)
    plain, masked = (
        [RowGroup(params, np.array([8, 9]), (2,), 8, None, [(), (4,)], range(8)) for _ in range(8)]
        for params in (PARAMS["sampled"], MASKED)
    )
    choosing = Sampler(WIDE, "cpu")
    most = count(lambda: choosing.choose(logits, plain)).counts.total() + 11
    copies.clear()
    operations = count(lambda: choosing.choose(logits, masked))
    assert operations.counts.total() <= most, operations.counts
    assert copies == {"sent": 1, "fetched": 1}
    assert not WAITS_OR_SORTS & set(operations.counts), operations.counts


@pytest.mark.parametrize("num_top", [0, 20])
def test_log_probabilities_are_few_launches_and_one_copy_each_way(num_top: int, copies: Counter[str]) -> None:
    logits, _ = batch("sampled", WIDE, 8)
    rows = np.arange(0, 16, 2)
    operations = count(lambda: PendingLogprobs(logits, rows, rows, num_top).result())
    assert copies == {"sent": 1, "fetched": 1}
    assert operations.counts.total() <= 10, operations.counts
    assert not WAITS_OR_SORTS & set(operations.counts), operations.counts


@pytest.mark.parametrize("params", [PARAMS["top_p"], PARAMS["min_p"], SamplingParams(min_p=0.01, top_p=0.5)])
def test_only_rows_that_were_cut_cost_a_second_trip(params: SamplingParams, copies: Counter[str]) -> None:
    logits, _ = batch("top_p", WIDE, 2)
    logits[2] = 0.0  # every token is kept, or every other one
    groups = [RowGroup(params, np.array([8, 9]), (2,), 8) for _ in range(2)]
    choosing, children = Sampler(WIDE, "cpu"), ChildRanking(WIDE, "cpu", width=4)
    expected = choosing.scores(logits, groups)
    for step in (lambda: choosing.choose(logits, groups).tolist(), lambda: first_of(children.rank(logits, groups))):
        copies.clear()
        assert step() == expected.argmax(dim=-1).tolist()
        assert copies == {"sent": 3, "fetched": 2}  # the cut row's number and its parameters go after the batch's


def first_of(ranked: list[ranking.Candidates]) -> list[int]:
    return [candidates.token_ids[0] for candidates in ranked]
