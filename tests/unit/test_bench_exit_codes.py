"""`specedge bench` and its commands when they cannot do what was asked: 2 for wrong usage, 1 for a failure, and why."""

import json
from pathlib import Path

import bench_rows
import pytest

from specedge_bench.records import SCHEMA_VERSION
from specedge_bench.run_folder import INFO_FILE
from specedge_cli.main import main


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of `specedge bench`."""
    try:
        code = main(["bench", *arguments])
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        code = stopped.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--systems", "specedgy"], ["'specedgy'", "autoregressive, server-only, specedge"]),
        (["--systems", "specedge:fast"], ["'fast'", "streamed, included, excluded, off"]),
        (["--systems", "specedge,specedge"], ["specedge,specedge", "none twice"]),
        (["--loads", "open-3"], ["'open-3'", "closed-USERS"]),
        (["--loads", "trace=gone.txt"], ["gone.txt", "No such file"]),
        (["--networks", "moon"], ["'moon'", "lan, metro, wan, far, home"]),
        (["--network-method", "pigeon"], ["'pigeon'", "proxy"]),
        (["--dataset", "mtbnch"], ["'mtbnch'", "known are", "did you mean 'mtbench'"]),
        (["--dataset", "c4"], ["'c4'", "give a path"]),
        (["--dataset", "c4", "--dataset-path", "gone.jsonl"], ["gone.jsonl", "No such file"]),
        (["--req-offset", "-3"], ["req_offset is -3"]),
        (["--verifier-gpu", "T4"], ["'T4'", "A100-40", "--price NAME=DOLLARS_PER_S"]),
        (["--price", "T4"], ["'T4'", "NAME=DOLLARS_PER_S"]),
        (["--temperature", "nan"], ["'nan'", "from 0 to 2"]),
        (["--repetitions", "0"], ["'0'", "above 0"]),
        (["--speed", "9"], ["--speed"]),
        (["--verifier", "here"], ["'here'", "HOST:PORT"]),
        (["--verifier", "10.0.0.1:5", "--systems", "specedge"], ["10.0.0.1:5", "--networks direct"]),
        (["--verifier", "127.0.0.1:9"], ["autoregressive and specedge[:MODE] alone"]),
        (["--verifier", "127.0.0.1:9", "--systems", "autoregressive,specedge"], ["prefix cache", "--cache-prefill on"]),
    ],
)
def test_wrong_usage_of_a_run(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refusal(capsys, *flags, "--out", str(tmp_path / "run"))

    assert code == 2
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_a_verifier_out_of_reach_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--systems", "specedge", "--verifier", "127.0.0.1:9", "--out", str(tmp_path / "run")]
    code, message = refusal(capsys, *flags)

    assert code == 1
    assert "no verifier at 127.0.0.1:9" in message and "specedge verifier" in message


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_rows.write_synthetic_run(tmp_path / "run")
    code, message = refusal(capsys, "--out", str(tmp_path / "run"))

    assert code == 2
    assert f"{tmp_path / 'run'} holds a run already" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "GONE"], ["GONE", "holds no run"]),
        (["report", "RUN", "--slo-itl-ms", "-5"], ["'-5'"]),
        (["compare", "RUN", "GONE"], ["GONE", "holds no run"]),
        (["sweep", "--out", "NEW", "--stages", "mode,size"], ["'size'", "mode, max_budget"]),
        (["sweep", "--out", "NEW", "--margin", "nan"], ["'nan'"]),
        (["sweep", "--out", "NEW", "--systems", "specedge"], ["--systems"]),
        (["sweep", "--out", "NEW", "--loads", "open-3"], ["'open-3'", "closed-USERS"]),
        (["shapes", "--config", "Qwen4", "--out", "NEW"], ["Qwen4", "Qwen3-14B"]),
        (["simulate", "--system", "fast"], ["'fast'", "server-only"]),
        (["simulate", "--trace", "gone"], ["gone", "embedded-t0"]),
        (["simulate", "--verifier-curve", "gone"], ["gone", "A100-40"]),
        (["simulate", "--draft-curve", "TPU/Qwen3-1.7B"], ["TPU", "RTX 4090"]),
        (["simulate", "--rtt-ms", "-1"], ["'-1ms'", "rtt15"]),
    ],
)
def test_wrong_usage_of_the_commands_around(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_rows.write_synthetic_run(tmp_path / "RUN")
    places = {name: str(tmp_path / name) for name in ("RUN", "GONE", "NEW")}
    code, message = refusal(capsys, *(places.get(argument, argument) for argument in arguments))

    assert code == 2
    assert all(word in message for word in words), message
    assert not (tmp_path / "NEW").exists()


def test_an_unwritable_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    code, message = refusal(capsys, "simulate", "--out", str(tmp_path / "file" / "rows.jsonl"))

    assert code == 2
    assert str(tmp_path / "file") in message


def test_a_run_of_a_newer_release_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_rows.write_synthetic_run(tmp_path)
    facts = json.loads((tmp_path / INFO_FILE).read_text())
    (tmp_path / INFO_FILE).write_text(json.dumps({**facts, "schema_version": SCHEMA_VERSION + 1}))
    code, message = refusal(capsys, "report", str(tmp_path))

    assert code == 1
    assert f"schema version {SCHEMA_VERSION + 1}" in message
