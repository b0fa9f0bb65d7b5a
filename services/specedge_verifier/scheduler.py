"""What runs in the next step: one rule, computed tokens catch up with committed ones under a token budget.

Rule 1  Prefill, chunked prefill, recomputing after preemption, plain decoding and tree verification are the same
        thing: a session takes its next uncomputed committed tokens; when these reach its last token (the root) it may
        take draft nodes too, and a token will be sampled.
Rule 2  Every decoding session in the step gets its root row first; then chunks of prompts, oldest first; then draft
        nodes of all sessions in order of what they are worth (draft_budget).
Rule 3  Short of blocks, draft nodes go first; then the newest session is preempted. A running session never fails
        for lack of blocks.
Rule 4  Places, blocks and rows are shared fairly between tenants by weight (admission, fair_share); a tenant alone has
        them all. Priority and order count within a tenant.
Rule 5  Deciding changes nothing but block reservations and preemptions; `settle` books what the step brought, and
        `learn` makes later decisions better by it.
"""

from bisect import insort
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter

import numpy as np

from specedge.block_pool import BlockPool
from specedge.errors import OutOfBlocks
from specedge.node_store import IntArray, NodeStore
from specedge.row_cap import RowCap
from specedge_verifier.acceptance import Walk
from specedge_verifier.admission import displaced, first_to_go, next_session
from specedge_verifier.answer_length import AnswerLengths
from specedge_verifier.calibration import Calibrations
from specedge_verifier.draft_budget import draft_budget
from specedge_verifier.draft_trees import DraftTrees, bare_roots, lay_out
from specedge_verifier.fair_share import fair_draft_budget
from specedge_verifier.service_rate import ServiceRate
from specedge_verifier.session import Session
from specedge_verifier.step_time import StepTime
from specedge_verifier.tenant_account import TenantAccount
from specedge_verifier.tenant_rows import book_rows, divide_prompts, node_parts, pace_roots
from specedge_verifier.waiting import REST, RUN_ALL, BatchType, Decision, Readiness, decide

_MAX_PROMPT_LOGITS = 128
"""Rows of one step after which log-probabilities of prompts are computed: as many logits as a start has room for."""

