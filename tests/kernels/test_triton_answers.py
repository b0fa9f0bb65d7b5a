"""Seeded answers through the interpreted Triton kernel: draft trees change none, and the reference gives the same."""

import os
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: make test-kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: make test-kernels", allow_module_level=True)

from lean_models import FAMILIES, VOCAB_SIZE, load_lean, save_model

from specedge.block_pool import BlockPool
from specedge.model.attention import for_lean
from specedge.model.attention.interface import AttentionBackend
from specedge.model.attention.triton_backend import TritonBackend
from specedge.model.lean.runner import LeanRunner
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel

NUM_SESSIONS = 3
NUM_TOKENS = 9
PROMPTS = tuple(tuple(Random(handle).choices(range(VOCAB_SIZE), k=5 + 9 * handle)) for handle in range(NUM_SESSIONS))
Answers = dict[int, list[int]]


@pytest.fixture(scope="module", params=["llama", "qwen3-sliding"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    config = deepcopy(FAMILIES[request.param])
    config.head_dim = 16  # the smallest that the kernel takes
    save_model(config, path)
    return path


def triton_backend(device: torch.device, dtype: torch.dtype, head_dim: int, *_: str, **heads: int) -> AttentionBackend:
    return TritonBackend(device, dtype, head_dim=head_dim, num_processors=4, **heads)


def answers(folder: Path, drafted: Answers | None = None) -> tuple[Answers, int]:
    """Every session's tokens and how many draft nodes were accepted.

    Args:
        drafted: what drafts follow, with errors and branches; None: nothing is drafted.
    """
    runner = LeanRunner(*load_lean(folder), 256, make_attention=for_lean.backend_attention)
    limits = SchedulerLimits(max_batch_size=NUM_SESSIONS, max_num_batched_tokens=64, max_tree_nodes=8)
    scheduler = Scheduler(BlockPool(64, 4), limits, StepTime(64, [(1, 0.01), (64, 0.01)]))
    info = ServerInfo("target", "", VOCAB_SIZE, 128, 64, (), NUM_SESSIONS, "")
    ticks = count()
    core = EngineCore(
        scheduler, TargetModel(runner, Sampler(VOCAB_SIZE, runner.device)), info, lambda: next(ticks) / 1e3
    )
    tokens: Answers = {handle: [] for handle in range(NUM_SESSIONS)}
    num_sent, num_accepted, running = [0] * NUM_SESSIONS, 0, set(tokens)
    for handle, prompt in enumerate(PROMPTS):
        sampling = SamplingParams(temperature=0.7 * (handle % 2), seed=handle, max_tokens=NUM_TOKENS, ignore_eos=True)
        core.open(handle, OpenSession(str(handle), prompt, (), sampling, "", "random"))
    while running:
        for handle in running if drafted is not None else ():
            nodes = draft(handle, len(tokens[handle]), drafted[handle], num_sent[handle])
            num_sent[handle] += len(nodes.token_ids)
            assert core.draft(handle, nodes) == []
        for handle, event in core.step().events:
            if isinstance(event, Verdict):
                tokens[handle] += event.token_ids
                num_accepted += event.num_accepted
                running -= {handle} if event.finish_reason else set()
    return tokens, num_accepted


def draft(handle: int, num_known: int, answer: list[int], first: int) -> DraftNodes:
    """A wrong branch before the right path, so that accepted keys and values lie behind others and are moved."""
    anchor = anchor_at(len(PROMPTS[handle]) + num_known - 1)
    right = answer[num_known : num_known + 3]
    wrong = [(token + 1) % VOCAB_SIZE for token in right]
    parents = [anchor, *range(first, first + len(right) - 1)] if right else []
    second = [anchor, *range(first + len(right), first + 2 * len(right) - 1)] if right else []
    return DraftNodes([*wrong, *right], [*parents, *second], [-0.1] * len(right) + [-0.2] * len(right))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(for_lean, "choose_backend", triton_backend)
    yield


def test_speculation_through_the_kernel_changes_no_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = answers(folder)
    assert all(len(tokens) == NUM_TOKENS for tokens in expected.values())
    found, num_accepted = answers(folder, drafted=expected)
    assert found == expected
    assert num_accepted > NUM_SESSIONS * NUM_TOKENS / 3
    monkeypatch.undo()
    reference, _ = answers(folder)
    assert reference == expected
