"""Log-probabilities on the device: what they are, and which rows of a step they are computed for."""

from itertools import count

import numpy as np
import pytest
import torch

from specedge import row_chunks
from specedge.block_pool import BlockPool
from specedge.model.batch import PackedBatch
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.wire.messages import OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel
from specedge_verifier.token_logprobs import PendingLogprobs

INF, NAN = float("inf"), float("nan")
VOCAB_SIZE = 50


def table_of(logits: torch.Tensor, rows: list[int], token_ids: list[int], num_top: int):  # type: ignore[no-untyped-def]
    return PendingLogprobs(logits, np.array(rows), np.array(token_ids), num_top).result()


@pytest.mark.parametrize("chunk", [1, 2**18])
def test_they_are_log_softmax_of_the_rows_asked_for_and_the_logits_stay_as_they_are(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_chunks, "_MAX_CPU_CHUNK", chunk)
    logits = 9 * torch.randn(7, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    expected = logits.double().log_softmax(dim=-1)
    rows, token_ids = [6, 0, 3, 3], [5, 49, 0, int(logits[3].argmax())]
    table = table_of(logits, rows, token_ids, 4)
    np.testing.assert_allclose(table.own, expected[rows, token_ids].numpy(), atol=1e-5)
    best = expected[rows].topk(4)
    np.testing.assert_array_equal(table.top_ids, best.indices.numpy())
    np.testing.assert_allclose(table.top, best.values.numpy(), atol=1e-5)
    assert torch.equal(logits, before)
    (told,) = table.tokens(3, 4, 2)
    assert told.logprob == told.top_logprobs[0] and told.top_ids[0] == token_ids[3] and len(told.top_ids) == 2


def test_a_vocabulary_smaller_than_what_is_asked_for_is_told_whole() -> None:
    (told,) = table_of(torch.zeros(1, 3), [0], [2], 20).tokens(0, 1, 20)
    assert sorted(told.top_ids) == [0, 1, 2]
    assert told.logprob == pytest.approx(-np.log(3), abs=1e-6)


@pytest.mark.parametrize(
    ("row", "token_id", "logprob"),
    [([NAN, 0.0, 0.0], 1, -np.log(2)), ([NAN, 0.0, 0.0], 0, -INF), ([-INF] * 3, 1, -INF), ([INF, 0.0, 1.0], 0, 0.0)],
)
def test_broken_logits_give_numbers(row: list[float], token_id: int, logprob: float) -> None:
    (told,) = table_of(torch.tensor([row]), [0], [token_id], 1).tokens(0, 1, 1)
    assert told.logprob == pytest.approx(logprob)
    assert not any(np.isnan([told.logprob, *told.top_logprobs]))


class CountingRunner:
    """Logits that follow from token and position alone; counts the rows they are asked for."""

    device = torch.device("cpu")
    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self.num_wanted: list[int] = []
        table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(4))
        self.table = table

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.num_wanted.append(len(batch.logits_rows))
        return self.table[torch.from_numpy(batch.token_ids[batch.logits_rows])]

    def copy_kv(self, source_slots: np.ndarray, target_slots: np.ndarray) -> None:
        """There are none."""


def test_a_step_computes_logits_of_a_bounded_number_of_prompt_rows_and_a_session_opens_when_all_are_told() -> None:
    runner = CountingRunner()
    limits = SchedulerLimits(max_batch_size=8, max_num_batched_tokens=400, max_tree_nodes=8)
    ticks = count()
    scheduler = Scheduler(BlockPool(256, 4), limits, StepTime(400, [(1, 0.01), (400, 0.01)]))
    info = ServerInfo("t", "", VOCAB_SIZE, 1024, 64, (2,), 8, "")
    target = TargetModel(runner, Sampler(VOCAB_SIZE, "cpu"))  # type: ignore[arg-type]
    core = EngineCore(scheduler, target, info, clock=lambda: next(ticks) * 1e-3)
    draw = np.random.default_rng(1)
    prompts = [tuple(draw.integers(0, VOCAB_SIZE, size).tolist()) for size in (200, 150, 90)]
    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    asked = [3, None, 0]
    for handle, (prompt, num) in enumerate(zip(prompts, asked, strict=True)):
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, num_prompt_logprobs=num)
        core.open(
            handle, OpenSession("", prompt, (), params if num is not None else sampling, "", "", "autoregressive")
        )
    opened: dict[int, SessionOpened] = {}
    while core.num_sessions:
        for handle, event in core.step().events:
            if isinstance(event, SessionOpened):
                opened[handle] = event
            else:
                assert isinstance(event, Verdict) and handle in opened
    assert max(runner.num_wanted) <= 128 + len(prompts)
    assert sum(runner.num_wanted) == 199 + 89 + 3 * 4
    expected = runner.table.log_softmax(dim=-1).numpy()
    for handle, (prompt, num) in enumerate(zip(prompts, asked, strict=True)):
        told = opened[handle].prompt_logprobs
        assert len(told) == (len(prompt) - 1 if num is not None else 0)
        for before, token_id, entry in zip(prompt, prompt[1:], told, strict=False):
            assert entry.logprob == pytest.approx(expected[before, token_id], abs=1e-5)
            assert len(entry.top_ids) == num
