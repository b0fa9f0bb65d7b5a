"""`make fuzz` in small, and what once broke something, sent again."""

from pathlib import Path

from fuzz.run import Options, run


def test_hostile_messages_and_bodies_break_nothing(tmp_path: Path) -> None:
    result = run(Options(num_messages=400, num_bodies=300, seed=1), tmp_path)
    assert result.problems == []
    assert {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"} <= result.verifier.outcomes.keys()
    assert {"200", "400"} <= result.edge.outcomes.keys()
    assert result.num_answers
