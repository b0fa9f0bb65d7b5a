"""The engine's logits of every tree node against a plain transformers forward of that node's path, embedded target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from specedge.block_pool import BlockPool
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_model
from specedge.model.runner import ModelRunner, TransformersRunner
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.packing import tree_paths
from specedge_verifier.pending_tokens import PendingTokens
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel, UnsampledTokens

TARGET = resolve_model("demo", "target")
TOLERANCE = 1e-5
NUM_TOKENS = 24
VOCAB_SIZE = 4096
BLOCK_SIZE = 4
PROMPTS = (
    "Tell me a story about a heron.",
    "Tell me a story about a heron and a kettle. The kettle sings, the heron dances, and nobody in the whole village "
    "can sleep, neither the miller nor his wife, neither the cow nor the calf. What happens then?",
    "Why is the barn door green?",
    "Write about a hen who learned to skate. She lives at the very end of the lane, behind the last willow tree, and "
    "she has borrowed two spoons from the kitchen.",
    "Good night!",
)


@dataclass
class Captured:
    """One session's rows of one step: the committed text, the path of every row below it, and the rows' logits."""

    text: list[int]
    paths: list[list[int]]
    logits: torch.Tensor  # [1 + num_nodes, vocab]


@dataclass
class Seen:
    """What the steps were made of, so that the test can tell that it has tested something."""

    captured: list[Captured] = field(default_factory=list)
    num_mixed: int = 0  # steps with both a prefill chunk and trees
    num_moved: int = 0
    num_trees: int = 0  # in the same step, at most


class CapturingTarget(TargetModel):
    """The real target; keeps what every forward computed, and for what."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, seen: Seen) -> None:
        super().__init__(runner, sampler)
        self._seen = seen

    def launch(self, schedule: Schedule) -> PendingTokens:
        pending = super().launch(schedule)
        logits = pending.logits if isinstance(pending, UnsampledTokens) else torch.empty(0)
        first = 0
        for index, item in enumerate(item for item in schedule.planned if item.samples):
            paths = tree_paths(schedule.trees, index)
            rows = logits[first : first + len(paths)].clone()
            self._seen.captured.append(Captured(list(item.session.tokens), paths, rows))
            first += len(paths)
        assert first == len(logits)
        self._seen.num_trees = max(self._seen.num_trees, int(np.count_nonzero(schedule.trees.sizes)))
        return pending


@cache
def plain_model(attention: str, dtype: torch.dtype) -> Any:
    """Another copy of the target, with attention as transformers has it."""
    return load_model(TARGET, "cpu", "float32", attention=attention).to(dtype)


def plain_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits after every token of one sequence, [num_tokens, vocab]."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]  # type: ignore[no-any-return]


@cache
def prompts_and_answers() -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """The prompts' tokens, and what plain greedy decoding makes of them, past any end-of-sequence token."""
    tokenizer = load_tokenizer(TARGET)
    prompts, answers = [], []
    for text in PROMPTS:
        message = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        prompts.append(tuple(ids))
        for _ in range(NUM_TOKENS):
            ids.append(int(plain_logits(plain_model("sdpa", torch.float32), ids)[-1].argmax()))
        answers.append(ids[len(prompts[-1]) :])
    return prompts, answers


def engine(seen: Seen, dtype: torch.dtype, num_blocks: int, max_rows: int) -> EngineCore:
    """A core whose rows cost nothing, so that every draft node pays, with a clock of its own."""
    runner = TransformersRunner(load_model(TARGET, "cpu", "float32").to(dtype), num_blocks * BLOCK_SIZE)
    limits = SchedulerLimits(max_batch_size=8, max_num_batched_tokens=max_rows, max_tree_nodes=24)
    step_time = StepTime(max_rows, [(1, 0.01), (max_rows, 0.01)])
    info = ServerInfo("target", "", runner.vocab_size, 1024, 64, (2,), limits.max_batch_size, "")
    ticks = count()
    model = CapturingTarget(runner, Sampler(runner.vocab_size, runner.device), seen)
    scheduler = Scheduler(BlockPool(num_blocks, BLOCK_SIZE), limits, step_time)
    return EngineCore(scheduler, model, info, clock=lambda: next(ticks) * 1e-3)


