"""An answer that goes on at another verifier waits behind no answer that nobody has begun to read."""

from tenant_support import TenantEngine

from specedge_verifier.tenant_account import Tenant


def test_an_answer_that_goes_on_is_served_before_those_that_came_earlier_and_have_not_begun() -> None:
    engine = TenantEngine([Tenant("a")], max_batch_size=2)
    for number in range(12):
        engine.open("a", [number % 5, 1, 2], 10)
    engine.advance(3)
    resumed = [engine.open("a", [3, number, 2], 40, num_committed=7 + number) for number in range(2)]
    urgent = engine.open("a", [4, 4, 4], 10, priority=1)
    engine.finish()
    begun = sorted(engine.committed_at, key=lambda handle: engine.committed_at[handle][0])
    assert begun[:2] == [0, 1], "they had their places before"
    assert begun[2:5] == [urgent, *resumed], "priority counts first"
    assert begun[5:] == [*range(2, 12)]


def test_another_tenants_share_is_not_taken_by_answers_that_go_on() -> None:
    engine = TenantEngine([Tenant("a"), Tenant("b")], max_batch_size=4)
    for number in range(8):
        engine.open("a", [3, number % 5, 2], 40, num_committed=5)
    engine.advance(2)
    for number in range(2):
        engine.open("b", [1, number, 2], 20)
    engine.advance(2)
    assert [engine.accounts[name].num_running for name in ("a", "b")] == [2, 2]
    engine.finish()
