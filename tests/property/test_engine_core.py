"""The engine core under every interleaving: whatever edges draft and whenever blocks run out, the text is the target's.

The fake target checks each row's KV context, so these runs also hold packing, masks, slot moves, the prefix cache and
preemption to account. It does so when its tokens are asked for: whatever happens while a step is in flight must leave
what the step reads alone.
"""

from collections import Counter
from typing import Any

from fake_target import VOCAB_SIZE, FakeTarget, answer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specedge.block_pool import BlockPool
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore, StepInFlight
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.waiting import BatchType

MAX_LEN = 48
SEEN: Counter[str] = Counter()
INFO = ServerInfo("fake", "f", VOCAB_SIZE, MAX_LEN, 24, (), 4, "0")


class EngineCoreMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.sampled_from([13, 14, 16, 20, 40]),
        batch_type=st.sampled_from(BatchType),
        max_rows=st.sampled_from([64, 16, 8]),
    )
    def begin(self, num_blocks: int, batch_type: BatchType, max_rows: int) -> None:
        self.now_s = 0.0
        self.pool = BlockPool(num_blocks, 4)
        self.limits = SchedulerLimits(4, max_rows, 8, batch_type, stall_s=0.05)
        self.scheduler = Scheduler(self.pool, self.limits, StepTime(64, [(1, 0.01), (64, 0.012)]))
        self.target = FakeTarget()
        self.core = EngineCore(self.scheduler, self.target, INFO, self.tick)
        self.prompts: dict[int, list[int]] = {}
        self.expected: dict[int, list[int]] = {}
        self.given: dict[int, list[int]] = {}
        self.opened: set[int] = set()
        self.live: list[int] = []
        self.num_nodes: dict[int, int] = {}
        self.next_handle = 0
        self.in_flight: StepInFlight | None = None
        self.planned: set[int] = set()

    def tick(self) -> float:
        self.now_s += 0.001
        return self.now_s

    @precondition(lambda self: len(self.live) < 6)
    @rule(
        prompt=st.binary(min_size=1, max_size=24).map(lambda text: [byte % VOCAB_SIZE for byte in text]),
        shared=st.booleans(),
        max_tokens=st.sampled_from([16, 15, 2, 1]),
        resumed=st.sampled_from([0, 0, 3, 15]),
        drafter=st.sampled_from(["", "edge"]),
        priority=st.integers(0, 1),
    )
    def open(self, prompt: list[int], shared: bool, max_tokens: int, resumed: int, drafter: str, priority: int) -> None:
        if shared and self.prompts:
            prompt = (self.prompts[max(self.prompts)] + prompt)[: MAX_LEN - 16]
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        self.prompts[handle], self.expected[handle] = prompt, answer(prompt, max_tokens)
        self.given[handle] = self.expected[handle][: min(resumed, max_tokens - 1)]
        message = OpenSession(
            request_id=str(handle),
            prompt_ids=tuple(prompt),
            committed_ids=tuple(self.given[handle]),
            sampling=SamplingParams(max_tokens=max_tokens, repetition_penalty=1.1 if max_tokens % 2 else 1.0),
            tokenizer_fingerprint="f",
            drafter_id=drafter,
            priority=priority,
        )
        self.core.open(handle, message)
        self.live.append(handle)
        self.num_nodes[handle] = 0

    @precondition(lambda self: not self.live)
    @rule(shift=st.integers(0, VOCAB_SIZE - 1), num_steps=st.integers(1, 20))
    def crowd(self, shift: int, num_steps: int) -> None:
        """Four that begin together and in the end need more blocks than most pools have."""
        for number in range(4):
            prompt = [(shift + index // (number + 1)) % VOCAB_SIZE for index in range(26)]
            self.open(prompt, shared=False, max_tokens=16, resumed=0, drafter="edge", priority=number % 2)
        for _ in range(num_steps):
            self.step()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def draft(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.live))
        committed = self.prompts[handle] + self.given[handle]
        future = self.expected[handle][len(self.given[handle]) :]
        tokens: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        for _ in range(data.draw(st.integers(1, 12))):
            first = self.num_nodes[handle] + len(tokens)
            parent = data.draw(st.integers(max(-len(committed), -3 - len(committed)), first - 1))
            if parent < 0:
                parent = data.draw(st.sampled_from([~(len(committed) - 1), ~max(0, len(committed) - 3)]))
            depth_guess = len(tokens) % max(1, len(future) or 1)
            right = future[depth_guess] if future else 0
            tokens.append(data.draw(st.one_of(st.just(right), st.integers(0, VOCAB_SIZE - 1))))
            parents.append(parent)
            scores.append(-data.draw(st.floats(0, 3)))
        self.num_nodes[handle] += len(tokens)
        assert self.core.draft(handle, DraftNodes(tokens, parents, scores)) == []
        SEEN.update(drafted_in_flight=handle in self.planned and self.in_flight is not None)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), length=st.integers(1, 6), side=st.sampled_from(["none", "likelier", "less likely"]))
    def draft_the_future(self, data: st.DataObject, length: int, side: str) -> None:
        """The right continuation, alone or with a wrong sibling at each depth; then one step."""
        handle = data.draw(st.sampled_from(self.live))
        future = self.expected[handle][len(self.given[handle]) :][:length]
        tokens, parents, scores = [], [], []
        parent = ~(len(self.prompts[handle]) + len(self.given[handle]) - 1)
        for token in future:
            if side != "none":
                tokens.append((token + 1) % VOCAB_SIZE)
                parents.append(parent)
                scores.append(-0.01 if side == "likelier" else -0.6)
            tokens.append(token)
            parents.append(parent)
            scores.append(-0.3)
            parent = self.num_nodes[handle] + len(tokens) - 1
        self.num_nodes[handle] += len(tokens)
        assert self.core.draft(handle, DraftNodes(tokens, parents, scores)) == []
        self.step()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.live))
        num_held = self.pool.num_held
        self.live.remove(handle)
        self.core.close(handle)
        if self.in_flight is not None:
            assert self.pool.num_held == num_held, "a step in flight may still write to the session's blocks"
            SEEN.update(closed_in_flight=handle in self.planned)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), is_paused=st.booleans())
    def pause(self, data: st.DataObject, is_paused: bool) -> None:
        self.core.pause(data.draw(st.sampled_from(self.live)), is_paused)

    @rule(count=st.integers(1, 4))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @precondition(lambda self: self.live and self.in_flight is None)
    @rule()
    def begin_a_step(self) -> None:
        """What comes next, until the step is finished, happens while the model computes."""
        step = self.core.begin()
        self.planned = {item.session.handle for item in step.schedule.planned}
        if self.planned:
            self.in_flight = step
        else:
            self.finish(step)

    def step(self) -> None:
        if self.in_flight is not None:
            self.finish(self.in_flight)
        self.finish(self.core.begin())

    def finish(self, step: StepInFlight) -> None:
        before = self.target.num_rows
        self.in_flight = None
        result = self.core.finish(step)
        if result.report is not None:
            SEEN.update(
                moved=result.report.num_moved,
                accepted=result.report.num_accepted,
                prefill=result.report.num_prefill,
                steps=1,
            )
        assert self.target.num_rows - before <= self.limits.max_num_batched_tokens
        if result.report is None:
            assert not result.events and result.wait_s > 0
            self.now_s += min(result.wait_s, 1.0)
        for handle, event in result.events:
            assert handle in self.live, "a closed session is told nothing more"
            if isinstance(event, SessionOpened):
                assert handle not in self.opened, "opened twice"
                self.opened.add(handle)
                continue
            assert isinstance(event, Verdict) and event.token_ids and handle in self.opened
            given = self.given[handle]
            assert event.first_position == len(self.prompts[handle]) + len(given)
            given += event.token_ids
            assert given == self.expected[handle][: len(given)]
            assert (event.finish_reason == "length") == (len(given) == len(self.expected[handle]))
            if event.finish_reason:
                self.live.remove(handle)

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            assert self.core.num_sessions == len(self.live)
            tries = [session.trie for session in (*self.scheduler.running, *self.scheduler.waiting)]
            assert self.scheduler.store.num_taken == sum(1 + trie.num_live for trie in tries)
            if not self.live and self.in_flight is None:
                assert self.pool.num_held == 0

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for handle in self.live:
            self.core.pause(handle, False)
        steps = 0
        while self.live:
            self.step()
            steps += 1
            assert steps < 2000, "no progress"
        if self.in_flight is not None:
            self.step()
        self.nothing_leaks()
        SEEN.update(preempted=self.scheduler.num_preemptions, cached=self.pool.stats.hits)


TestEngineCore: Any = EngineCoreMachine.TestCase
TestEngineCore.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_the_machine_reached_what_it_is_for() -> None:
    """Runs after the machine: a run in which nothing was moved, accepted, preempted or cached would prove nothing."""
    what = ("moved", "accepted", "prefill", "preempted", "cached", "drafted_in_flight", "closed_in_flight")
    assert min(SEEN[kind] for kind in what) > 10, SEEN
