"""Sessions of several tenants on an engine core with a target without weights, one step at a time."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fake_target import VOCAB_SIZE, FakeTarget, answer

from specedge.block_pool import BlockPool
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.tenant_account import Tenant, TenantAccount

BLOCK_SIZE = 4
STEP_S = 0.01


@dataclass(slots=True)
class Step:
    """What a step computed, by tenant."""

    rows: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    roots: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    live: Counter[str] = field(default_factory=Counter)  # draft nodes at hand
    wanted: int = 0  # rows of committed tokens that all running sessions together want


class TenantEngine(FakeTarget):
    """An engine core whose every session is a tenant's, in virtual time.

    Args:
        tenants: as a file would have them.
        num_blocks, max_batch_size, max_rows: bounds of the engine.
        max_len: longest session.
        drafted: right draft nodes that every decoding session gets before a step.
        step_s: what a step takes.
    """

    def __init__(
        self,
        tenants: Sequence[Tenant],
        *,
        num_blocks: int = 300,
        max_batch_size: int = 8,
        max_rows: int = 64,
        max_len: int = 200,
        drafted: int = 0,
        step_s: float = STEP_S,
    ) -> None:
        super().__init__()
        self.now_s = 0.0
        self.accounts = {
            tenant.name: TenantAccount(tenant, bytes([number]) * 16) for number, tenant in enumerate(tenants)
        }
        self.pool = BlockPool(num_blocks, BLOCK_SIZE)
        limits = SchedulerLimits(max_batch_size, max_rows, max_tree_nodes=8)
        self.scheduler = Scheduler(self.pool, limits, StepTime(max_rows, [(1, step_s), (max_rows, step_s)]))
        self.info = ServerInfo("fake", "f", VOCAB_SIZE, max_len, 64, (), max_batch_size, "0")
        self.core = EngineCore(self.scheduler, self, self.info, lambda: self.now_s)
        self.drafted = drafted
        self.step_s = step_s
        self.steps: list[Step] = []
        self.prompts: dict[int, list[int]] = {}
        self.answers: dict[int, list[int]] = defaultdict(list)
        self.max_tokens: dict[int, int] = {}
        self.tenant_of: dict[int, str] = {}
        self.committed_at: dict[int, list[int]] = defaultdict(list)  # steps of a session's verdicts
        self.cached: dict[int, int] = {}
        self._schedule: Schedule | None = None
        self._begun = Step()

    def open(
        self,
        tenant: str,
        prompt: Sequence[int],
        max_tokens: int,
        priority: int = 0,
        salt: bytes = b"",
        num_committed: int = 0,
        **sampling: int,
    ) -> int:
        """A session whose answer has so many tokens already, from another verifier; its handle."""
        handle = len(self.prompts)
        self.prompts[handle], self.tenant_of[handle] = list(prompt), tenant
        self.max_tokens[handle] = max_tokens
        committed = answer(prompt, num_committed)
        self.answers[handle] += committed
        params = SamplingParams(max_tokens=max_tokens, **sampling)
        message = OpenSession(
            str(handle), tuple(prompt), tuple(committed), params, "f", "edge", "specedge", priority, salt
        )
        self.core.open(handle, message, None, self.accounts[tenant])
        return handle

    def launch(self, schedule: Schedule):  # type: ignore[no-untyped-def]
        self._schedule = schedule
        self._begun = Step()
        for session in self.scheduler.running:
            self._begun.running[session.tenant.name] += 1
            self._begun.live[session.tenant.name] += session.trie.num_live
            self._begun.wanted += session.num_uncomputed
        return super().launch(schedule)

    def step(self) -> Step | None:
        """One step; None if there was nothing to do, and then time passes until there may be."""
        for session in self.scheduler.running:
            if self.drafted and session.num_uncomputed == 1 and not session.trie.num_live:
                self._draft(session.handle)
        self._schedule = None
        result = self.core.step()
        self._check()
        done = None
        if result.report is None:
            self.now_s += min(result.wait_s, 1.0)
        else:
            assert self._schedule is not None
            self.now_s += self.step_s
            done = self._begun
            for item in self._schedule.planned:
                name = self.tenant_of[item.session.handle]
                done.rows[name] += item.num_rows
                done.nodes[name] += item.num_nodes
                done.roots[name] += item.samples
            self.steps.append(done)
        for handle, event in result.events:
            if isinstance(event, SessionOpened):
                self.cached[handle] = event.num_cached_tokens
            elif isinstance(event, Verdict):
                self.answers[handle] += event.token_ids
                self.committed_at[handle].append(len(self.steps) - 1)
        return done

    def advance(self, num_steps: int) -> list[Step]:
        """So many steps, of which each computes something."""
        return [step for _ in range(num_steps) if (step := self.step()) is not None]

    def finish(self, most: int = 5000) -> None:
        """Run until every session has its whole answer, and compare them with the target's."""
        for _ in range(most):
            if not self.core.num_sessions:
                break
            self.step()
        assert not self.core.num_sessions, "a session was never served"
        for handle, prompt in self.prompts.items():
            assert self.answers[handle] == answer(prompt, self.max_tokens[handle])
        assert self.pool.num_held == 0
        for account in self.accounts.values():
            assert (account.num_running, account.num_waiting, account.num_blocks) == (0, 0, 0)

    def _draft(self, handle: int) -> None:
        committed = self.prompts[handle] + self.answers[handle]
        tokens = answer(committed, self.drafted)
        first = self.core._sessions[handle].trie.num_nodes
        parents = [~(len(committed) - 1), *range(first, first + len(tokens) - 1)]
        self.core.draft(handle, DraftNodes(tokens, parents, [-0.05] * len(tokens)))

    def _check(self) -> None:
        if len(self.steps) % 8 == 0:
            self.pool.check_integrity()
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert len(running) <= self.scheduler.limits.max_batch_size
        for account in self.accounts.values():
            own = [session for session in running if session.account is account]
            assert account.num_running == len(own)
            assert account.num_waiting == sum(session.account is account for session in waiting)
            assert account.num_blocks == sum(session.blocks.num_blocks for session in own)
            if account.limits.kv_share is not None and len(own) > 1:
                assert account.num_blocks <= account.max_blocks(self.pool.num_blocks)
