"""Which verifier a session gets, and how verifiers are seen; clocks that only the tests move."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import cast

import pytest
from fakes import FINGERPRINT, INFO
from prometheus_client import CollectorRegistry

from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_addresses import FixedAddresses
from edge_agent.verifier_breaker import MAX_FAILURES
from edge_agent.verifier_choice import Candidate, Standing, choose
from edge_agent.verifier_client import Pulse, VerifierClient
from edge_agent.verifier_member import STATES, Identity, Need, VerifierMember
from edge_agent.verifier_pool import VerifierPool
from edge_agent.verifier_pool_metrics import VerifierPoolMetrics
from specedge.errors import (
    CapacityExceeded,
    InvalidRequest,
    SpecEdgeError,
    TenantLimit,
    VerifierDraining,
    VerifierUnavailable,
)
from specedge.sampling import SamplingParams
from specedge.wire.load_hint import LoadHint
from specedge.wire.messages import GRAMMARS, LOGPROBS, ServerInfo
from specedge.wire.status import from_status, to_status

NOW_S = 1000.0
SERVING = Pulse(True, LoadHint(0, 8))
ANY = Need(num_prompt_tokens=1)
WHOEVER = CapacityExceeded("9 sessions are running or waiting, the limit is 9", 3.0, from_tokens=1)


class Client:
    """A connection that the test describes."""

    def __init__(self, address: str, answer: ServerInfo | SpecEdgeError = INFO) -> None:
        self.address = address
        self.answer = answer
        self.refusal: str | None = None
        self.failure: str | None = None
        self.is_connected = True
        self.delay_s = 0.0

    async def get_server_info(self, fingerprint: str, deadline_s: float) -> ServerInfo:
        await asyncio.sleep(self.delay_s)
        if isinstance(self.answer, SpecEdgeError):
            raise self.answer
        return self.answer


def member(address: str = "a:1") -> VerifierMember:
    found = VerifierMember(cast(VerifierClient, Client(address)))
    found.told(INFO)
    found.pulse(SERVING, NOW_S)
    return found


async def pool_of(*answers: ServerInfo | SpecEdgeError, delay_s: float = 0.0) -> VerifierPool:
    names = [f"{name}:1" for name, _ in zip("abcdef", answers, strict=False)]
    clients = {name: Client(name, answer) for name, answer in zip(names, answers, strict=True)}
    for number, client in enumerate(clients.values()):
        client.delay_s = number * delay_s
    pool = VerifierPool(
        FixedAddresses(names),
        lambda address: cast(VerifierClient, clients[address]),
        StreamCounters(),
        dice=random.Random(3),
    )
    await pool.start(FINGERPRINT, 1.0)
    return pool


def picks(*candidates: Candidate[str], num: int = 3000) -> Counter[str | None]:
    dice = random.Random(5)
    return Counter(choose(candidates, dice) for _ in range(num))


def test_of_two_random_ones_the_less_loaded_is_taken() -> None:
    found = picks(*(Candidate(name, Standing.GOOD, False, load) for name, load in (("a", 0.0), ("b", 0.5), ("c", 1.0))))
    assert found["c"] == 0, "the most loaded one always has a better neighbour"
    assert 1800 < found["a"] < 2200 and 800 < found["b"] < 1200


def test_standing_comes_before_load_and_what_was_tried_comes_last_among_equals() -> None:
    assert picks(Candidate("a", Standing.DOUBTED, False, 0.0), Candidate("b", Standing.GOOD, True, 9.0)).keys() == {"b"}
    assert picks(Candidate("a", Standing.GOOD, True, 0.0), Candidate("b", Standing.GOOD, False, 9.0)).keys() == {"b"}
    assert picks(Candidate("a", Standing.AWAY, True, 0.0)).keys() == {"a"}, "a bad one is better than none"
    assert picks().keys() == {None}


def test_sessions_opened_since_the_last_hint_count() -> None:
    found = member()
    found.pulse(Pulse(True, LoadHint(4, 8)), NOW_S)
    assert found.load == 0.5
    found.chosen(NOW_S)
    assert found.load == 0.625
    found.pulse(Pulse(True, LoadHint(5, 8)), NOW_S)
    assert found.load == 0.625


@pytest.mark.parametrize(
    ("error", "standing"),
    [
        (VerifierUnavailable("reset"), Standing.DOUBTED),
        (VerifierDraining("going"), Standing.AWAY),
        (CapacityExceeded("full", 2.0), Standing.BUSY),
        (InvalidRequest("bad"), Standing.GOOD),
    ],
)
def test_what_an_error_says_of_its_verifier(error: SpecEdgeError, standing: Standing) -> None:
    found = member()
    found.broke(error, NOW_S)
    assert found.standing(NOW_S) is standing
    assert found.standing(NOW_S + 2.5) is (Standing.GOOD if standing is Standing.BUSY else standing)


def test_draining_does_not_count_as_failure() -> None:
    found = member()
    for _ in range(5 * MAX_FAILURES):
        found.broke(VerifierDraining("going"), NOW_S)
    assert not found.breaker.is_doubtful and found.num_failed == 0
    found.pulse(SERVING, NOW_S)
    assert found.standing(NOW_S) is Standing.GOOD, "it was restarted"


def test_a_lost_verifier_is_tried_by_one_session_once_a_ping_has_found_it_again() -> None:
    found = member()
    for _ in range(MAX_FAILURES):
        found.broke(VerifierUnavailable("reset"), NOW_S)
    assert found.standing(NOW_S) is Standing.LOST
    later_s = found.breaker.retry_s
    assert found.standing(later_s) is Standing.LOST, "nothing is known of it yet"
    found.told(INFO)
    found.pulse(SERVING, later_s)
    assert found.standing(later_s) is Standing.GOOD
    found.chosen(later_s)
    assert found.standing(later_s) is Standing.LOST, "one at a time"
    found.opened()
    assert found.standing(later_s) is Standing.GOOD


async def test_what_most_verifiers_serve_is_served() -> None:
    other = replace(INFO, target_model="another")
    pool = await pool_of(other, INFO, VerifierUnavailable("not there"), INFO)
    assert pool.info == INFO
    assert [state for _, state, _ in pool.states] == ["left_out", "good", "unknown", "good"]
    assert "a:1" not in {found.address for _ in range(50) if (found := pool.choose(Need())) is not None}
    reason = pool.states[0][2]
    assert reason is not None and "another" in reason and "fake-target" in reason


@pytest.mark.parametrize("field", [{"eos_ids": (9,)}, {"vocab_size": 5}, {"target_model": "x"}])
def test_an_answer_goes_on_only_where_the_same_tokens_come(field: dict[str, object]) -> None:
    need = Need.of(3, SamplingParams(max_tokens=5), INFO)
    assert need.is_met_by(INFO)
    assert not need.is_met_by(replace(INFO, **field))  # type: ignore[arg-type]


def test_a_session_needs_what_its_parameters_ask_for_and_the_context() -> None:
    need = Need.of(3, SamplingParams(max_tokens=97, num_logprobs=0), INFO)
    assert need == Need(Identity.of(INFO), frozenset({LOGPROBS}), 100, 3)
    assert not need.is_met_by(replace(INFO, max_len=99))
    assert not need.is_met_by(replace(INFO, capabilities=(GRAMMARS,)))


async def test_every_verifier_that_answers_soon_after_the_first_is_heard() -> None:
    pool = await pool_of(*(replace(INFO, target_model="another") for _ in range(2)), INFO, INFO, INFO, delay_s=0.02)
    assert pool.info == INFO, "most serve it, and they answer last"


async def test_nobody_there_is_unavailable_and_the_first_reason_is_told() -> None:
    with pytest.raises(VerifierUnavailable, match="not there"):
        await pool_of(VerifierUnavailable("not there"), VerifierUnavailable("nor there"))


async def test_metrics_show_each_verifier_of_the_list_and_no_other() -> None:
    pool = await pool_of(INFO, replace(INFO, target_model="another"), INFO)
    registry = CollectorRegistry()
    registry.register(VerifierPoolMetrics(lambda: pool.members, lambda: NOW_S))
    chosen = pool.choose(Need())
    assert chosen is not None
    chosen.opened()
    name = "specedge_edge_verifier"
    assert registry.get_sample_value(f"{name}_sessions_opened_total", {"verifier": chosen.address}) == 1.0
    for address, word in (("a:1", "good"), ("b:1", "left_out"), ("c:1", "good")):
        shown = {
            state: registry.get_sample_value(f"{name}_state", {"verifier": address, "state": state}) for state in STATES
        }
        assert [state for state, value in shown.items() if value] == [word]
    verifiers = {sample.labels["verifier"] for family in registry.collect() for sample in family.samples}
    assert verifiers == {"a:1", "b:1", "c:1"}


@pytest.mark.parametrize(
    ("metadata", "hint"),
    [
        ((("specedge-sessions", "12/64"),), LoadHint(12, 64)),
        ((("other", "1/2"), ("specedge-sessions", "0/1")), LoadHint(0, 1)),
        ((("specedge-sessions", "12/0"),), None),
        ((("specedge-sessions", "-1/5"),), None),
        ((("specedge-sessions", "1" * 40 + "/5"),), None),
        ((("specedge-sessions", "²/5"),), None),
        ((("specedge-sessions", b"1/5"),), None),
        ((), None),
        (None, None),
    ],
)
def test_hints_that_make_no_sense_are_none(metadata: tuple[tuple[str, str | bytes], ...] | None, hint: object) -> None:
    assert LoadHint.find(metadata) == hint
    assert LoadHint.find(LoadHint(3, 8).metadata) == LoadHint(3, 8)


def test_draining_crosses_the_wire() -> None:
    status = to_status(VerifierDraining("going", 2.0))
    found = from_status(status.code, status.details, status.metadata)
    assert isinstance(found, VerifierDraining) and found.retry_after_s == 2.0
    assert not isinstance(from_status(status.code, status.details, ()), VerifierDraining)


def test_a_refusal_holds_for_the_prompts_that_the_verifier_named_else_for_its_own() -> None:
    need = Need(num_prompt_tokens=100)
    for error, is_told in ((WHOEVER, True), (CapacityExceeded("full", 3.0), False)):
        found = member()
        found.broke(error, NOW_S, need)
        assert (found.refuses(ANY, NOW_S) is not None) is is_told
        assert found.refuses(need, NOW_S) is not None
    found = member()
    found.broke(TenantLimit("2 sessions of tenant a", 3.0), NOW_S, need)
    assert found.refuses(need, NOW_S) is None


async def test_everyone_is_refused_only_where_every_verifier_refuses() -> None:
    pool = await pool_of(INFO, INFO, INFO)
    now_s = asyncio.get_running_loop().time()
    first, second, third = pool.members
    assert pool.refusal(ANY) is None
    first.broke(WHOEVER, now_s, ANY)
    second.broke(CapacityExceeded("full", 1.5, from_tokens=1), now_s, ANY)
    assert pool.refusal(ANY) is None, "the third may have room"
    third.broke(VerifierDraining("going"), now_s, ANY)
    error = pool.refusal(ANY)
    assert error is not None and 1.0 < error.retry_after_s <= 1.5, "the soonest"
    assert pool.refusal(Need(num_prompt_tokens=1, priority=1)) is None


async def test_nobody_is_refused_for_lack_of_room_where_no_verifier_is_there() -> None:
    pool = await pool_of(INFO)
    (only,) = pool.members
    now_s = asyncio.get_running_loop().time()
    only.broke(WHOEVER, now_s, ANY)
    assert pool.refusal(ANY) is not None
    only.broke(VerifierUnavailable("reset"), now_s)
    only.broke(VerifierDraining("going"), now_s)
    assert pool.refusal(ANY) is None
