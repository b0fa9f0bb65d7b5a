"""Verifiers with the edges they serve: the part of a scenario that no other part has any influence on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from specedge.block_pool import BlockPool
from specedge.drafting.core import DraftCore
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.drafting.draft_stats import DrafterStats
from specedge.errors import CapacityExceeded
from specedge.sampling import SamplingParams
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, System, Verdict
from specedge_bench.network.shape import Shape
from specedge_bench.simulation.choice import OneVerifier, RandomVerifier, TwoChoices
from specedge_bench.simulation.edge import SimulatedEdge
from specedge_bench.simulation.events import DeviceClock, EventQueue
from specedge_bench.simulation.link import Link
from specedge_bench.simulation.message_bytes import draft_bytes, open_bytes, verdict_bytes
from specedge_bench.simulation.models import FIRST_PROMPT_TOKEN, LocalDraft, ModelledDraft, ModelledTarget, TraceReplay
from specedge_bench.simulation.result import Answer
from specedge_bench.simulation.scenario import BLOCK_SIZE, Mode, Progress, Replayed, Scenario, ScenarioError
from specedge_bench.simulation.totals import VerifierTotals
from specedge_bench.simulation.verifier import SimulatedVerifier
from specedge_bench.simulation.workload import User, users_of
from specedge_verifier.core import EngineCore
from specedge_verifier.local_drafts import LocalDrafts
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_report import StepReport
from specedge_verifier.step_time import StepTime
from specedge_verifier.waiting import BatchType

_VOCAB_SIZE = 1 << 31
_PROACTIVE_DECAY = 0.95  # as the edge's settings have it
_SLOTS_PER_NODE = 8  # of the draft's KV per session and node of the budget: enough that nobody ever starves
_WARM_UP_ROWS = (1, 8, 32, 128)  # as the verifier times them when it starts


@dataclass(slots=True)
class ShardOutcome:
    """What a shard brought.

    Attributes:
        answers: in the order in which they were asked for.
        totals: the verifiers'.
        steps: when each of their steps began, and what it did.
        verifier_busy_s, draft_busy_s: of the verifiers' devices, drafting on it included; of all that drafts.
        num_drafters: devices that draft.
        guesses_hit, guesses_missed: outcomes of proactive drafting.
        num_preemptions: for lack of KV blocks.
        num_drafted: draft nodes made.
        wasted: draft nodes of no use, by reason.
        bytes_up, bytes_down: between the edges and the verifier.
    """

    answers: list[Answer] = field(default_factory=list)
    totals: VerifierTotals = field(default_factory=VerifierTotals)
    steps: list[tuple[float, StepReport]] = field(default_factory=list)
    verifier_busy_s: float = 0.0
    draft_busy_s: float = 0.0
    num_drafters: int = 0
    guesses_hit: int = 0
    guesses_missed: int = 0
    num_preemptions: int = 0
    num_drafted: int = 0
    wasted: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0

    def since(self, before: "ShardOutcome") -> "ShardOutcome":
        """What an earlier outcome of the same shard does not have."""
        later = ShardOutcome(
            answers=self.answers[len(before.answers) :],
            totals=self.totals.since(before.totals),
            steps=self.steps[len(before.steps) :],
            num_drafters=self.num_drafters,
            wasted=self.wasted - before.wasted,
        )
        for name in _SUMS:
            setattr(later, name, getattr(self, name) - getattr(before, name))
        return later


_SUMS = (
    *("verifier_busy_s", "draft_busy_s", "guesses_hit", "guesses_missed", "num_preemptions", "num_drafted"),
    *("bytes_up", "bytes_down"),
)


def run_shard(scenario: Scenario, index: int, on_progress: Progress | None = None) -> ShardOutcome:
    """Runs the shard of this number to the end of its last answer."""
    users = [user for user in users_of(scenario) if user.edge % scenario.num_shards == index]
    return _Shard(scenario, index, users).run(on_progress or (lambda done, total: None))


class _Place:
    """An edge and its connections, one to each verifier it knows, on one line."""

    def __init__(
        self, index: int, edge: SimulatedEdge | None, up: Link, down: Link, num_verifiers: int, chooser: OneVerifier
    ) -> None:
        self.index = index
        self.edge = edge
        self.chooser = chooser
        self.ups = [up, *(up.another() for _ in range(num_verifiers - 1))]
        self.downs = [down, *(down.another() for _ in range(num_verifiers - 1))]


class _Shard:
    def __init__(self, scenario: Scenario, index: int, users: list[User]) -> None:
        self._scenario = scenario
        self._users = users
        self._events = EventQueue()
        self._replay = TraceReplay(scenario.trace)
        self._draft = ModelledDraft(self._replay)
        self._answers: list[Answer] = []
        self._num_received = 0
        self._num_tokens = sum(request.num_answer_tokens for user in users for request in user.requests)
        asked = (request for user in users for request in (*user.warm_up, *user.requests))
        lengths = (request.num_prompt_tokens + request.num_answer_tokens for request in asked)
        self._max_len = max(lengths, default=0) + 2
        self._numbers = scenario.verifiers_of(index)
        self._verifiers = [self._new_verifier() for _ in self._numbers]
        self._num_asking = 0  # users
        edges = range(index, scenario.num_edges, scenario.num_shards)
        self._places = {edge: self._new_place(edge) for edge in edges}

    def run(self, on_progress: Progress) -> ShardOutcome:
        self._answer_all([(user, user.warm_up) for user in self._users], lambda: None)
        before = self._outcome()
        self._num_received = 0
        requests = [(user, user.requests) for user in self._users]
        self._answer_all(requests, lambda: on_progress(self._num_received, self._num_tokens))
        on_progress(self._num_received, self._num_tokens)
        assert self._num_received == self._num_tokens, f"{self._num_received} of {self._num_tokens} tokens arrived"
        assert all(verifier.core.num_sessions == 0 for verifier in self._verifiers)
        return self._outcome().since(before)

    def _answer_all(self, asked: Sequence[tuple[User, Sequence[Replayed]]], on_look: Callable[[], None]) -> None:
        start_s = self._events.now_s
        self._num_asking = sum(bool(requests) for _, requests in asked)
        if self._num_asking:
            for place in self._places.values():
                place.chooser.start()
        for user, requests in asked:
            ask = partial(self._ask_next, self._places[user.edge], user.index, iter(requests))
            self._events.at(start_s + user.arrival_s, ask)
        self._events.run(on_look)

    def _ask_next(self, place: _Place, user: int, requests: Iterator[Replayed]) -> None:
        """A user's next request; another one follows until none is left."""
        request = next(requests, None)
        if request is None:
            self._num_asking -= 1
            return
        self._ask(place, user, request, requests)

    def _ask(self, place: _Place, user: int, request: Replayed, requests: Iterator[Replayed]) -> None:
        scenario, handle = self._scenario, len(self._answers)
        # Distinct prompts share nothing in the prefix cache; a session's seed is its place in the trace.
        prompt_ids = (FIRST_PROMPT_TOKEN + handle,) * request.num_prompt_tokens
        seed = (request.trace_start - request.num_prompt_tokens) % self._replay.num_positions
        sampling = SamplingParams(temperature=0.0, seed=seed, max_tokens=request.num_answer_tokens, ignore_eos=True)
        chosen = place.chooser.choose()
        verifier, up = self._verifiers[chosen], place.ups[chosen]
        number = self._numbers[chosen]
        answer = Answer(self._events.now_s, [], user, place.index, request.num_prompt_tokens, number)
        self._answers.append(answer)
        drafter_id = f"edge-{place.index}" if place.edge is not None else ""
        system: System = "specedge" if drafter_id else "autoregressive"
        message = OpenSession(str(handle), prompt_ids, (), sampling, "", drafter_id, system)
        receive = partial(self._receive, place, chosen, handle, answer, partial(self._ask_next, place, user, requests))
        on_verdict = partial(self._send_verdict, place.downs[chosen], receive)
        refused = partial(self._refused, place, user, request, requests)
        up.send(open_bytes(message), partial(self._open, place, chosen, handle, message, answer, on_verdict, refused))
        if place.edge is not None:
            drafting = DraftRequest(str(handle), prompt_ids, sampling, (), scenario.max_live_nodes)
            send = partial(self._send_nodes, up, partial(verifier.draft, handle), DraftEncoder())
            place.edge.open(handle, drafting, send)

    def _open(
        self,
        place: _Place,
        chosen: int,
        handle: int,
        message: OpenSession,
        answer: Answer,
        on_verdict: Callable[[Verdict], None],
        on_refusal: Callable[[float], None],
    ) -> None:
        """An opening has arrived at the verifier."""
        answer.opened_s = self._events.now_s
        try:
            answer.predicted_ttft_s = self._verifiers[chosen].admit(message)
        except CapacityExceeded as error:
            answer.retry_after_s = error.retry_after_s
            place.chooser.ended(chosen)
            if place.edge is not None:
                place.edge.close(handle)
            on_refusal(error.retry_after_s)
            return
        self._verifiers[chosen].open(handle, message, on_verdict)

    def _refused(
        self, place: _Place, user: int, request: Replayed, requests: Iterator[Replayed], retry_after_s: float
    ) -> None:
        """A user of a closed loop comes back when told to; who arrived at a rate goes away."""
        if self._scenario.arrival_rate is None:
            self._events.after(retry_after_s, partial(self._ask, place, user, request, requests))
            return
        self._num_tokens -= request.num_answer_tokens
        self._ask_next(place, user, requests)

    def _send_verdict(self, down: Link, receive: Callable[[Verdict], None], verdict: Verdict) -> None:
        down.send(verdict_bytes(verdict), partial(receive, verdict))

    def _send_nodes(
        self, up: Link, take: Callable[[DraftNodes], None], encoder: DraftEncoder, nodes: DraftNodes
    ) -> None:
        up.send(draft_bytes(encoder, nodes), partial(take, nodes))

    def _receive(
        self, place: _Place, chosen: int, handle: int, answer: Answer, ask_again: Callable[[], None], verdict: Verdict
    ) -> None:
        num_tokens = len(verdict.token_ids)
        self._num_received += num_tokens
        answer.bursts.append((self._events.now_s, num_tokens))
        if place.edge is not None:
            place.edge.verdict(handle, verdict.token_ids)
            if verdict.finish_reason:
                place.edge.close(handle)
        if verdict.finish_reason:
            place.chooser.ended(chosen)
            ask_again()

    def _new_verifier(self) -> SimulatedVerifier:
        scenario = self._scenario
        clock = DeviceClock(self._events)
        target = ModelledTarget(scenario.verifier_curve, clock, scenario.verifier_host_s, scenario.verifier_session_s)
        limits = SchedulerLimits(
            max_batch_size=scenario.max_batch_size,
            max_num_batched_tokens=scenario.max_num_batched_tokens,
            max_tree_nodes=scenario.max_tree_nodes,
            batch_type=BatchType(scenario.batch_type),
        )
        blocks_per_session = -(-(self._max_len + scenario.max_tree_nodes) // BLOCK_SIZE) + 1
        num_blocks = scenario.num_kv_blocks or scenario.max_batch_size * blocks_per_session
        if num_blocks * BLOCK_SIZE < self._max_len:
            raise ScenarioError(
                f"num_kv_blocks is {num_blocks}, at {BLOCK_SIZE} tokens each too few for a text of {self._max_len}"
            )
        warm_up = [
            (rows, scenario.verifier_curve.seconds(rows, rows, 1) + scenario.verifier_host_s)
            for rows in _WARM_UP_ROWS
            if rows <= scenario.max_num_batched_tokens
        ]
        step_time = StepTime(scenario.max_num_batched_tokens, warm_up)
        scheduler = Scheduler(BlockPool(num_blocks, BLOCK_SIZE), limits, step_time)
        info = ServerInfo("", "", _VOCAB_SIZE, self._max_len, scenario.max_live_nodes, (), scenario.max_batch_size, "")
        if scenario.system != "server-only":
            core = EngineCore(scheduler, target, info, clock)
            return SimulatedVerifier(self._events, core, clock, queue=scenario.queue)
        draft = LocalDraft(self._replay, scenario.draft_curve, clock, scenario.edge_host_s)
        settings = self._drafting("streamed")
        num_slots = min(num_blocks * BLOCK_SIZE, self._num_draft_slots(scenario.max_batch_size))
        drafts = LocalDrafts(draft, settings, num_slots, "server", clock)
        core = EngineCore(scheduler, target, info, clock, drafts)
        return SimulatedVerifier(self._events, core, clock, draft, drafts.core.stats, scenario.queue)

    def _new_place(self, index: int) -> _Place:
        scenario, edge = self._scenario, None
        if scenario.system == "specedge":
            num_users = -(-scenario.num_sessions // scenario.num_edges)
            core: DraftCore[int] = DraftCore(
                self._draft, self._drafting(scenario.mode), self._num_draft_slots(num_users)
            )
            edge = SimulatedEdge(self._events, core, self._draft, scenario.draft_curve, host_s=scenario.edge_host_s)
        network = scenario.network
        up, down = self._link(network.up, f"{index} up"), self._link(network.down, f"{index} down")
        return _Place(index, edge, up, down, len(self._verifiers), self._chooser(index))

    def _chooser(self, index: int) -> OneVerifier:
        scenario, num_verifiers = self._scenario, len(self._verifiers)
        dice = Random(f"{scenario.seed} {index} choice")
        if scenario.verifier_choice == "random":
            return RandomVerifier(num_verifiers, dice)
        if scenario.verifier_choice == "fixed" or num_verifiers == 1:
            return OneVerifier()
        return TwoChoices(
            self._events,
            num_verifiers,
            lambda chosen: LoadHint(self._verifiers[chosen].core.num_sessions, scenario.max_batch_size),
            scenario.network.up.delay_s,
            dice,
            lambda: not self._num_asking,
        )

    def _link(self, shape: Shape, name: str) -> Link:
        return Link(self._events, shape, Random(f"{self._scenario.seed} {name}").getrandbits(32))

    def _drafting(self, mode: Mode) -> DraftingSettings:
        growth = self._scenario.growth
        return DraftingSettings(mode=mode, growth=growth, proactive=replace(growth, decay=_PROACTIVE_DECAY))

    def _num_draft_slots(self, num_sessions: int) -> int:
        return num_sessions * (self._max_len + _SLOTS_PER_NODE * self._scenario.growth.max_budget)

    def _outcome(self) -> ShardOutcome:
        verifiers = self._verifiers
        end_s = max((answer.bursts[-1][0] for answer in self._answers if answer.bursts), default=0.0)
        edges = [place.edge for place in self._places.values() if place.edge is not None]
        stats: list[DrafterStats] = [edge.core.stats for edge in edges]
        outcome = ShardOutcome(
            answers=list(self._answers),
            steps=[step for verifier in verifiers for step in verifier.steps],
            verifier_busy_s=sum(verifier.clock.busy_s for verifier in verifiers),
            draft_busy_s=sum(edge.busy_before_s(end_s) for edge in edges),
            num_drafters=len(edges),
            num_preemptions=sum(verifier.core.scheduler.num_preemptions for verifier in verifiers),
            bytes_up=sum(link.num_bytes for place in self._places.values() for link in place.ups),
            bytes_down=sum(link.num_bytes for place in self._places.values() for link in place.downs),
        )
        for verifier in verifiers:
            outcome.totals.add(verifier.totals)
            if verifier.local_draft is not None and verifier.draft_stats is not None:
                outcome.draft_busy_s += verifier.local_draft.busy_s
                outcome.num_drafters += 1
                stats.append(verifier.draft_stats)
        for of_drafter in stats:
            outcome.guesses_hit += of_drafter.num_guesses_hit
            outcome.guesses_missed += of_drafter.num_guesses_missed
            outcome.num_drafted += of_drafter.num_drafted
            outcome.wasted.update(of_drafter.wasted)
        return outcome
