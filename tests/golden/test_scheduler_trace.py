"""Five sessions through the scheduler, step by step, as a text that can be read and reviewed: scheduler_trace.txt."""

from collections.abc import Callable

from fake_target import VOCAB_SIZE, FakeStep, FakeTarget, answer

from specedge.block_pool import BlockPool
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

BLOCK_SIZE = 4
NUM_BLOCKS = 10
LIMITS = SchedulerLimits(max_batch_size=3, max_num_batched_tokens=16, max_tree_nodes=8)
INFO = ServerInfo("fake", "f", VOCAB_SIZE, 40, 16, (), 3, "0")
STEP_S = 0.010


class Recorder(FakeTarget):
    """Drives an engine core in virtual time and writes down what each step did."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(self.pool, LIMITS, StepTime(16, [(1, STEP_S), (16, STEP_S)]))
        self.core = EngineCore(self.scheduler, self, INFO, lambda: self.now_s)
        self.names: dict[int, str] = {}
        self.prompts: dict[str, list[int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.num_nodes: dict[str, int] = {}
        self.lines = [
            f"{NUM_BLOCKS} blocks of {BLOCK_SIZE} tokens, {LIMITS.max_num_batched_tokens} rows a step, "
            f"{LIMITS.max_batch_size} sessions at a time, {1e3 * STEP_S:.0f} ms a step"
        ]

    def note(self, text: str) -> None:
        self.lines += ["", f"# {text}"]

    def open(self, name: str, prompt: list[int], max_tokens: int, drafter: str = "edge") -> None:
        handle = len(self.names)
        self.names[handle], self.prompts[name], self.answers[name] = name, prompt, []
        self.num_nodes[name] = 0
        params = SamplingParams(max_tokens=max_tokens)
        self.core.open(handle, OpenSession(name, tuple(prompt), (), params, "f", drafter))
        self.lines.append(f"open {name}: {len(prompt)} prompt tokens, max_tokens {max_tokens}, drafter {drafter!r}")

    def draft(self, name: str, right: int, wrong: int) -> None:
        """A chain of right tokens with a wrong sibling at each of the first depths."""
        committed = self.prompts[name] + self.answers[name]
        tokens, parents = [], []
        parent = ~(len(committed) - 1)
        for depth, token in enumerate(answer(committed, right)):
            if depth < wrong:
                tokens.append((token + 1) % VOCAB_SIZE)
                parents.append(parent)
            tokens.append(token)
            parents.append(parent)
            parent = self.num_nodes[name] + len(tokens) - 1
        self.num_nodes[name] += len(tokens)
        handle = next(handle for handle, own in self.names.items() if own == name)
        self.core.draft(handle, DraftNodes(tokens, parents, [-0.2] * len(tokens)))
        self.lines.append(f"draft for {name}: {right} right, {wrong} wrong")

    def close(self, name: str) -> None:
        self.core.close(next(handle for handle, own in self.names.items() if own == name))
        self.lines.append(f"close {name}")

    def launch(self, schedule: Schedule) -> FakeStep:
        self.now_s += STEP_S
        for item in schedule.planned:
            name = self.names[item.session.handle]
            what = f"tokens {item.start}..{item.start + item.num_chunk - 1}"
            tree = f" and {item.num_nodes} draft nodes" if item.num_nodes else ""
            self.lines.append(f"  {name}: {what}{tree}{', samples' if item.samples else ''}")
        return super().launch(schedule)

    def step(self) -> None:
        preempted = self.scheduler.num_preemptions
        self.lines.append(f"step at {1e3 * self.now_s:.0f} ms")
        result = self.core.step()
        if result.report is None:
            self.lines.append(f"  nothing to run; look again in {1e3 * result.wait_s:.1f} ms")
            self.now_s += result.wait_s
        for handle, event in result.events:
            name = self.names[handle]
            if isinstance(event, SessionOpened):
                self.lines.append(f"  {name} opened, {event.num_cached_tokens} prompt tokens cached")
            elif isinstance(event, Verdict):
                self.answers[name] += event.token_ids
                end = f", ends: {event.finish_reason}" if event.finish_reason else ""
                self.lines.append(f"  {name} +{len(event.token_ids)} ({event.num_accepted} accepted){end}")
        if self.scheduler.num_preemptions > preempted:
            waiting = [self.names[session.handle] for session in self.scheduler.waiting]
            self.lines.append(f"  preempted; waiting: {' '.join(waiting)}")
        self.lines.append(f"  blocks: {self.pool.num_held} held, {self.pool.num_free} free")


def test_five_sessions(golden: Callable[[str, str], None]) -> None:
    trace = Recorder()
    trace.note("A long prompt is cut into chunks; a short one rides along in what the budget has left.")
    trace.open("ann", [1, 2, 3, 4] * 5, 12)
    trace.open("bob", [2, 0, 1], 12, drafter="")
    trace.step()
    trace.step()

    trace.note("ann's edge drafts: a tree is verified beside bob's plain decode step.")
    trace.draft("ann", right=3, wrong=2)
    trace.step()

    trace.note("ann has nothing but its root. bob runs anyway, so ann rides along.")
    trace.step()

    trace.note("cat shares ann's prompt: its full blocks come from the prefix cache. dan finds no place.")
    trace.open("cat", [1, 2, 3, 4] * 4 + [0, 0], 12)
    trace.open("dan", [3, 3], 4)
    trace.step()

    trace.note("The pool runs dry: draft nodes go first, then the newest session is preempted.")
    trace.draft("ann", right=4, wrong=0)
    trace.draft("cat", right=4, wrong=2)
    trace.step()
    trace.step()
    trace.step()

    trace.note("bob is closed; its blocks are free at once.")
    trace.close("bob")
    while trace.core.num_sessions:
        trace.step()

    trace.note("eve's edge answers 3 ms after each verdict. The step that runs meanwhile is a plain one.")
    trace.open("eve", [4, 4, 1], 16)
    for _ in range(3):
        trace.step()
        trace.now_s += 0.003
        trace.draft("eve", right=2, wrong=1)
        trace.step()

    trace.note("A draft that is overdue is not waited for.")
    while trace.core.num_sessions:
        trace.step()
        trace.now_s += 0.006
    for name, given in trace.answers.items():
        if name != "bob":
            assert given == answer(trace.prompts[name], len(given)), name
    trace.pool.check_integrity()
    assert trace.pool.num_held == 0 and not trace.core.num_sessions
    golden("scheduler_trace.txt", "\n".join(trace.lines) + "\n")
