"""The schedule of faults: what it promises to the answers, and that a seed is enough to have it again."""

from chaos.schedule import Kind, make_rounds
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, num_kills=st.integers(1, 120), num_verifiers=st.integers(2, 4))
def test_one_verifier_is_always_left_except_in_blackouts(seed: int, num_kills: int, num_verifiers: int) -> None:
    rounds = make_rounds(seed, num_kills, num_verifiers)
    assert sum(round_.num_kills for round_ in rounds) >= num_kills
    assert sum(round_.num_kills for round_ in rounds[:-1]) < num_kills
    for round_ in rounds:
        victims = [fault.victim for fault in round_.faults if fault.kind is not Kind.DISK]
        assert len(set(victims)) == len(victims) and set(victims) <= {*range(num_verifiers)}
        assert round_.is_blackout == (len(victims) == num_verifiers)
    assert rounds[0].is_patient and not rounds[0].is_blackout
    assert make_rounds(seed, num_kills, num_verifiers) == rounds


def test_a_hundred_kills_have_every_kind() -> None:
    kinds = {fault.kind for round_ in make_rounds(1, 100, 3) for fault in round_.faults}
    assert kinds == {*Kind}
    assert Kind.DISK not in {fault.kind for round_ in make_rounds(1, 100, 3, False) for fault in round_.faults}
