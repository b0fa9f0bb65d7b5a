"""Ten times as many requests as can be served, in virtual time: the real scheduler, engine core and quota."""

from functools import cache
from random import Random

import pytest
from simulated import scenario

from specedge.block_pool import BlockPool
from specedge.errors import CapacityExceeded
from specedge.sampling import SamplingParams
from specedge.wire.messages import OpenSession, ServerInfo
from specedge_bench.curves import straight_curve
from specedge_bench.simulation.events import DeviceClock, EventQueue
from specedge_bench.simulation.models import ModelledTarget
from specedge_bench.simulation.result import Answer, SimResult
from specedge_bench.simulation.scenario import Scenario
from specedge_bench.simulation.shard import run_shard
from specedge_bench.simulation.simulation import result_of
from specedge_bench.simulation.verifier import SimulatedVerifier
from specedge_bench.statistics import percentile
from specedge_verifier.core import EngineCore
from specedge_verifier.queue_bounds import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, QueueLimits
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

PLACES = 8
TTFT_S = 2.0
QUEUE = QueueLimits(max_sessions=PLACES + 64, max_queued_tokens=2**16, max_predicted_ttft_s=TTFT_S)
TOLERANCE_S = 0.35


def loaded(**changes: object) -> Scenario:
    """Prompts of 60 to 180 tokens and answers of 24 to 72, a place for eight of them."""
    values: dict[str, object] = {
        "system": "autoregressive",
        "verifier_curve": straight_curve("20ms+0.1ms"),
        "draft_curve": straight_curve("4ms"),
        "num_edges": 8,
        "num_prompt_tokens": 120,
        "max_tokens": 48,
        "length_spread": 0.5,
        "max_batch_size": PLACES,
        "max_num_batched_tokens": 256,
        "queue": QUEUE,
    }
    return scenario(**(values | changes))


def run(of: Scenario) -> tuple[SimResult, list[Answer], list[Answer]]:
    """The numbers, who was answered, and who was refused."""
    outcome = run_shard(of, 0)
    answered = [answer for answer in outcome.answers if answer.retry_after_s is None]
    refused = [answer for answer in outcome.answers if answer.retry_after_s is not None]
    return result_of(of, [outcome]), answered, refused


@cache
def at_capacity(system: str = "autoregressive") -> tuple[SimResult, float]:
    """A closed loop that keeps all places taken, and the answers per second that it gets."""
    found, answered, refused = run(loaded(system=system, num_sessions=12, requests_per_user=8, queue=None))
    assert not refused and len(answered) == 96
    return found, found.num_answers / found.wall_s


@cache
def overloaded(system: str = "autoregressive") -> tuple[SimResult, list[Answer], list[Answer]]:
    return run(loaded(system=system, num_sessions=800, arrival_rate=10 * at_capacity(system)[1]))


@pytest.mark.parametrize("system", ["autoregressive", "specedge"])
def test_who_is_admitted_gets_tokens_as_fast_as_at_capacity(system: str) -> None:
    capacity, _ = at_capacity(system)
    overload, answered, refused = overloaded(system)
    assert len(refused) > 5 * len(answered), "most had to be refused"
    assert overload.itl_ms[1] <= 1.2 * capacity.itl_ms[1]
    assert overload.tokens_per_s >= 0.9 * capacity.tokens_per_s, "nothing stands idle while others are refused"


def test_the_predicted_time_to_the_first_token_is_honest() -> None:
    _, answered, _ = overloaded()
    actual = [answer.bursts[0][0] - answer.opened_s for answer in answered]
    predicted = [answer.predicted_ttft_s for answer in answered]
    assert max(predicted) <= TTFT_S
    assert abs(percentile(actual, 95) - percentile(predicted, 95)) <= TOLERANCE_S
    errors = [abs(one - other) for one, other in zip(actual, predicted, strict=True)]
    assert percentile(errors, 75) <= TOLERANCE_S


def test_everyone_who_is_refused_is_told_a_time_within_bounds() -> None:
    _, _, refused = overloaded()
    told = [answer.retry_after_s for answer in refused]
    assert all(time_s is not None and MIN_RETRY_AFTER_S <= time_s <= MAX_RETRY_AFTER_S for time_s in told)
    assert len(set(told)) > 20, "no constant"


