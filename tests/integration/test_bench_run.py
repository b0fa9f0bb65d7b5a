"""`specedge bench` at its smallest, with real processes: rows, steps, counters and report. No timing is held."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from specedge_bench.main import main
from specedge_bench.run_folder import RunFolder

SYSTEMS = ("autoregressive", "server-only", "specedge")
NUM_REQUESTS = 2


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that a run takes over."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_small_run_keeps_every_row_and_finds_equal_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = ["--systems", ",".join(SYSTEMS), "--loads", "closed-2", "--networks", "rtt5", "--repetitions", "1"]
    flags += [
        "--verifier-arg=--block-size=4",
        "--num-requests",
        str(NUM_REQUESTS),
        "--max-new-tokens",
        "12",
        "--warm-up-tokens",
        "2",
    ]
    code = main([*flags, "--num-threads", "1", "--cache-prefill", "on", "--out", str(folder)])

    assert code == 0
    run = RunFolder.load(folder)
    assert [cell.system for cell in run.cells] == list(SYSTEMS)
    assert len(run.requests) == NUM_REQUESTS * len(SYSTEMS)
    for request in run.requests:
        assert request.status == "ok", request.error
        assert 0 < request.num_tokens <= 12
        assert request.num_cached_tokens > 0
        assert request.scheduled_s == request.sent_s < request.bursts[0][0] <= request.finished_s
    for prompt in {request.prompt for request in run.requests}:
        assert len({request.digest for request in run.requests if request.prompt == prompt}) == 1
    for cell in run.cells:
        own = [step for step in run.steps if step.cell == cell.cell]
        answers = [request for request in run.requests if request.cell == cell.cell]
        assert sum(step.num_committed for step in own) == sum(answer.num_tokens for answer in answers)
        assert sum(len(step.queue_ms) for step in own) == cell.num_verifications
        assert sum(step.num_nodes for step in own) == cell.num_nodes_verified
        assert 0 < cell.verifier_busy_s < cell.wall_s
        assert (cell.draft_busy_s > 0) == (cell.system != "autoregressive")
        assert cell.draft_on_verifier == (cell.system == "server-only")
        assert cell.wire_bytes_up is not None and cell.wire_bytes_down is not None
        assert cell.wire_bytes_up > cell.bytes_up > 0
        assert cell.wire_bytes_down > cell.bytes_down > 0
        assert (cell.num_draft_rows >= cell.num_draft_steps > 0) == (cell.system != "autoregressive")
    assert "rtt5" in capsys.readouterr().out
    assert (folder / "report.md").exists()


def test_a_cold_run_finds_nothing_in_the_prefix_cache(tmp_path: Path) -> None:
    flags = ["--systems", "specedge:off", "--loads", "closed-1,closed-2", "--networks", "direct", "--repetitions", "2"]
    flags += ["--max-request-num", "1", "--num-requests", "2", "--max-new-tokens", "4", "--warm-up-tokens", "2"]
    assert main([*flags, "--num-threads", "1", "--out", str(tmp_path / "run")]) == 0

    run = RunFolder.load(tmp_path / "run")
    assert len({request.prompt for request in run.requests}) == len(run.requests) == 8
    assert [request.num_cached_tokens for request in run.requests] == [0] * 8
    assert all(cell.prefix_queries > 0 and cell.prefix_hits == 0 for cell in run.cells)


def test_a_run_in_which_no_system_starts_fails_with_the_reason(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-model")
    flags = ["--systems", "autoregressive", "--target-model", missing, "--out", str(tmp_path / "run")]
    with pytest.raises(Exception, match="no-such-model"):
        main(flags)
