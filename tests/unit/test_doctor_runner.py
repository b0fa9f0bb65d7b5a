"""`specedge doctor`: checks run within their limits, break nothing, and are told to people and machines."""

import io
import json
import threading
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from specedge.errors import ModelLoadError, SettingsError
from specedge_cli.doctor.check import Check, Finding, Result, State, is_failure
from specedge_cli.doctor.command import show_doctor
from specedge_cli.doctor.report import Report, as_json
from specedge_cli.doctor.runner import run_checks
from specedge_cli.main import main


def check(run: Callable[[], Sequence[Finding]], *, limit_s: float = 5.0, is_slow: bool = False) -> Check:
    return Check("group", "one", run, limit_s=limit_s, is_slow=is_slow)


def well() -> Sequence[Finding]:
    return [Finding("one", "ok", "fine")]


def findings(*checks: Check, is_quick: bool = False, max_s: float = 20.0) -> list[Finding]:
    return [result.finding for result in run_checks(checks, is_quick=is_quick, max_s=max_s)]


def test_an_exception_is_a_failed_check_and_the_others_go_on() -> None:
    def broken() -> Sequence[Finding]:
        raise KeyError("layer 3")

    def refused() -> Sequence[Finding]:
        raise ModelLoadError("/m: has no weights")

    first, second, third = findings(check(broken), check(refused), check(well))
    assert (first.state, first.found) == ("fail", "KeyError: 'layer 3'")
    assert (second.state, second.found) == ("fail", "/m: has no weights")
    assert third.state == "ok"


def test_a_check_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    def hangs() -> Sequence[Finding]:
        release.wait(30)
        return []

    try:
        first, second = findings(check(hangs, limit_s=0.1), check(well))
    finally:
        release.set()
    assert (first.state, first.found) == ("fail", "did not finish within 0.1 s")
    assert second.state == "ok"


def test_when_the_time_is_over_the_rest_is_skipped() -> None:
    now = iter([0.0, 1.0, 1.0, 11.0, 11.0])
    checks = [check(well), check(well)]
    first, second = run_checks(checks, is_quick=False, max_s=10.0, clock=lambda: next(now))
    assert first.finding.state == "ok" and first.seconds == 10.0
    assert second.finding.state == "skipped" and "10 s of the whole run" in second.finding.found


def test_a_quick_run_leaves_slow_checks_out() -> None:
    first, second = findings(check(well, is_slow=True), check(well), is_quick=True)
    assert (first.state, second.state) == ("skipped", "ok")


@pytest.mark.parametrize(("state", "failed"), [("ok", False), ("warn", False), ("skipped", False), ("fail", True)])
def test_only_a_failure_fails(state: State, failed: bool) -> None:
    assert is_failure([Result("g", Finding("n", "ok", ""), 0.0), Result("g", Finding("n", state, ""), 0.0)]) is failed


def test_the_report_names_states_and_changes() -> None:
    out = io.StringIO()
    report = Report(Console(file=out, width=100, highlight=False))
    results = [
        Result("machine [1]", Finding("cores", "warn", "1 of [8] usable", "give it two"), 0.1),
        Result("machine [1]", Finding("gpu", "fail", "none", "buy one"), 2.5),
    ]
    for result in results:
        report.add(result)
    report.finish(results)
    text = out.getvalue()
    assert text.count("machine [1]") == 1 and "warn  cores: 1 of [8] usable" in text
    assert "-> give it two" in text and "FAIL  gpu: none  (2.5 s)" in text
    assert "something will not work (1 warn, 1 fail)" in text


def test_json_has_every_finding() -> None:
    result = Result("machine", Finding("cores", "warn", "1 usable", "more", {"num_cores": 1}), 0.1234)
    content = json.loads(as_json([result]))
    assert content["is_well"] and content["counts"] == {"ok": 0, "warn": 1, "fail": 0, "skipped": 0}
    assert content["checks"] == [
        {
            "group": "machine",
            "name": "cores",
            "state": "warn",
            "found": "1 usable",
            "change": "more",
            "values": {"num_cores": 1},
            "seconds": 0.123,
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gateway"], "'gateway' is no process"),
        (["edge", "--max-seconds", "0"], "--max-seconds = 0"),
        (["edge", "--portt", "3"], "--portt"),
        (["verifier", "--port", "99999"], "port = '99999'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_settings_are_refused_before_anything_is_checked() -> None:
    with pytest.raises(SettingsError, match="would speak plain text"):
        show_doctor(["edge", "--host", "0.0.0.0"])
