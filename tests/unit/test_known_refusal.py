"""What an edge tells requests without asking, because its verifiers have just refused others."""

import pytest

from edge_agent.known_refusal import LEAST_S, TRUST_S, KnownRefusal
from specedge.errors import CapacityExceeded
from specedge.wire.status import from_status, to_status

NOW_S = 1000.0
WHOEVER = CapacityExceeded("9 sessions are running or waiting, the limit is 9", 3.0, from_tokens=1)


def refusal(retry_after_s: float = 3.0, num_tokens: int = 1, priority: int = 0) -> KnownRefusal:
    return KnownRefusal(CapacityExceeded("full", retry_after_s), num_tokens, priority, NOW_S)


def test_the_time_that_is_told_becomes_shorter_and_is_trusted_for_a_moment() -> None:
    found = [refusal().meets(1, 0, NOW_S + passed_s) for passed_s in (0.0, 0.2, TRUST_S)]
    assert [error and error.retry_after_s for error in found] == [3.0, pytest.approx(2.8), None]
    short = refusal(retry_after_s=0.25)
    assert short.meets(1, 0, NOW_S + 0.19) is not None
    assert short.meets(1, 0, NOW_S + 0.25 - LEAST_S + 0.001) is None, "nobody is told less"


def test_a_smaller_prompt_and_a_higher_priority_have_to_ask() -> None:
    found = refusal(num_tokens=50, priority=2)
    assert found.meets(49, 0, NOW_S) is None
    assert found.meets(50, 3, NOW_S) is None
    assert found.meets(50, 2, NOW_S) is not None


def test_how_much_a_refusal_holds_for_crosses_the_wire() -> None:
    status = to_status(WHOEVER)
    error = from_status(status.code, status.details, status.metadata)
    assert isinstance(error, CapacityExceeded) and error.from_tokens == 1
    for metadata in ((), (("specedge-refused-tokens", "-1"),), (("specedge-refused-tokens", "9" * 99),)):
        other = from_status(status.code, status.details, metadata)
        assert isinstance(other, CapacityExceeded) and other.from_tokens is None
