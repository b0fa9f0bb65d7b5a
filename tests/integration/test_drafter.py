"""The drafter's own thread, and the embedded draft model behind it."""

import asyncio
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from fake_draft import FakeDraft, TrieKeeper, make_drafter
from transformers import AutoTokenizer

from edge_agent.drafter import Drafter
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.draft_stats import StepReport
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.ranking import ChildRanking
from specedge.model.batch import PackedBatch
from specedge.model.loader import load_model
from specedge.model.runner import ModelRunner, TransformersRunner
from specedge.model.transformers_attention import ATTENTION_NAME
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams

MODELS = Path(__file__).parents[2] / "models"
GROWTH = GrowthSettings(max_n_beams=24, max_beam_len=8, max_branch_width=4, max_budget=24)
EOS_IDS = (2,)


pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str, attention: str = ATTENTION_NAME) -> Any:
    return load_model(str(MODELS / name), device="cpu", dtype="float32", attention=attention)


def prompt_ids(text: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "target")
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered)["input_ids"])


def target_answer(prompt: list[int], sampling: SamplingParams, num_tokens: int) -> list[int]:
    """What the target says, by transformers alone and our sampler."""
    model, text = load("target", "sdpa"), list(prompt)
    sampler = Sampler(4096, "cpu")
    for _ in range(num_tokens):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([text]), logits_to_keep=1).logits[0].float()
        rows = RowGroup(sampling, np.array([len(text)]), EOS_IDS, len(prompt))
        text.append(int(sampler.choose(logits, [rows])[0]))
    return text[len(prompt) :]


class CheckedRunner:
    """The real model beside the fake, which follows what each row attends to; keeps path and logits of each row."""

    def __init__(self, runner: ModelRunner) -> None:
        self.fake = FakeDraft(runner.num_slots)
        self.num_slots, self.vocab_size, self.device = runner.num_slots, runner.vocab_size, runner.device
        self.seen: list[tuple[tuple[int, ...], torch.Tensor]] = []
        self._runner = runner

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.fake.forward(batch)
        logits = self._runner.forward(batch)
        self.seen += list(zip(self.fake.wanted_paths, logits, strict=True))
        return logits


async def tokens_per_verdict(drafter: Drafter, prompt: list[int], sampling: SamplingParams, answer: list[int]) -> float:
    """Mean length of verdicts when the whole tree is verified each time it has grown."""
    keeper = TrieKeeper(drafter, prompt, sampling, EOS_IDS)
    num_verdicts = num_tokens = 0
    while num_tokens < len(answer) - 1:
        while drafter.step():
            pass
        await asyncio.sleep(0)
        verdict = keeper.walk(answer[num_tokens:])
        keeper.commit(verdict)
        num_tokens += len(verdict)
        num_verdicts += 1
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()
    return num_tokens / num_verdicts


async def test_draft_logits_of_every_node_equal_a_plain_forward_of_its_path() -> None:
    runner = CheckedRunner(TransformersRunner(load("draft"), 512))
    settings = DraftingSettings(growth=GrowthSettings(max_n_beams=5, max_budget=16, max_branch_width=3))
    drafter = Drafter(runner, drafter_id="draft", settings=settings)
    sampling = SamplingParams(temperature=1.0, seed=5, max_tokens=100)
    prompts = [prompt_ids("A tale about a bear."), prompt_ids("Tell me about Rose and her kite.")]
    keepers = [TrieKeeper(drafter, prompt, sampling, EOS_IDS) for prompt in prompts]
    rng = np.random.default_rng(0)
    for _ in range(6):
        for _ in range(3):
            drafter.step()
        await asyncio.sleep(0)
        for keeper in keepers:
            paths = sorted(keeper.live_paths())
            keeper.commit([*paths[rng.integers(len(paths))][:2], int(rng.integers(3, 4000))])
    plain = load("draft", "eager")
    assert len(runner.seen) > 60
    for path, logits in runner.seen[::3]:
        with torch.inference_mode():
            expected = plain(input_ids=torch.tensor([path]), logits_to_keep=1).logits[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    num_shared = min(map(len, prompts))  # the prompts begin alike
    assert all(times == 1 for path, times in runner.fake.computed.items() if len(path) >= num_shared)


async def test_coupled_trees_accept_more_than_plain_ones_at_temperature_one() -> None:
    prompt = prompt_ids("Write a story about a duck who was afraid of water.")
    sampling = SamplingParams(temperature=1.0, seed=77, max_tokens=500)
    answer = target_answer(prompt, sampling, 72)
    runner = TransformersRunner(load("draft"), 1024)
    means = {}
    for coupled in (True, False):
        settings = DraftingSettings(mode="off", growth=GROWTH)
        drafter = Drafter(runner, drafter_id="draft", settings=settings, coupled=coupled)
        means[coupled] = await tokens_per_verdict(drafter, prompt, sampling, answer)
    assert means[True] > 2.4
    assert means[True] > 1.3 * means[False]


async def test_thread_drafts_sleeps_and_wakes() -> None:
    steps: list[StepReport] = []
    drafter = Drafter(FakeDraft(500), drafter_id="fake", settings=DraftingSettings(growth=GROWTH), on_step=steps.append)
    drafter.start()
    try:
        keeper = TrieKeeper(drafter, [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=100))
        await until_idle(drafter)
        num_steps = len(steps)
        assert num_steps > 1
        assert keeper.trie.num_live > 0
        await asyncio.sleep(0.05)
        assert len(steps) == num_steps == drafter.stats.num_steps
        keeper.commit([next(token for token in range(13) if (token,) not in keeper.live_paths())])
        await until_idle(drafter)
        assert len(steps) > num_steps
        assert keeper.trie.num_live > 0
        assert steps[0].num_sessions == 1 and steps[0].num_rows == 3 and steps[0].forward_s > 0
        assert drafter.is_alive
    finally:
        drafter.stop()
    assert not drafter.is_alive
    drafter.check_integrity()


async def until_idle(drafter: Drafter) -> None:
    """Returns when the thread has nothing left to do and its messages have been delivered."""
    num_steps = -1
    while num_steps != drafter.stats.num_steps:
        num_steps = drafter.stats.num_steps
        for _ in range(5):  # a step that is under way runs at most two of them before it is counted
            passed = Event()
            drafter.post(passed.set)
            assert await asyncio.to_thread(passed.wait, 30)
    await asyncio.sleep(0)


async def test_failing_model_ends_drafting_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeDraft(100)
    drafter = make_drafter(runner)

    def fail(batch: PackedBatch) -> None:
        raise RuntimeError("the device is gone")

    runner.during_forward = fail
    drafter.start()
    keeper = TrieKeeper(drafter, [1, 2], SamplingParams())
    await asyncio.to_thread(drafter._thread.join, 30)
    assert not drafter.is_alive
    assert "the device is gone" in caplog.text
    keeper.commit([3])
    assert keeper.handle.restart() == 1
    keeper.handle.close()
    assert keeper.messages == []


def test_ranking_width_never_exceeds_the_vocabulary() -> None:
    ranking = ChildRanking(3, "cpu", width=8)
    rows = RowGroup(SamplingParams(temperature=0.0), np.array([1]), (), 1)
    assert ranking.rank(torch.tensor([[0.0, 2.0, 1.0]]), [rows])[0].token_ids == [1, 2, 0]
