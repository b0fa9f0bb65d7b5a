"""Memory that runs out anywhere in a step: no token is lost or doubled, steps get smaller, and larger again."""

from collections import Counter
from collections.abc import Sequence
from itertools import count
from random import Random

import pytest
import torch
from fake_draft import FakeDraft, TrieKeeper, make_drafter
from fake_target import VOCAB_SIZE, FakeStep, FakeTarget, answer

from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.payoff import PayoffSettings
from specedge.errors import CapacityExceeded
from specedge.model.batch import PackedBatch
from specedge.model.out_of_memory import as_memory_error
from specedge.row_cap import RowCap
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore, StepResult
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

INFO = ServerInfo("fake", "f", VOCAB_SIZE, 64, 24, (), 4, "0")
PLACES = ("launch", "tokens", "move")
PLACES_OFTEN = ("", "launch", "tokens", "move", "move", "move", "move")
PROMPTS = ((1, 2, 3, 4, 0, 1), (4, 4, 2), tuple(index % VOCAB_SIZE for index in range(30)))
NUM_TOKENS = 24


class ShortTarget(FakeTarget):
    """Runs out of memory at one place of a step, where that has more than `most_rows` rows."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ""
        self.most_rows = 0
        self.seen: Counter[str] = Counter()
        self._rows = 0

    def launch(self, schedule: Schedule) -> FakeStep:
        self._rows = schedule.num_rows
        self._check("launch")
        return super().launch(schedule)

    def run(self, batch: PackedBatch) -> list[tuple[int, ...]]:
        rows = super().run(batch)  # keys and values have been written when sampling fails
        self._check("tokens")
        return rows

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        half = len(source_slots) // 2
        super().move_kv(source_slots[:half], target_slots[:half])
        self._check("move")
        super().move_kv(source_slots[half:], target_slots[half:])

    def _check(self, place: str) -> None:
        if place == self.place and self._rows > self.most_rows:
            self.seen[place] += 1
            raise MemoryError("no memory")


class Run:
    """Sessions that are drafted for, and opened again from what they have when one ends, as an edge does."""

    def __init__(self) -> None:
        self.target = ShortTarget()
        self.pool = BlockPool(60, 4)
        limits = SchedulerLimits(4, 32, 8)
        self.scheduler = Scheduler(self.pool, limits, StepTime(32, [(1, 0.01), (32, 0.012)]))
        ticks = count()
        self.core = EngineCore(self.scheduler, self.target, INFO, lambda: next(ticks) * 1e-3)
        self.given: dict[tuple[int, ...], list[int]] = {prompt: [] for prompt in PROMPTS}
        self.live: dict[int, tuple[int, ...]] = {}
        self.num_ended = 0
        self._handles = count()
        for prompt in PROMPTS:
            self.open(prompt)

    def open(self, prompt: tuple[int, ...]) -> None:
        params = SamplingParams(max_tokens=NUM_TOKENS)
        handle = next(self._handles)
        self.core.open(handle, OpenSession("r", prompt, tuple(self.given[prompt]), params, "f", "edge", "specedge"))
        self.live[handle] = prompt

    def draft(self, handle: int) -> None:
        """The right continuation below its last token, each node beside a wrong one that looks better."""
        prompt = self.live[handle]
        future = answer(prompt, NUM_TOKENS)[len(self.given[prompt]) :][:3]
        session = self.core._sessions[handle]
        first, parent = session.trie.num_nodes, session.trie.frontier
        tokens, parents, scores = [], [], []
        for token in future:
            tokens += [(token + 1) % VOCAB_SIZE, token]
            parents += [parent, parent]
            scores += [-0.01, -0.3]
            parent = first + len(tokens) - 1
        if tokens:
            assert self.core.draft(handle, DraftNodes(tokens, parents, scores)) == []

    def step(self) -> StepResult:
        result = self.core.step()
        for handle, event in result.events:
            if isinstance(event, Verdict):
                given = self.given[self.live[handle]]
                assert event.first_position == len(self.live[handle]) + len(given)
                given += event.token_ids
                if event.finish_reason:
                    del self.live[handle]
            elif not isinstance(event, SessionOpened):
                assert isinstance(event, CapacityExceeded)
                self.num_ended += 1
                self.open(self.live.pop(handle))
        self.pool.check_integrity()
        return result


def test_no_token_is_lost_or_doubled_wherever_memory_runs_out() -> None:
    seen: Counter[str] = Counter()
    for seed in range(25):
        run, dice = Run(), Random(seed)
        for _ in range(2000):
            if not run.live:
                break
            run.target.place, run.target.most_rows = dice.choice(PLACES_OFTEN), dice.choice((0, 1, 2, 5))
            for handle in list(run.live):
                if dice.random() < 0.5:
                    run.draft(handle)
            if dice.random() < 0.02:
                handle = dice.choice(list(run.live))
                run.core.close(handle)
                run.open(run.live.pop(handle))
            run.step()
        assert run.given == {prompt: answer(prompt, NUM_TOKENS) for prompt in PROMPTS}
        assert run.pool.num_held == 0 and run.core.num_sessions == 0
        seen.update(run.target.seen, ended=run.num_ended)
    assert min(seen[kind] for kind in (*PLACES, "ended")) > 10, seen


def test_a_session_closed_in_a_step_for_which_there_is_no_memory_leaves_nothing() -> None:
    run = Run()
    run.target.place = "tokens"
    step = run.core.begin()
    for handle in list(run.live):
        run.core.close(handle)
    assert run.pool.num_held > 0
    assert run.core.finish(step).report is None
    assert run.pool.num_held == 0 and run.core.num_sessions == 0


def test_draft_nodes_go_first_and_rows_come_back() -> None:
    cap = RowCap(100)
    assert cap.shrink(40, 10) and cap.rows == 10, "thirty draft nodes"
    assert cap.shrink(10, 10) and cap.rows == 5
    assert cap.shrink(1, 1) is False and cap.rows == 1 and cap.num_shortages == 3
    rows = []
    for _ in range(1000):
        cap.stepped()
        rows.append(cap.rows)
    assert sorted(set(rows)) == [1, 2, 4, 8, 16, 32, 64, 100] and rows == sorted(rows)
    assert not cap.is_short


def test_what_torch_and_numpy_say_is_one_error() -> None:
    with pytest.raises(MemoryError, match="allocate"), as_memory_error():
        torch.empty(2**60)
    with pytest.raises(MemoryError), as_memory_error():
        bytearray(2**62)
    with pytest.raises(MemoryError, match="CUDA"), as_memory_error():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nDetails")
    with pytest.raises(RuntimeError, match="lost"), as_memory_error():
        raise RuntimeError("the device was lost")


@pytest.mark.parametrize("mode", ["streamed", "excluded"])
async def test_a_drafter_short_of_memory_drafts_less_and_then_as_before(mode: str) -> None:
    runner = FakeDraft(2000)
    growth = GrowthSettings(max_n_beams=4, max_beam_len=4, max_branch_width=3, max_budget=24)
    payoff = PayoffSettings(min_accepted=0.0)  # also for text that is never guessed
    drafter = make_drafter(runner, DraftingSettings(mode=mode, growth=growth, payoff=payoff))  # type: ignore[arg-type]
    sampling = SamplingParams(temperature=0.0, max_tokens=1000)
    keepers = [TrieKeeper(drafter, (7, 1, 5, index), sampling) for index in range(3)]
    most = 3

    def check(batch: PackedBatch) -> None:
        if len(batch.token_ids) > most:
            raise MemoryError("no memory")

    runner.during_forward = check
    for _ in range(60):
        drafter.step()
    assert drafter.stats.num_shortages > 0 and max(runner.num_rows[-20:]) <= most
    assert drafter.stats.num_drafted > 0
    most = 2000
    for index in range(40):
        for keeper in keepers:
            keeper.commit([index % 13])
        drafter.step()
        drafter.step()
    assert max(runner.num_rows[-20:]) > 3, "it drafts as before"
    most = 0
    for keeper in keepers:
        keeper.commit([1])
    while drafter.step():
        pass
    assert drafter.pool.num_held == 0, "nobody is drafted for"
    for keeper in keepers:
        keeper.handle.close()
    drafter.step()
    drafter.check_integrity()
