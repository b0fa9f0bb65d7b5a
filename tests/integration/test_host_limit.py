"""`python -m benchmarks.host_limit` measures a real verifier process under real streams."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.host_limit.__main__ import ENGINE_PHASES, FRAME_PHASES, LOOP_PHASES, main

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="CPU time of another thread or process is read")


def test_a_small_run_counts_messages_and_finds_every_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "host.json"
    flags = ["--sessions", "6", "--stream-processes", "0,1", "--seconds", "1", "--forward-ms", "5", "--nodes", "12"]
    assert main([*flags, "--json", str(path)]) == 0
    loads = json.loads(path.read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    assert "| loop: decode |" in shown and "| loop: frames in |" in shown
    for load, phases in zip(loads, (LOOP_PHASES, FRAME_PHASES), strict=True):
        check(load)
        assert load["loop_ms"].keys() == {*phases, "rest"}
        assert all(load["loop_ms"][phase] > 0 for phase in phases)
    alone, beside = loads
    assert beside["streams_ms"] > 0 == alone["streams_ms"]
    assert beside["grpc_ms"] < alone["grpc_ms"], "the engine's process has no gRPC"


def check(load: dict[str, Any]) -> None:
    assert load["num_sessions"] == 6
    assert load["verdicts_per_s"] > 0
    # A verdict is answered by a tree in two messages; answers that end or begin have others.
    assert 2.5 < load["messages_per_s"] / load["verdicts_per_s"] < 3.5
    assert load["nodes_per_verdict"] > 1, "drafts of a recorded pair arrive in time"
    assert load["tokens_per_verdict"] > 1
    assert all(load["engine_ms"][phase] > 0 for phase in ENGINE_PHASES)
    assert load["python_cores"] < 2
