"""A long prompt is computed in chunks beside the running sessions: every step has a token for each of them."""

from fake_target import VOCAB_SIZE, FakeTarget, answer

from specedge.block_pool import BlockPool
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

MAX_ROWS = 16
MAX_TOKENS = 60
LONG = [position * position % VOCAB_SIZE for position in range(300)]
PROMPTS = {0: [1, 2, 3], 1: [4, 4, 1, 0], 2: [2, 0]}
INFO = ServerInfo("fake", "f", VOCAB_SIZE, 400, 24, (), 4, "0")


class Engine:
    """An engine core with the sessions of PROMPTS decoding; a step takes as long as it has rows."""

    def __init__(self) -> None:
        limits = SchedulerLimits(max_batch_size=8, max_num_batched_tokens=MAX_ROWS, max_tree_nodes=8)
        self.scheduler = Scheduler(BlockPool(256, 4), limits, StepTime(MAX_ROWS, [(1, 0.001), (MAX_ROWS, 0.016)]))
        self.target = FakeTarget()
        self.core = EngineCore(self.scheduler, self.target, INFO, lambda: self.target.num_rows * 1e-3)
        self.texts: dict[int, list[int]] = {}
        for handle, prompt in PROMPTS.items():
            self.open(handle, prompt)
        self.step()

    def open(self, handle: int, prompt: list[int]) -> None:
        self.texts[handle] = []
        params = SamplingParams(max_tokens=MAX_TOKENS)
        self.core.open(handle, OpenSession(str(handle), tuple(prompt), (), params, "f", "edge", "specedge"))

    def step(self) -> dict[int, int]:
        """Tokens that each session got in one step, which is never longer than the row budget."""
        before = self.target.num_rows
        events = self.core.step().events
        assert self.target.num_rows - before <= MAX_ROWS
        given = {handle: len(event.token_ids) for handle, event in events if isinstance(event, Verdict)}
        for handle, event in events:
            if isinstance(event, Verdict):
                self.texts[handle] += event.token_ids
        return given


def test_running_sessions_get_a_token_in_every_step_of_a_long_prompt() -> None:
    engine = Engine()
    engine.open(9, LONG)
    steps = 0
    while 9 not in (given := engine.step()):
        assert {handle: given.get(handle, 0) for handle in PROMPTS} == dict.fromkeys(PROMPTS, 1)
        steps += 1
    assert steps == len(LONG) // (MAX_ROWS - len(PROMPTS)), "the prompt gets all that the others leave"
    while engine.core.num_sessions:
        engine.step()
    for handle, prompt in (PROMPTS | {9: LONG}).items():
        assert engine.texts[handle] == answer(prompt, MAX_TOKENS)


def test_drafts_come_after_a_prompt_and_roots_before_it() -> None:
    engine = Engine()
    engine.open(9, LONG)
    right = answer(PROMPTS[0], MAX_TOKENS)[len(engine.texts[0]) :][:3]
    frontier = ~(len(PROMPTS[0]) + len(engine.texts[0]) - 1)
    engine.core.draft(0, DraftNodes(right, [frontier, 0, 1], [-0.01] * 3))
    schedule = engine.core.begin().schedule
    assert [item.num_chunk for item in schedule.planned] == [1, 1, 1, MAX_ROWS - 3]
    assert [item.num_nodes for item in schedule.planned] == [0, 0, 0, 0]


def test_many_long_prompts_are_no_slower_for_the_others_than_one() -> None:
    engine = Engine()
    for handle in range(9, 14):
        engine.open(handle, LONG[handle:])
    for _ in range(40):
        given = engine.step()
        assert all(given.get(handle) == 1 for handle in PROMPTS)
