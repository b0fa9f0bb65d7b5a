"""The engine's log-probabilities against a plain forward of the same text: with drafts, preemption, mixed batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from random import Random
from typing import Any

import pytest
import torch

from specedge.block_pool import BlockPool
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_model
from specedge.model.runner import TransformersRunner
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, TokenLogprob, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel

TARGET = resolve_model("demo", "target")
TOLERANCE = 1e-4
NUM_TOKENS = 20
BLOCK_SIZE = 4
MAX_ROWS = 48
PROMPTS = (
    "Tell me a story about a heron.",
    "Tell me a story about a heron and a kettle. The kettle sings, the heron dances, and nobody in the whole village "
    "can sleep, neither the miller nor his wife, neither the cow nor the calf. What happens then?",
    "Why is the barn door green?",
    "Good night!",
)
PARAMS = (
    SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, num_logprobs=3, ignore_eos=True),
    SamplingParams(
        temperature=0.9, seed=5, max_tokens=NUM_TOKENS, num_logprobs=0, frequency_penalty=1.5, ignore_eos=True
    ),
    SamplingParams(temperature=0.8, seed=7, max_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=9, max_tokens=NUM_TOKENS, num_logprobs=20, ignore_eos=True),
)


@dataclass
class Told:
    """What a session was told."""

    opened: SessionOpened | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_accepted: int = 0
    is_over: bool = False


@cache
def model() -> Any:
    return load_model(TARGET, "cpu", "float32")


@cache
def prompt_ids() -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(TARGET)
    return [tuple(tokenizer(text).input_ids) for text in PROMPTS]


def plain_logprobs(token_ids: Sequence[int]) -> torch.Tensor:
    """log_softmax after every token of a text, [num_tokens, vocab], by another copy of the model."""
    with torch.inference_mode():
        logits = _plain()(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return logits.log_softmax(dim=-1)


@cache
def _plain() -> Any:
    return load_model(TARGET, "cpu", "float32", attention="sdpa")


def check(told: Sequence[TokenLogprob], token_ids: Sequence[int], rows: torch.Tensor, num_top: int) -> None:
    """What was told of some tokens against the rows before them."""
    assert len(told) == len(token_ids) == len(rows)
    for entry, token_id, row in zip(told, token_ids, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row[token_id]), abs=TOLERANCE)
        assert len(entry.top_ids) == len(set(entry.top_ids)) == len(entry.top_logprobs) == num_top
        assert list(entry.top_logprobs) == pytest.approx(row.topk(num_top).values.tolist(), abs=TOLERANCE)
        assert list(entry.top_logprobs) == pytest.approx(row[list(entry.top_ids)].tolist(), abs=TOLERANCE)
        if token_id in entry.top_ids:
            assert entry.logprob == entry.top_logprobs[entry.top_ids.index(token_id)], "the very same number"


class Engine:
    """A core whose rows cost nothing, so that every draft node pays."""

    def __init__(self, num_blocks: int = 256) -> None:
        runner = TransformersRunner(model(), num_blocks * BLOCK_SIZE)
        limits = SchedulerLimits(max_batch_size=8, max_num_batched_tokens=MAX_ROWS, max_tree_nodes=16)
        info = ServerInfo("target", "", runner.vocab_size, 1024, 64, (2,), limits.max_batch_size, "")
        ticks = count()
        self.pool = BlockPool(num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(self.pool, limits, StepTime(MAX_ROWS, [(1, 0.01), (MAX_ROWS, 0.01)]))
        target = TargetModel(runner, Sampler(runner.vocab_size, runner.device))
        self.core = EngineCore(self.scheduler, target, info, clock=lambda: next(ticks) * 1e-3)
        self._draw = Random(3)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        futures: Sequence[Sequence[int]] | None = None,
    ) -> list[Told]:
        """All sessions to their end; with futures, drafts that are right about half of the time."""
        system = "autoregressive" if futures is None else "specedge"
        sessions = [Told() for _ in prompts]
        num_sent = [0] * len(prompts)
        for handle, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
            self.core.open(handle, OpenSession("", tuple(prompt), (), sampling, "", "drafter", system))
        while not all(told.is_over for told in sessions):
            if futures is not None:
                for handle, told in enumerate(sessions):
                    if not told.is_over and told.opened is not None:
                        nodes = self._drafts(len(prompts[handle]), told, futures[handle], num_sent[handle])
                        num_sent[handle] += len(nodes.token_ids)
                        assert self.core.draft(handle, nodes) == []
            for handle, event in self.core.step().events:
                told = sessions[handle]
                if isinstance(event, SessionOpened):
                    told.opened = event
                else:
                    assert isinstance(event, Verdict) and told.opened is not None
                    told.token_ids += event.token_ids
                    told.logprobs += event.logprobs
                    told.num_accepted += event.num_accepted
                    told.is_over = bool(event.finish_reason)
        self.pool.check_integrity()
        assert self.pool.num_held == 0
        return sessions

    def _drafts(self, num_prompt: int, told: Told, future: Sequence[int], first: int) -> DraftNodes:
        """A chain with wrong siblings: right down to a random depth."""
        num_right = self._draw.randrange(0, 5)
        tokens: list[int] = []
        parents: list[int] = []
        parent = anchor_at(num_prompt + len(told.token_ids) - 1)
        for token in future[len(told.token_ids) :][:num_right] or [7]:
            tokens += [(token + 1) % 4096, token]
            parents += [parent, parent]
            parent = first + len(tokens) - 1
        return DraftNodes(tokens, parents, [-0.2] * len(tokens))


@cache
def plain_answers() -> list[Told]:
    return Engine().run(prompt_ids(), PARAMS)


@pytest.mark.parametrize("num_blocks", [256, 28])
def test_the_answers_are_those_of_a_forward_over_the_whole_text_with_and_without_drafts(num_blocks: int) -> None:
    plain = plain_answers()
    futures = [told.token_ids for told in plain]
    engine = Engine(num_blocks)
    drafted = engine.run(prompt_ids(), PARAMS, futures)
    assert [told.token_ids for told in drafted] == futures
    assert sum(told.num_accepted for told in drafted) > NUM_TOKENS
    assert (engine.scheduler.num_preemptions > 0) == (num_blocks == 28)
    for prompt, params, told, undrafted in zip(prompt_ids(), PARAMS, drafted, plain, strict=True):
        if params.num_logprobs is None:
            assert told.logprobs == undrafted.logprobs == []
            continue
        rows = plain_logprobs([*prompt, *told.token_ids])[len(prompt) - 1 : -1]
        check(told.logprobs, told.token_ids, rows, params.num_logprobs)
        check(undrafted.logprobs, told.token_ids, rows, params.num_logprobs)


def test_asking_for_log_probabilities_changes_no_token() -> None:
    silent = [replace(params, num_logprobs=None) for params in PARAMS]
    asking = [replace(params, num_logprobs=2, num_prompt_logprobs=1) for params in PARAMS]
    expected = [told.token_ids for told in plain_answers()]
    assert [told.token_ids for told in Engine().run(prompt_ids(), silent)] == expected
    assert [told.token_ids for told in Engine().run(prompt_ids(), asking)] == expected


@pytest.mark.parametrize("num_blocks", [256, 32])
def test_a_rescore_as_a_prompt_equals_the_generation(num_blocks: int) -> None:
    """Chunks of several prompts in one step, beside sessions that decode; the prefix cache has all of them already."""
    told = plain_answers()
    texts = [(*prompt, *answer.token_ids) for prompt, answer in zip(prompt_ids(), told, strict=True)]
    scoring = SamplingParams(temperature=0.0, max_tokens=3, num_prompt_logprobs=4, ignore_eos=True)
    engine = Engine(num_blocks)
    engine.run(texts, [replace(scoring, num_prompt_logprobs=None)] * len(texts))
    wanted = [scoring, replace(scoring, num_prompt_logprobs=0), replace(scoring, num_prompt_logprobs=None), scoring]
    rescored = engine.run(texts, wanted)
    for text, prompt, answer, params, score in zip(texts, prompt_ids(), told, wanted, rescored, strict=True):
        assert score.opened is not None
        if params.num_prompt_logprobs is None:
            assert score.opened.prompt_logprobs == ()
            assert score.opened.num_cached_tokens > 0 or num_blocks < 256
            continue
        assert score.opened.num_cached_tokens == 0
        check(score.opened.prompt_logprobs, text[1:], plain_logprobs(text)[:-1], params.num_prompt_logprobs)
        own = score.opened.prompt_logprobs[len(prompt) - 1 :]
        if answer.logprobs:
            generated = [entry.logprob for entry in answer.logprobs]
            assert [entry.logprob for entry in own] == pytest.approx(generated, abs=TOLERANCE)


def test_a_prompt_of_one_token_has_nothing_to_tell() -> None:
    (told,) = Engine().run([prompt_ids()[0][:1]], [replace(PARAMS[0], num_prompt_logprobs=2)])
    assert told.opened is not None and told.opened.prompt_logprobs == ()
    assert len(told.logprobs) == NUM_TOKENS