def random_tree(draw: Random, num_committed: int, future: Sequence[int], first: int) -> DraftNodes:
    """Nodes below the frontier; about half of them carry the right token for their depth."""
    parents, tokens, depths = [], [], []
    for index in range(draw.randint(4, 20)):
        below = draw.randrange(-1, index) if draw.random() < 0.5 else index - 1
        depth = 0 if below < 0 else depths[below] + 1
        is_right = depth < len(future) and draw.random() < 0.6
        parents.append(anchor_at(num_committed - 1) if below < 0 else first + below)
        tokens.append(future[depth] if is_right else draw.randrange(VOCAB_SIZE))
        depths.append(depth)
    return DraftNodes(tokens, parents, [-draw.expovariate(3.0) for _ in tokens])


def run(core: EngineCore, seen: Seen, prompts: Sequence[tuple[int, ...]], answers: Sequence[list[int]]) -> None:
    """Answers all prompts, opening a session every other step and sending random trees before every step."""
    draw = Random(7)
    given: list[list[int]] = [[] for _ in prompts]
    num_nodes = [0] * len(prompts)
    opened: set[int] = set()
    step = 0
    while len(opened) < len(prompts) or core.num_sessions:
        if step % 2 == 0 and len(opened) < len(prompts):
            handle = len(opened)
            opened.add(handle)
            sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
            core.open(handle, OpenSession(str(handle), prompts[handle], (), sampling, "", f"random-{handle}"))
        for handle in opened:
            future = answers[handle][len(given[handle]) :]
            if future and draw.random() < 0.8:
                num_committed = len(prompts[handle]) + len(given[handle])
                nodes = random_tree(draw, num_committed, future, num_nodes[handle])
                num_nodes[handle] += len(nodes.token_ids)
                assert core.draft(handle, nodes) == []
        result = core.step()
        if result.report is not None:
            seen.num_mixed += bool(result.report.num_prefill and result.report.num_nodes)
            seen.num_moved += result.report.num_moved
        for handle, event in result.events:
            if isinstance(event, Verdict):
                given[handle] += event.token_ids
        step += 1
        assert step < 2000, "no progress"
    assert given == list(answers)


def largest_difference(captured: Captured, logits_of: Callable[[Sequence[int]], torch.Tensor]) -> float:
    """Every row against the plain forward of its path; a forward of the longest paths covers those on the way."""
    expected: dict[tuple[int, ...], torch.Tensor] = {}
    for path in sorted(captured.paths, key=len, reverse=True):
        if tuple(path) in expected:
            continue
        logits = logits_of([*captured.text, *path])
        for length in range(len(path) + 1):
            expected[tuple(path[:length])] = logits[len(captured.text) + length - 1]
    wanted = torch.stack([expected[tuple(path)] for path in captured.paths])
    return float((captured.logits - wanted).abs().max())


@pytest.mark.parametrize(
    ("attention", "dtype", "num_blocks"),
    [("eager", torch.float32, 256), ("sdpa", torch.float64, 30)],
    ids=["single-eager", "double-sdpa-preempting"],
)
def test_every_node_has_the_logits_of_its_own_path(attention: str, dtype: torch.dtype, num_blocks: int) -> None:
    """In single precision the tolerance is relative to the largest logit: plain runs differ among themselves as much.

    In double precision it is absolute, and only what is really wrong can reach it.
    """
    torch.set_num_threads(1)
    prompts, answers = prompts_and_answers()
    seen = Seen()
    core = engine(seen, dtype, num_blocks, max_rows=64)
    run(core, seen, prompts, answers)
    model = plain_model(attention, dtype)
    for rows in seen.captured:
        scale = float(rows.logits.abs().max()) if dtype is torch.float32 else 1.0
        difference = largest_difference(rows, lambda ids: plain_logits(model, ids))
        assert difference <= TOLERANCE * scale
    assert sum(len(rows.paths) for rows in seen.captured) > 300
    assert min(seen.num_mixed, seen.num_moved, seen.num_trees) >= 3
    assert (core.scheduler.num_preemptions > 0) == (num_blocks < 100)
