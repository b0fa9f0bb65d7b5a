"""What a run says of its machine: versions and names, no builds and no places."""

import platform
from pathlib import Path

import pytest

from specedge_bench.machine import this_machine, without_place
from specedge_bench.options import parse_options


@pytest.mark.parametrize(
    ("release", "shown"),
    [("6.18.2-acme-cloud+", "Linux 6.18"), ("5.10", "Linux 5.10"), ("7-x", "Linux 7"), ("custom", "Linux")],
)
def test_the_system_is_its_name_and_version_number(release: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "release", lambda: release)
    assert this_machine()["system"] == shown


def test_only_places_of_this_machine_are_shortened(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert without_place(str(tmp_path / "model")) == "model"
    assert without_place("Qwen/Qwen3-14B") == "Qwen/Qwen3-14B"
    assert without_place("demo") == "demo"
    assert without_place(str(tmp_path / "gone")) == str(tmp_path / "gone")


def test_the_flags_in_a_report_name_no_place(tmp_path: Path) -> None:
    (tmp_path / "monday.txt").write_text("0.5\n")
    (tmp_path / "prompts.jsonl").touch()
    flags = ["--loads", f"closed-2,trace={tmp_path / 'monday.txt'}", "--dataset-path", str(tmp_path / "prompts.jsonl")]
    options = parse_options([*flags, "--out", str(tmp_path / "run")])

    assert options.given["loads"] == "closed-2,trace-monday"
    assert options.given["dataset_path"] == "prompts.jsonl"
    assert options.out == tmp_path / "run"
    assert str(tmp_path) not in str(options.given)