@pytest.mark.parametrize(
    "queue",
    [
        QueueLimits(PLACES + 4, max_predicted_ttft_s=60.0),
        QueueLimits(1000, max_predicted_ttft_s=1.0),
        QueueLimits(1000, max_queued_tokens=600, max_predicted_ttft_s=60.0),
    ],
    ids=["sessions", "ttft", "tokens"],
)
def test_whoever_comes_back_when_told_to_is_admitted_if_nobody_else_comes(queue: QueueLimits) -> None:
    assert sum(Crowd(seed, queue).is_admitted_after(1.0) for seed in range(6)) >= 5, "nearly everyone"
    assert sum(Crowd(seed, queue).is_admitted_after(0.3) for seed in range(6)) <= 4, "and not much sooner"


@pytest.mark.parametrize("choice", ["fixed", "two"])
def test_users_of_a_closed_loop_come_back_until_they_are_answered(choice: str) -> None:
    of = loaded(
        num_sessions=40,
        requests_per_user=2,
        verifier_choice=choice,
        queue=QueueLimits(PLACES + 4, max_predicted_ttft_s=60.0),
    )
    found, answered, refused = run(of)
    assert sorted(answer.user for answer in answered) == sorted([*range(40)] * 2)
    assert found.num_refused == len(refused) > 40 - PLACES - 4
    for answer in refused:
        told_s = answer.opened_s + (answer.retry_after_s or 0.0)
        again = [other.sent_s for other in (*answered, *refused) if other.user == answer.user]
        assert told_s in again, "exactly when told to"


def test_edges_that_choose_end_with_the_last_user_who_arrives_and_is_refused() -> None:
    of = loaded(
        num_sessions=60,
        arrival_rate=1000.0,
        num_verifiers=2,
        verifier_choice="two",
        queue=QueueLimits(PLACES, max_predicted_ttft_s=60.0),
    )
    found, answered, refused = run(of)
    assert found.num_answers + found.num_refused == len(answered) + len(refused) == 60
    assert refused


class Crowd:
    """A verifier to which far too many come until, some time later, one of them is refused; then nobody comes."""

    def __init__(self, seed: int, queue: QueueLimits) -> None:
        self._dice = Random(seed)
        self._events = EventQueue()
        clock = DeviceClock(self._events)
        limits = SchedulerLimits(PLACES, max_num_batched_tokens=256, max_tree_nodes=0)
        scheduler = Scheduler(BlockPool(1000, 16), limits, StepTime(256, [(1, 0.02), (128, 0.033)]))
        target = ModelledTarget(straight_curve("20ms+0.1ms"), clock, 0.0)
        core = EngineCore(scheduler, target, ServerInfo("", "", 1 << 20, 4096, 0, (), PLACES, ""), clock)
        self._verifier = SimulatedVerifier(self._events, core, clock, queue=queue)
        self._handle = 0

    def is_admitted_after(self, share: float) -> bool:
        """Whether the refused one is admitted after this share of the time that it was told."""
        found: list[bool] = []
        self._arrive(until_s=self._dice.uniform(1.5, 3.0), share=share, found=found)
        self._events.run()
        (is_admitted,) = found
        return is_admitted

    def _arrive(self, until_s: float, share: float, found: list[bool]) -> None:
        length = self._dice.randrange(60, 180)
        told_s = self._ask(length)
        if told_s is not None and self._events.now_s >= until_s:
            self._events.after(share * told_s, lambda: found.append(self._ask(length) is None))
            return
        self._events.after(self._dice.expovariate(40.0), lambda: self._arrive(until_s, share, found))

    def _ask(self, num_tokens: int) -> float | None:
        """Opens a session; what it is told if it is refused."""
        self._handle += 1
        sampling = SamplingParams(max_tokens=self._dice.randrange(24, 72), ignore_eos=True)
        message = OpenSession("r", (self._handle + 16,) * num_tokens, (), sampling, "", "", "autoregressive")
        try:
            self._verifier.admit(message)
        except CapacityExceeded as error:
            return error.retry_after_s
        self._verifier.open(self._handle, message, lambda verdict: None)
        return None


def test_speculation_shrinks_before_anyone_is_refused() -> None:
    nodes, num_refused = [], []
    for rate, num_sessions in ((0.5, 4), (14.0, 28), (100.0, 48)):
        of = loaded(
            system="specedge",
            verifier_curve=straight_curve("10ms+0.5ms"),
            draft_curve=straight_curve("1ms"),
            num_edges=4,
            max_tokens=24,
            max_batch_size=16,
            num_sessions=num_sessions,
            arrival_rate=rate,
            queue=QueueLimits(max_sessions=24),
        )
        found, _, refused = run(of)
        nodes.append(found.nodes_per_verification)
        num_refused.append(len(refused))
    assert num_refused[:2] == [0, 0] and num_refused[2] > 0
    assert nodes[0] > 1.2 * nodes[1], "drafts make room while everyone is still served"
    assert nodes[1] > 1.2 * nodes[2]
