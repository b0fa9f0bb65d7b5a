"""What a step costs the host beside the model: the real engine core with a target that takes no time.

    python -m benchmarks.host_cost

Times are CPU time of the thread, so that a busy machine does not count; medians over the measured steps. The phases are
schedule (admission, waiting rule, rows, draft budget, trees), pack (the forward's arrays and the sampler's groups),
accept (walks and verdicts), settle (commits, blocks) and learn (calibration, step time), which a GPU's step hides.
`intake` is what drafts cost as they arrive: in a GPU's step too, for the most part, and not part of the total.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from statistics import median
from time import thread_time
from typing import TypeVar

import numpy as np

from specedge.block_pool import BlockPool
from specedge.garbage import spare_steps
from specedge.node_store import IntArray
from specedge.sampling import SamplingParams
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo
from specedge_verifier.acceptance import Walk
from specedge_verifier.core import EngineCore
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

_VOCAB_SIZE = 4096
_PROMPT_TOKENS = 512
_MAX_TOKENS = 4000
_MAX_LIVE_NODES = 64
_MAX_TREE_NODES = 32
_BLOCK_SIZE = 16
_STEP_LOG_PROBS = (-0.25, -1.9, -3.2)  # of a node's children
_HIT_RATES = (0.75, 0.12, 0.03)  # how often the target takes each of them
_NUM_WARM_UP = 10

Number = TypeVar("Number", int, IntArray)


def token_at(handle: Number, position: Number) -> Number:
    """The target's token at a position of a session, whatever was before it."""
    return (7919 * handle + 104729 * position) % _VOCAB_SIZE


class InstantTarget:
    """Implements `StepModel`: packs as a real target does, then knows every token."""

    def launch(self, schedule: Schedule) -> "InstantStep":
        pack(schedule)
        row_groups(schedule)
        return InstantStep(schedule)

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        """Nothing is stored."""


@dataclass(frozen=True, slots=True)
class InstantStep:
    """Implements `PendingTokens`; its time is sampling's, which is not looked at."""

    schedule: Schedule

    @property
    def is_ready(self) -> bool:
        return True

    def tokens(self) -> IntArray:
        schedule, trees = self.schedule, self.schedule.trees
        handles, positions = np.empty((2, trees.num_rows), dtype=np.int64)
        sampling = [item.session for item in schedule.planned if item.samples]
        handles[:] = np.repeat([session.handle for session in sampling], trees.sizes + 1)
        positions[trees.roots] = [len(session.tokens) for session in sampling]
        positions[trees.rows] = trees.positions + 1
        return token_at(handles, positions)


class TimedScheduler(Scheduler):
    """A scheduler that says how long its last `settle` and `learn` took."""

    settle_time_s = learn_time_s = 0.0

    def settle(self, schedule: Schedule, walks: list[Walk | None], now_s: float, step_s: float) -> None:
        started_s = thread_time()
        super().settle(schedule, walks, now_s, step_s)
        self.settle_time_s = thread_time() - started_s

    def learn(self) -> None:
        started_s = thread_time()
        super().learn()
        self.learn_time_s = thread_time() - started_s


class Edge:
    """Drafts for one session: grows the tree the verifier holds, most probable node first."""

    def __init__(self, handle: int, num_live: int) -> None:
        self._handle = handle
        self._num_live = num_live
        self._random = random.Random(handle)

    def draft(self, trie: DraftTrie) -> DraftNodes:
        """The nodes that bring the tree back to its size."""
        leaves = [
            (-trie.score(number), number, trie.position(number) + 1)
            for number in trie.live_numbers()
            if not trie.children(number)
        ]
        if not trie.children(ROOT):
            leaves.append((0.0, trie.frontier, trie.num_committed))
        heapify(leaves)
        token_ids: list[int] = []
        parents: list[int] = []
        steps: list[float] = []
        while trie.num_live + len(token_ids) < self._num_live:
            loss, parent, position = heappop(leaves)
            right = self._random.choices(range(4), (*_HIT_RATES, 1 - sum(_HIT_RATES)))[0]
            for rank, log_prob in enumerate(_STEP_LOG_PROBS):
                step = log_prob - 0.05 * self._random.random()
                heappush(leaves, (loss - step, trie.num_nodes + len(token_ids), position + 1))
                token_ids.append((token_at(self._handle, position) + rank - right) % _VOCAB_SIZE)
                parents.append(parent)
                steps.append(step)
        return DraftNodes(token_ids, parents, steps)