_order = attrgetter("order")
_item_order = attrgetter("session.order")


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one step and of the running set.

    Attributes:
        max_batch_size: sessions running at once.
        max_num_batched_tokens: rows per step, all kinds together.
        max_tree_nodes: draft nodes of one session per step.
        batch_type: the waiting rule.
        stall_s: how long the published waiting rules wait for a draft at most.
    """

    max_batch_size: int
    max_num_batched_tokens: int
    max_tree_nodes: int
    batch_type: BatchType = BatchType.READY
    stall_s: float = 1.0


@dataclass(slots=True, eq=False)
class Planned:
    """One session's part of a step: `num_chunk` committed tokens from `start` on, then `num_nodes` draft nodes.

    Attributes:
        samples: whether the chunk reaches the session's last committed token (the root), so that a token is sampled.
        queue_s: how long the session has had something to compute.
    """

    session: Session
    start: int
    num_chunk: int
    samples: bool
    queue_s: float
    num_nodes: int = 0

    @property
    def num_rows(self) -> int:
        return self.num_chunk + self.num_nodes


@dataclass(slots=True)
class Schedule:
    """One step as plain data: sessions in row order, or how long to wait for news (inf: until something arrives).

    Attributes:
        planned: the sessions.
        trees: the draft nodes of those that sample, one tree each.
        wants_logprobs: whether any of them is to be told log-probabilities.
    """

    planned: list[Planned]
    trees: DraftTrees
    wait_s: float = 0.0
    wants_logprobs: bool = False

    @property
    def num_rows(self) -> int:
        return sum(item.num_chunk for item in self.planned) + len(self.trees.rows)


Lesson = tuple[Schedule, list[Walk | None], float]
"""A finished step, its walks and its seconds."""


class Scheduler:
    """Decides steps and books their results; knows no tensors.

    Args:
        pool: KV blocks; must hold at least one session of maximal length.
        limits: bounds of a step.
        step_time: the curve learnt from warm-up on.
    """

    def __init__(self, pool: BlockPool, limits: SchedulerLimits, step_time: StepTime) -> None:
        self.pool = pool
        self.limits = limits
        self.step_time = step_time
        self.cap = RowCap(limits.max_num_batched_tokens)
        self.calibrations = Calibrations()
        self.service_rate = ServiceRate()
        self.answer_lengths = AnswerLengths()
        self.store = NodeStore()
        self.waiting: list[Session] = []
        self.running: list[Session] = []
        self.num_preemptions = 0
        self._accounts: list[TenantAccount] = []  # of all sessions
        self._has_limits = False  # whether one of these bounds blocks or rows
        self._paced_s = inf  # until a session may decode that its tenant's pace holds back
        self._free_since_s = 0.0
        self._lesson: Lesson | None = None

    def add(self, session: Session) -> None:
        account = session.account
        if not (account.num_running or account.num_waiting):
            self._accounts.append(account)
        account.num_waiting += 1
        insort(self.waiting, session, key=_order)

    def remove(self, session: Session) -> None:
        """Forget a finished or cancelled session and free what it holds."""
        account = session.account
        if session in self.running:
            self.running.remove(session)
            account.num_running -= 1
            max_tokens = session.params.max_tokens
            self.answer_lengths.observe(session.num_generated, session.num_generated >= max_tokens)
        else:
            self.waiting.remove(session)
            account.num_waiting -= 1
        if not (account.num_running or account.num_waiting):
            self._accounts.remove(account)
        session.blocks.release()
        session.trie.release()

    def schedule(self, now_s: float) -> Schedule:
        self._has_limits = any(account.limits.is_bounded for account in self._accounts)
        self._admit()
        decision = self._decide(now_s)
        if not decision.run:
            return Schedule([], bare_roots(0), decision.wait_s)
        planned = self._plan_rows(decision, now_s)
        self._reserve_rows(planned)
        wants_logprobs = any(item.session.wants_logprobs for item in planned)
        schedule = Schedule(planned, self._plan_nodes(planned), 0.0 if planned else self._paced_s, wants_logprobs)
        if self._has_limits or len(self._accounts) > 1:
            book_rows(self._accounts, planned)
        return schedule

    def settle(self, schedule: Schedule, walks: list[Walk | None], now_s: float, step_s: float) -> None:
        """Book a finished step: commit, keep the accepted path's KV, free the rest.

        Args:
            schedule: as returned by `schedule`.
            walks: per planned session the accepted path, already cut by the stop rules; None where nothing was sampled.
            now_s: time of the verdicts.
            step_s: how long the step took.
        """
        for item, walk in zip(schedule.planned, walks, strict=True):
            session = item.session
            trie, num_computed = session.trie, item.start + item.num_chunk
            if walk is not None:
                usage = session.account.usage
                usage.verified += 1 + item.num_nodes
                usage.committed += len(walk.tokens)
                num_computed += len(walk.rows)
                trie.commit(walk.tokens)
                if session.counts is not None:
                    session.counts.append(walk.tokens)
                has_nodes = trie.num_live > 0
                session.gap.verdict(now_s, has_nodes)
                session.ready_since_s = now_s if has_nodes or not session.is_drafted else None
            session.num_computed = num_computed
            session.blocks.settle(trie.committed, num_computed)
        self._lesson = schedule, walks, step_s
        committed = [len(walk.tokens) for walk in walks if walk is not None]
        self.service_rate.observe(len(committed), sum(committed), step_s, now_s)
        self._free_since_s = now_s
        self.cap.stepped()

    def retreat(self, schedule: Schedule) -> bool:
        """Memory ran out in this step, which brought nothing: plan smaller ones; False: it had a single row."""
        return self.cap.shrink(schedule.num_rows, schedule.num_rows - len(schedule.trees.rows))

    def learn(self) -> None:
        """Learn from the last finished step how long steps take and what scores were worth, drafter by drafter."""
        if self._lesson is None:
            return
        (schedule, walks, step_s), self._lesson = self._lesson, None
        self.step_time.observe(schedule.num_rows, step_s)
        self.calibrations.age()
        trees = schedule.trees
        drafters, counts, num_accepted = [], [], []
        rows: list[int] = []  # of accepted nodes, from their tree's root
        for item, walk in zip(schedule.planned, walks, strict=True):
            if walk is not None:
                num_accepted.append(len(walk.rows))
                rows += walk.rows
                session = item.session
                if session.speculative:
                    drafters.append(session.drafter_id)
                    counts.append(item.num_nodes)
        if drafters:
            is_accepted = np.zeros(trees.num_rows)
            is_accepted[np.array(rows, dtype=np.int64) + trees.roots.repeat(num_accepted)] = 1.0
            self.calibrations.observe(drafters, counts, trees.scores, is_accepted[trees.rows])

    def _admit(self) -> None:
        """Move waiting sessions to the running set while a place and blocks for all their tokens are free."""
        is_shared = len(self._accounts) > 1
        while self.waiting and (is_shared or len(self.running) < self.limits.max_batch_size):
            session: Session | None = self.waiting[0]
            if is_shared or self._has_limits:
                session = next_session(self.waiting, self.limits.max_batch_size, self.pool)
            if session is None or not self._make_room(session, 0):
                return
            # What the cache has was computed without logits.
            num_cached = session.blocks.match_prefix(session.tokens) if session.is_prompt_scored else 0
            missing = -(-(len(session.tokens) + 1 - num_cached) // self.pool.block_size)
            if self.running and not self._make_room(session, missing):
                session.blocks.withdraw()
                return
            session.num_computed = num_cached
            session.num_cached = min(num_cached, session.num_prompt)
            self.waiting.remove(session)
            insort(self.running, session, key=_order)
            session.account.num_waiting -= 1
            session.account.num_running += 1

    def _make_room(self, session: Session, num_blocks: int) -> bool:
        """Whether there is a place and so many blocks for a waiting session; other tenants' may have to go for it."""
        num_places = len(self.running) + 1 - self.limits.max_batch_size
        short = num_blocks - self.pool.num_free
        if num_places <= 0 and short <= 0:
            return True
        if len(self._accounts) > 1:
            for other in displaced(session, num_places, short, self.running, self.limits.max_batch_size, self.pool):
                self._preempt(other)
        return len(self.running) < self.limits.max_batch_size and num_blocks <= self.pool.num_free

    def _decide(self, now_s: float) -> Decision:
        if self.limits.batch_type is BatchType.READY:  # never waits, whatever the sessions have
            return RUN_ALL if any(not session.is_paused for session in self.running) else REST
        has_urgent, num_ready, num_fillable = False, 0, 0
        for session in self.running:
            if session.is_paused:
                continue
            if session.num_uncomputed > 1 or not session.is_drafted:
                has_urgent = True
                continue
            if session.trie.num_live:
                num_ready += 1
            else:
                num_fillable += 1
        if not (has_urgent or num_ready or num_fillable):
            return REST
        idle_s = max(0.0, now_s - self._free_since_s)
        readiness = Readiness(has_urgent, num_ready, num_fillable, idle_s)
        return decide(self.limits.batch_type, readiness, self.limits.stall_s)

    def _plan_rows(self, decision: Decision, now_s: float) -> list[Planned]:
        """Committed tokens per session: decoding sessions in order of service, then prompts in what budget is left."""
        budget = self.cap.rows
        decoding, prefilling = [], []
        for session in self.running:
            if session.is_paused:
                continue
            if session.num_uncomputed > 1:
                prefilling.append(session)
            elif budget and (decision.fill or session.trie.num_live or not session.is_drafted):
                decoding.append(Planned(session, session.num_computed, 1, True, session.queued_s(now_s)))
                budget -= 1
        self._paced_s = inf
        if self._has_limits:
            decoding, self._paced_s = pace_roots(self._accounts, decoding, now_s)
        budget = self.cap.rows - len(decoding)
        rows, logits = divide_prompts(self._accounts, decoding, prefilling, budget, _MAX_PROMPT_LOGITS)
        for session in prefilling:
            if not rows.left:
                break
            account = session.account
            num_chunk = min(rows.available(account), session.num_uncomputed)
            if not session.is_prompt_scored:
                num_chunk = min(num_chunk, logits.available(account))
                logits.take(account, num_chunk)
            if not num_chunk:
                continue
            samples = num_chunk == session.num_uncomputed
            decoding.append(Planned(session, session.num_computed, num_chunk, samples, session.queued_s(now_s)))
            rows.take(account, num_chunk)
        return decoding

    def _reserve_rows(self, planned: list[Planned]) -> None:
        """Hold blocks for every planned committed token, preempting the newest sessions while they are missing."""
        preempted: set[Session] = set()
        short = [item for item in planned if item.start + item.num_chunk > item.session.blocks.num_slots]
        for item in sorted(short, key=_item_order):
            blocks, end = item.session.blocks, item.start + item.num_chunk
            while item.session not in preempted:
                try:
                    blocks.reserve(end)
                    break
                except OutOfBlocks:
                    other = first_to_go(item.session, blocks.num_missing(end), self.running, self.pool)
                    preempted.add(self._preempt(other))
        if preempted:
            planned[:] = [item for item in planned if item.session not in preempted]

    def _preempt(self, session: Session) -> Session:
        """Back to the queue; its committed tokens are prefilled again later, its draft nodes stay."""
        self.running.remove(session)
        session.blocks.release()
        session.num_computed = 0
        self.num_preemptions += 1
        session.account.num_running -= 1
        session.account.num_waiting += 1
        insort(self.waiting, session, key=_order)
        return session

    def _plan_nodes(self, planned: list[Planned]) -> DraftTrees:
        """Give each session that samples its share of the draft budget, as far as blocks reach."""
        sampling = [item for item in planned if item.samples]
        drafted = [item for item in sampling if item.session.trie.num_live and item.session.is_drafted]
        if not drafted:
            return bare_roots(len(sampling))
        sessions, store = [item.session for item in drafted], self.store
        places, counts = store.rank([session.trie.live_places for session in sessions], self.limits.max_tree_nodes)
        owners = np.repeat(np.arange(len(sessions)), counts)
        places, owners, counts = self._reachable(sessions, places, owners, counts)
        root_losses = store.losses.take([session.trie.root_place for session in sessions])
        scores = root_losses.take(owners) - store.losses.take(places)
        num_rows = sum([item.num_chunk for item in planned])
        probabilities = self.calibrations.probabilities([session.drafter_id for session in sessions], counts, scores)
        choose = partial(
            draft_budget,
            num_rows=num_rows,
            num_tokens=len(sampling),
            max_nodes=self.cap.rows - num_rows,
            step_time=self.step_time,
        )
        if len(self._accounts) == 1 and not self._has_limits:
            chosen = choose(probabilities, owners)
        else:
            tenants = np.array([self._accounts.index(session.account) for session in sessions])
            parts = node_parts(self._accounts, planned)
            chosen = fair_draft_budget(probabilities, owners, tenants, parts, self.cap.rows - num_rows, choose)
        for item, count in zip(drafted, chosen.tolist(), strict=False):
            if count:
                blocks, end = item.session.blocks, item.start + item.num_chunk
                item.num_nodes = count
                if end + count > blocks.num_slots:
                    room = blocks.num_slots - end + blocks.num_spare * self.pool.block_size
                    if count > room:
                        item.num_nodes = count = room
                    blocks.reserve(end + count)
        ends = counts.cumsum() - counts + [item.num_nodes for item in drafted]
        is_chosen = np.arange(len(places)) < ends.take(owners)
        roots = [item.session.trie.root_place for item in sampling]
        sizes = np.array([item.num_nodes for item in sampling])
        return lay_out(store, roots, places[is_chosen], scores[is_chosen], sizes)

    def _reachable(
        self, sessions: list[Session], places: IntArray, owners: IntArray, counts: IntArray
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Leave out nodes as deep as the answer may still grow: they bring nothing."""
        deepest = np.array([session.deepest_position for session in sessions])
        frontiers = self.store.positions.take([session.trie.root_place for session in sessions])
        if int((deepest - frontiers).min()) >= self.limits.max_tree_nodes:
            return places, owners, counts
        is_reached = self.store.positions[places] <= deepest[owners]
        places, owners = places[is_reached], owners[is_reached]
        return places, owners, np.bincount(owners, minlength=len(sessions))
