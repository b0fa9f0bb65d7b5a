"""What a run of chaos makes of what users saw and edges logged."""

import pytest
from chaos.faults import Event
from chaos.recovery import effects_of, violations
from chaos.schedule import Fault, Kind
from processes import Ask
from resilience.load import Answer
from resilience.site import LogRecord, broken_lines

ASK = Ask("The fox", seed=1, max_tokens=3)
TEXTS = {ASK: "abc"}
HERE, THERE = "127.0.0.1:1", "127.0.0.1:2"


def event(began_s: float, mended_s: float, address: str = HERE, is_blackout: bool = False) -> Event:
    return Event(Fault(Kind.KILL, 0, 0.0, 0.0), address, began_s, mended_s, is_blackout)


def answer(
    name: str, *tokens_s: float, text: str = "abc", failure: str | None = None, is_refused: bool = False
) -> Answer:
    return Answer(ASK, 0.0, tokens_s[-1] if tokens_s else 20.0, name, [*tokens_s], text, failure, is_refused)


def left(time_s: float, name: str, address: str = HERE) -> LogRecord:
    return LogRecord(time_s, f"session {name}-0: left {address}, opening again in 0.10 s: it broke")


def test_recovery_is_the_time_from_the_fault_to_the_next_token() -> None:
    events = [event(10.0, 15.0), event(11.0, 12.0, THERE)]
    on_the_way = answer("late", 9.0, 10.2, 10.4, 11.4, 11.5)
    answers = [answer("moved", 9.9, 10.5, 10.6), on_the_way, answer("elsewhere", 9.0, 13.0)]
    records = [left(10.1, "moved"), left(10.4, "moved", THERE), left(10.3, "late"), left(9.0, "elsewhere")]
    here, there = effects_of(events, answers, records)
    assert here.recoveries_s == pytest.approx([0.5, 1.0])
    assert there.recoveries_s == []
    assert here.longest_pause_s == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (answer("right", 1.0), None),
        (answer("other", 1.0, text="abd"), "another text: from character 2: 'd' for 'c'"),
        (answer("short", 1.0, text="ab"), "another text"),
        (answer("failed", 1.0, text="ab", failure="gone", is_refused=True), "failed"),
        (answer("dark", 11.0, text="ab", failure="gone", is_refused=True), None),
        (answer("rude", 11.0, text="ab", failure="gone"), "failed"),
        (answer("false", 11.0, text="x", failure="gone", is_refused=True), "another text before it failed"),
    ],
    ids=lambda value: value.id if isinstance(value, Answer) else "",
)
def test_what_a_user_must_not_see(seen: Answer, problem: str | None) -> None:
    found = [*violations([seen], TEXTS, [event(10.0, 12.0, is_blackout=True)])]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_a_traceback_is_a_problem_unless_a_warning_or_a_full_disk_explains_it() -> None:
    trace = "Traceback (most recent call last):"
    handled = f'{{"level": "WARNING", "message": "not yet", "exception": "{trace}"}}'
    failed = f'{{"level": "ERROR", "message": "failed", "exception": "{trace}"}}'
    log = "\n".join([handled, "--- Logging error ---", trace, failed, trace])
    assert [*broken_lines(log)] == [failed, trace]