@dataclass(frozen=True, slots=True)
class HostCost:
    """Milliseconds per step by phase, medians; nodes and committed tokens are means per session and step."""

    schedule_ms: float
    pack_ms: float
    accept_ms: float
    settle_ms: float
    learn_ms: float
    total_ms: float
    intake_ms: float
    num_nodes: float
    num_committed: float


def measure(num_sessions: int, num_nodes: int, num_live: int, num_steps: int, *, num_drafters: int = 1) -> HostCost:
    """Run `num_steps` steps in which all sessions decode, with `num_nodes` draft nodes each on average.

    Args:
        num_sessions: sessions decoding at once.
        num_nodes: what the row budget leaves for each, to be shared out by the draft budget.
        num_live: draft nodes each session has at hand before a step.
        num_steps: measured steps.
        num_drafters: distinct drafters the sessions belong to.
    """
    max_rows = num_sessions * (1 + num_nodes)
    step_time = StepTime(max_rows, [(1, 0.03), (max_rows, 0.03)])
    blocks_each = -(-(_PROMPT_TOKENS + _MAX_TOKENS) // _BLOCK_SIZE)
    limits = SchedulerLimits(num_sessions, max_rows, _MAX_TREE_NODES)
    scheduler = TimedScheduler(BlockPool(num_sessions * blocks_each, _BLOCK_SIZE), limits, step_time)
    info = ServerInfo("instant", "f", _VOCAB_SIZE, _PROMPT_TOKENS + _MAX_TOKENS, 256, (2,), _MAX_LIVE_NODES, "0")
    core = EngineCore(scheduler, InstantTarget(), info, thread_time)
    params = SamplingParams(max_tokens=_MAX_TOKENS, ignore_eos=True)
    edges: dict[int, Edge] = {}
    for handle in range(num_sessions):
        prompt = tuple(random.Random(handle).choices(range(_VOCAB_SIZE), k=_PROMPT_TOKENS))
        core.open(handle, OpenSession(str(handle), prompt, (), params, "f", f"edge {handle % num_drafters}"))
        edges[handle] = Edge(handle, num_live)
    spare_steps()
    while any(session.num_uncomputed > 1 for session in (*scheduler.running, *scheduler.waiting)):
        core.step()
    rows: list[tuple[float, ...]] = []
    for _ in range(_NUM_WARM_UP + num_steps):
        drafts = [(session.handle, edges[session.handle].draft(session.trie)) for session in scheduler.running]
        started_s = thread_time()
        for handle, nodes in drafts:
            core.draft(handle, nodes)
        intake_s = thread_time() - started_s
        report = core.step().report
        assert report is not None, "every session has something to compute"
        settle_s, learn_s = scheduler.settle_time_s, scheduler.learn_time_s
        phases = (report.schedule_s, report.forward_s, report.settle_s - settle_s - learn_s, settle_s, learn_s)
        rows.append((*phases, sum(phases), intake_s, report.num_nodes, report.num_committed))
    *times, num_nodes_of, num_committed_of = zip(*rows[_NUM_WARM_UP:], strict=True)
    means = (sum(column) / len(column) / num_sessions for column in (num_nodes_of, num_committed_of))
    return HostCost(*(1e3 * median(column) for column in times), *means)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", allow_abbrev=False)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--live", type=int, default=32, help="draft nodes at hand per session")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    print("CPU ms per step, medians; nodes and tokens per session")
    print(
        f"{'case':28}{'schedule':>9}{'pack':>7}{'accept':>8}{'settle':>8}{'learn':>7}{'total':>7}{'intake':>8}{'nodes':>7}{'tokens':>8}"
    )
    for num_nodes in (4, 16):
        for num_drafters in (1, options.sessions):
            cost = measure(options.sessions, num_nodes, options.live, options.steps, num_drafters=num_drafters)
            case = f"{options.sessions} x {num_nodes} nodes, {num_drafters} drafter{'s' if num_drafters > 1 else ''}"
            print(
                f"{case:28}{cost.schedule_ms:9.2f}{cost.pack_ms:7.2f}{cost.accept_ms:8.2f}{cost.settle_ms:8.2f}"
                f"{cost.learn_ms:7.2f}{cost.total_ms:7.2f}{cost.intake_ms:8.2f}{cost.num_nodes:7.1f}{cost.num_committed:8.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
