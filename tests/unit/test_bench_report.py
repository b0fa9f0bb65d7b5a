"""The report of a synthetic run: whole, without plots where their library is missing, and open about trouble."""

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_rows import cell_row, request, run_info, write_synthetic_run

from specedge.errors import SpecEdgeError
from specedge_bench import report
from specedge_bench.plots import draw_all
from specedge_bench.run_folder import Run, RunFolder
from specedge_bench.summary import Slo, summarise


class _Addresses(HTMLParser):
    """Collects every address that a page would load something from."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_report_of_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_synthetic_run(tmp_path, num_repetitions=2)
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "All systems gave the same answers to the 16 prompts they share." in printed
    assert printed.count("| specedge |") == 4
    markdown = (tmp_path / "report.md").read_text()
    for title in ("Overview", "Latency", "Load and goodput", "Speculation", "Verifier and network", "Cost"):
        assert f"## {title}" in markdown
    html = (tmp_path / "report.html").read_text()
    page = _Addresses()
    page.feed(html)
    # Self-contained: nothing is loaded but the drawings' own parts.
    assert all(address.startswith("#") for address in page.found)
    assert "script" not in page.tags
    assert "nan" not in re.findall(r"<td>([^<]*)</td>", html)
    for section in (*report._PLOT_NOTES, "Overview", "Cost"):
        assert f"<h2>{section}</h2>" in html
    # Panels: 4 cells each for two CDFs and acceptance, 2 networks, 2 loads, and 3 systems' timelines.
    assert page.tags.count("svg") == 4 + 4 + 2 + 2 + 4 + 3


def test_long_names_of_many_systems_leave_room_for_the_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = [f"specedge:streamed:ready:max_budget={size}+max_beam_len=12+max_branch_width=8" for size in range(6)]
    with RunFolder.create(tmp_path, run_info()) as folder:
        for name in names:
            folder.append_cell(cell_row(f"{name}/wan/closed-1"))
            folder.append_request(request(f"{name}/wan/closed-1"))
    run = RunFolder.load(tmp_path)
    plots = draw_all(run, summarise(run, Slo()))  # a legend that takes all of a figure is a warning, hence an error
    assert all(plot.svg.count(name) == 1 for plot in plots if plot.section == "Time to first token" for name in names)


def test_a_report_made_twice_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_synthetic_run(tmp_path, num_repetitions=1)
    report.main([str(tmp_path)])
    first = (tmp_path / "report.html").read_bytes()
    report.main([str(tmp_path)])
    assert (tmp_path / "report.html").read_bytes() == first


def test_without_matplotlib_the_tables_are_still_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.import_module

    def missing(name: str) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    write_synthetic_run(tmp_path, num_repetitions=1)
    assert report.main([str(tmp_path)]) == 0
    assert "## Overview" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "report.html").exists()
    assert "pip install 'specedge[bench]'" in capsys.readouterr().err


def test_different_answers_are_named_and_fail_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create(tmp_path, run_info()) as folder:
        folder.append_request(request(prompt="p<7>"))
        folder.append_request(request("server-only/wan/closed-1", prompt="p<7>", digest="e"))
        folder.append_request(request(prompt="p8", status="failed", error="gone"))
    assert report.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "prompt p<7>, seed 1: specedge/wan/closed-1 / server-only/wan/closed-1" in printed
    assert "1 of 3 requests failed" in printed
    assert "repetitions were interrupted" in printed


def test_simulated_numbers_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic_run(tmp_path, num_repetitions=1, source="simulated", prices={})
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "These numbers are simulated, not measured." in printed
    assert "No price for 'A100-40', 'RTX 4090'" in printed


def test_a_remade_report_keeps_the_limits_of_its_run() -> None:
    run = Run(run_info(options={"slo_ttft_ms": 250.0}), (), (), ())
    assert report.chosen_slo(run, None, None) == Slo(0.25, 0.1)
    assert report.chosen_slo(run, 500.0, 40.0) == Slo(0.5, 0.04)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecEdgeError, match="holds no run"):
        report.main([str(tmp_path)])
