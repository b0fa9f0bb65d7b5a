"""A run whose service dies, one that is interrupted, and one over the worst network: what was measured is kept."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from specedge_bench.main import main
from specedge_bench.network.namespaces import namespaces_available
from specedge_bench.records import RequestRecord
from specedge_bench.run_folder import REQUESTS_FILE, RunFolder
from specedge_cli.supervisor import specedge_command

DEADLINE_S = 120.0
SMALL = ["--warm-up-tokens", "2", "--num-threads", "1", "--max-new-tokens", "16"]
# A step takes long enough for a signal to come in the middle of an answer.
SLOW = [*SMALL, "--pace", "40ms,5ms", "--networks", "direct", "--loads", "closed-1", "--ignore-eos"]


@contextmanager
def measuring(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own; nothing of it is left at the end."""
    command = specedge_command(["bench", *SLOW, *flags, "--out", str(folder)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for child in left:
            child.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def num_rows(folder: Path, system: str) -> int:
    """Requests of a system that have ended."""
    path = folder / REQUESTS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(json.loads(line)["system"] == system for line in lines)


def verifier_of(process: subprocess.Popen[str], system: str) -> psutil.Process:
    (verifier,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "verifier" in (line := child.cmdline()) and "--system" in line and line[line.index("--system") + 1] == system
    ]
    return verifier


def by_status(rows: list[RequestRecord]) -> dict[str, list[str]]:
    """System and repetition of the requests, by how they ended."""
    return {
        status: [f"{row.system} {row.repetition}" for row in rows if row.status == status]
        for status in ("ok", "failed")
    }


@pytest.mark.slow
def test_a_system_that_dies_fails_its_rows_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with measuring(
        folder, "--systems", "autoregressive,specedge:off", "--repetitions", "2", "--num-requests", "2"
    ) as process:
        wait_for(process, lambda: num_rows(folder, "autoregressive") == 1)
        verifier_of(process, "autoregressive").kill()
        output, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 1, output
    run = RunFolder.load(folder)
    ended = by_status(list(run.requests))
    # Its second repetition finds the system started anew.
    assert ended["failed"] == ["autoregressive 0"]
    assert ended["ok"] == [
        "autoregressive 0",
        *["specedge:off 0"] * 2,
        *["autoregressive 1"] * 2,
        *["specedge:off 1"] * 2,
    ]
    assert all("the verifier of autoregressive was ended by signal 9" in row.error for row in run.requests if row.error)
    assert {(cell.system, cell.repetition) for cell in run.cells} == {
        ("specedge:off", 0),
        ("autoregressive", 1),
        ("specedge:off", 1),
    }
    assert "1 of 8 requests failed" in (folder / "report.md").read_text()


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with measuring(folder, "--systems", "autoregressive", "--repetitions", "20", "--num-requests", "2") as process:
        wait_for(process, lambda: num_rows(folder, "autoregressive") == 3)
        services = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
        _, alive = psutil.wait_procs(services, timeout=0)

    assert process.returncode == 130, output
    assert not alive
    run = RunFolder.load(folder)
    assert 3 <= len(run.requests) < 40
    assert {row.status for row in run.requests} == {"ok"}
    assert (folder / "report.md").exists() and "interrupted: what had been measured by then is kept" in output


@pytest.mark.parametrize("method", ["proxy", "namespaces"])
def test_a_trace_over_the_home_network_leaves_out_what_is_too_long(method: str, tmp_path: Path) -> None:
    if method == "namespaces" and (reason := namespaces_available()):
        pytest.skip(reason)
    prompts, arrivals, folder = tmp_path / "prompts.jsonl", tmp_path / "arrivals.txt", tmp_path / "run"
    rows = [{"id": "short", "text": "Once upon a time"}, {"id": "long", "text": "a bear and a fox " * 2000}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arrivals.write_text("0\n0.05\n")
    flags = ["--systems", "specedge", "--networks", "home", "--network-method", method, "--repetitions", "1"]
    flags += ["--dataset-path", str(prompts), "--loads", f"trace={arrivals}", *SMALL, "--out", str(folder)]

    assert main([*flags, "--num-requests", "5"]) == 0

    run = RunFolder.load(folder)
    assert run.info.num_skipped_prompts == 1
    assert [(row.prompt, row.status, row.scheduled_s) for row in run.requests] == [
        ("short", "ok", 0.0),
        ("short@1", "ok", 0.05),
    ]
    (cell,) = run.cells
    assert (cell.load, cell.network, cell.rtt_ms_configured) == ("trace-arrivals", "home", 30.0)
    # Each way takes half the round trip less the jitter at least.
    assert all(row.ttft_s >= 0.024 for row in run.requests)
    report = (folder / "report.md").read_text()
    assert "prompts skipped as too long: 1" in report
    assert ("namespaces joined by TUN" in report) == (method == "namespaces")
