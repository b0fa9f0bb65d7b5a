"""Runs one scenario: users, edges, links and verifiers in virtual time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from statistics import median

from specedge.block_pool import BlockPool
from specedge.drafting.core import DraftCore
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.drafting.draft_stats import DrafterStats
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, System, Verdict
from specedge_bench.simulation.edge import SimulatedEdge
from specedge_bench.simulation.events import DeviceClock, EventQueue
from specedge_bench.simulation.link import Link
from specedge_bench.simulation.models import FIRST_PROMPT_TOKEN, LocalDraft, ModelledDraft, ModelledTarget, TraceReplay
from specedge_bench.simulation.result import Answer, SimResult, burst_gaps, percentiles_ms, token_gaps
from specedge_bench.simulation.scenario import Mode, Progress, Replayed, Scenario
from specedge_bench.simulation.totals import VerifierTotals
from specedge_bench.simulation.verifier import SimulatedVerifier
from specedge_verifier.core import EngineCore
from specedge_verifier.local_drafts import LocalDrafts
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.waiting import BatchType

_BLOCK_SIZE = 16
_VOCAB_SIZE = 1 << 31
_PROACTIVE_DECAY = 0.95  # as the edge's settings have it
_SLOTS_PER_NODE = 8  # of the draft's KV per session and node of the budget: enough that nobody ever starves
_WARM_UP_ROWS = (1, 8, 32, 128)  # as the verifier times them when it starts


def simulate(scenario: Scenario, on_progress: Progress | None = None) -> SimResult:
    """Runs a scenario to the end of its last answer."""
    return _Simulation(scenario, on_progress or (lambda done, total: None)).run()


class _Place:
    """An edge, its verifier, and the connection between them."""

    def __init__(self, edge: SimulatedEdge | None, drafter_id: str, verifier: SimulatedVerifier) -> None:
        self.edge = edge
        self.drafter_id = drafter_id
        self.verifier = verifier
        self.up: Link
        self.down: Link


class _Simulation:
    def __init__(self, scenario: Scenario, on_progress: Progress) -> None:
        self._scenario = scenario
        self._on_progress = on_progress
        self._events = EventQueue()
        self._random = Random(scenario.seed)
        self._replay = TraceReplay(scenario.trace)
        self._draft = ModelledDraft(self._replay)
        self._num_positions = len(scenario.trace.ranks)
        self._answers: list[Answer] = []
        self._num_done = 0
        self._num_asked = 0
        self._num_answers = 0
        self._verifiers = [self._new_verifier() for _ in range(scenario.num_verifiers)]
        self._places = [self._new_place(index) for index in range(scenario.num_edges)]

    def run(self) -> SimResult:
        if self._scenario.warm_up:
            self._ask_all(self._scenario.warm_up)
            self._forget()
        self._ask_all(self._scenario.replayed)
        return self._result()

    def _ask_all(self, replayed: Sequence[Sequence[Replayed]]) -> None:
        scenario = self._scenario
        num_each = 1 if scenario.arrival_rate is not None else scenario.requests_per_user
        self._num_answers = sum(map(len, replayed)) if replayed else scenario.num_sessions * num_each
        arrival_s = self._events.now_s
        for user in range(scenario.num_sessions):
            place = self._places[user % len(self._places)]
            if scenario.arrival_rate is not None:
                arrival_s += self._random.expovariate(scenario.arrival_rate)
            requests = iter(replayed[user]) if replayed else self._draw(num_each)
            self._events.at(arrival_s, partial(self._ask, place, requests))
        self._events.run()
        assert self._num_done == self._num_answers, f"{self._num_done} of {self._num_answers} answers finished"
        for verifier in self._verifiers:
            assert verifier.core.num_sessions == 0

    def _forget(self) -> None:
        """What was counted counts no more; what was learnt stays."""
        self._answers, self._num_done = [], 0
        for verifier in self._verifiers:
            verifier.totals = VerifierTotals()
            verifier.clock.busy_s = 0.0
            verifier.core.scheduler.num_preemptions = 0
            if verifier.local_draft is not None:
                verifier.local_draft.busy_s = 0.0
        for place in self._places:
            if place.edge is not None:
                place.edge.busy_s = 0.0
                place.edge.core.stats = DrafterStats()

    def _draw(self, num_requests: int) -> Iterator[Replayed]:
        scenario = self._scenario
        for _ in range(num_requests):
            num_prompt, num_answer = self._length(scenario.num_prompt_tokens), self._length(scenario.max_tokens)
            yield Replayed(num_prompt, num_answer, num_prompt + self._random.randrange(self._num_positions))

    def _ask(self, place: _Place, requests: Iterator[Replayed]) -> None:
        """One user's next request; another one follows until none is left."""
        request = next(requests, None)
        if request is None:
            return
        scenario, handle, num_prompt = self._scenario, self._num_asked, request.num_prompt_tokens
        self._num_asked += 1
        # Distinct prompts share nothing in the prefix cache; a session's seed is its place in the trace.
        prompt_ids = (FIRST_PROMPT_TOKEN + handle,) * num_prompt
        seed = (request.trace_start - num_prompt) % self._num_positions
        sampling = SamplingParams(temperature=0.0, seed=seed, max_tokens=request.num_answer_tokens, ignore_eos=True)
        answer = Answer(self._events.now_s, [])
        self._answers.append(answer)
        system: System = "specedge" if place.drafter_id else "autoregressive"
        message = OpenSession(str(handle), prompt_ids, (), sampling, "", place.drafter_id, system)
        finish = partial(self._finish, place, requests)
        receive = partial(self._receive, place, handle, answer, finish)
        place.up.send(partial(place.verifier.open, handle, message, partial(self._send_verdict, place, receive)))
        if place.edge is not None:
            drafting = DraftRequest(str(handle), prompt_ids, sampling, (), scenario.max_live_nodes)
            place.edge.open(handle, drafting, partial(self._send_nodes, place, handle))

    def _send_verdict(self, place: _Place, receive: Callable[[Verdict], None], verdict: Verdict) -> None:
        place.down.send(partial(receive, verdict))

    def _send_nodes(self, place: _Place, handle: int, nodes: DraftNodes) -> None:
        place.up.send(partial(place.verifier.draft, handle, nodes))

    def _receive(
        self, place: _Place, handle: int, answer: Answer, finish: Callable[[], None], verdict: Verdict
    ) -> None:
        answer.bursts.append((self._events.now_s, len(verdict.token_ids)))
        if place.edge is not None:
            place.edge.verdict(handle, verdict.token_ids)
            if verdict.finish_reason:
                place.edge.close(handle)
        if verdict.finish_reason:
            finish()

    def _finish(self, place: _Place, requests: Iterator[Replayed]) -> None:
        self._num_done += 1
        self._on_progress(self._num_done, self._num_answers)
        self._ask(place, requests)

    def _length(self, mean: int) -> int:
        spread = self._scenario.length_spread
        return max(1, round(mean * self._random.uniform(1 - spread, 1 + spread)))

    @property
    def _max_len(self) -> int:
        scenario = self._scenario
        drawn = int((1 + scenario.length_spread) * (scenario.num_prompt_tokens + scenario.max_tokens))
        requests = (request for requests in (*scenario.warm_up, *scenario.replayed) for request in requests)
        return 2 + max((request.num_prompt_tokens + request.num_answer_tokens for request in requests), default=drawn)

    def _new_verifier(self) -> SimulatedVerifier:
        scenario = self._scenario
        clock = DeviceClock(self._events)
        target = ModelledTarget(scenario.verifier_curve, clock, scenario.verifier_host_s)
        limits = SchedulerLimits(
            max_batch_size=scenario.max_batch_size,
            max_num_batched_tokens=scenario.max_num_batched_tokens,
            max_tree_nodes=scenario.max_tree_nodes,
            batch_type=BatchType(scenario.batch_type),
        )
        blocks_per_session = -(-(self._max_len + scenario.max_tree_nodes) // _BLOCK_SIZE) + 1
        num_blocks = scenario.num_kv_blocks or scenario.max_batch_size * blocks_per_session
        warm_up = [
            (rows, scenario.verifier_curve.seconds(rows, rows, 1) + scenario.verifier_host_s)
            for rows in _WARM_UP_ROWS
            if rows <= scenario.max_num_batched_tokens
        ]
        step_time = StepTime(scenario.max_num_batched_tokens, warm_up)
        scheduler = Scheduler(BlockPool(num_blocks, _BLOCK_SIZE), limits, step_time)
        info = ServerInfo("", "", _VOCAB_SIZE, self._max_len, scenario.max_live_nodes, (), scenario.max_batch_size, "")
        if scenario.system != "server-only":
            return SimulatedVerifier(self._events, EngineCore(scheduler, target, info, clock), clock)
        draft = LocalDraft(self._replay, scenario.draft_curve, clock, scenario.edge_host_s)
        settings, num_slots = self._drafting("streamed"), self._num_draft_slots(scenario.max_batch_size)
        drafts = LocalDrafts(draft, settings, num_slots, "server", clock)
        return SimulatedVerifier(self._events, EngineCore(scheduler, target, info, clock, drafts), clock, draft)

    def _new_place(self, index: int) -> _Place:
        scenario = self._scenario
        verifier = self._verifiers[index % len(self._verifiers)]
        edge, drafter_id = None, ""
        if scenario.system == "specedge":
            drafter_id = f"edge-{index}"
            num_users = -(-scenario.num_sessions // scenario.num_edges)
            core: DraftCore[int] = DraftCore(
                self._draft, self._drafting(scenario.mode), self._num_draft_slots(num_users)
            )
            edge = SimulatedEdge(self._events, core, self._draft, scenario.draft_curve, host_s=scenario.edge_host_s)
        place = _Place(edge, drafter_id, verifier)
        place.up, place.down = (
            Link(self._events, scenario.rtt_s / 2, scenario.jitter_s, Random(f"{scenario.seed} {index} {way}"))
            for way in ("up", "down")
        )
        return place

    def _drafting(self, mode: Mode) -> DraftingSettings:
        growth = self._scenario.growth
        return DraftingSettings(mode=mode, growth=growth, proactive=replace(growth, decay=_PROACTIVE_DECAY))

    def _num_draft_slots(self, num_sessions: int) -> int:
        return num_sessions * (self._max_len + _SLOTS_PER_NODE * self._scenario.growth.max_budget)

    def _result(self) -> SimResult:
        answers = self._answers
        wall_s = max(answer.bursts[-1][0] for answer in answers) - min(answer.sent_s for answer in answers)
        totals = VerifierTotals()
        for verifier in self._verifiers:
            totals.add(verifier.totals)
        edges = [place.edge for place in self._places if place.edge is not None]
        local = [verifier.local_draft for verifier in self._verifiers if verifier.local_draft is not None]
        draft_busy_s = sum(edge.busy_s for edge in edges) + sum(draft.busy_s for draft in local)
        num_drafters = len(edges) + len(local)
        verifier_busy_s = sum(verifier.clock.busy_s for verifier in self._verifiers)
        num_tokens = sum(answer.num_tokens for answer in answers)
        tpots = [tpot for answer in answers if (tpot := answer.tpot_s) is not None]
        return SimResult(
            num_answers=len(answers),
            num_tokens=num_tokens,
            wall_s=wall_s,
            tokens_per_s=num_tokens / wall_s,
            itl_ms=percentiles_ms(token_gaps(answers)),
            burst_ms=percentiles_ms(burst_gaps(answers)),
            tpot_ms=1e3 * median(tpots) if tpots else float("nan"),
            ttft_ms=percentiles_ms([answer.ttft_s for answer in answers]),
            tokens_per_verification=totals.num_committed / totals.num_verifications,
            nodes_per_verification=totals.num_nodes / totals.num_verifications,
            with_tree=totals.num_trees / totals.num_verifications,
            verifier_busy=verifier_busy_s / wall_s / len(self._verifiers),
            draft_busy=draft_busy_s / wall_s / num_drafters if num_drafters else 0.0,
            verifier_busy_s=verifier_busy_s,
            draft_busy_s=draft_busy_s,
            sessions_per_step=totals.num_verifications / totals.num_steps,
            guesses_hit=sum(edge.core.stats.num_guesses_hit for edge in edges),
            guesses_missed=sum(edge.core.stats.num_guesses_missed for edge in edges),
            num_preemptions=sum(verifier.core.scheduler.num_preemptions for verifier in self._verifiers),
        )
