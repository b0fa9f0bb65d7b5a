"""The rows of a run: what they compute, that they survive the file, and what a damaged folder says."""

import json
import math
from pathlib import Path

import pytest
from bench_rows import cell_row, request, run_info, step

from specedge_bench.records import (
    SCHEMA_VERSION,
    BadRecord,
    CellRecord,
    RequestRecord,
    RunInfo,
    SchemaTooNew,
    StepRecord,
    from_json,
    to_json,
)
from specedge_bench.run_folder import RunFolder, RunFolderError


def test_latencies_of_a_request_by_hand() -> None:
    record = request(scheduled_s=0.9, sent_s=1.0)  # bursts: 1 token at 1.5, 2 at 1.7, 3 at 2.0
    assert record.ttft_s == pytest.approx(0.6)
    assert record.e2e_s == pytest.approx(1.1)
    assert record.tpot_s == pytest.approx(0.5 / 5)
    assert record.burst_gaps_s() == pytest.approx([0.2, 0.3])
    assert record.token_gaps_s() == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1])
    assert sum(record.token_gaps_s()) / len(record.token_gaps_s()) == pytest.approx(record.tpot_s)


def test_a_request_without_tokens_has_no_latencies() -> None:
    record = request(bursts=(), status="failed")
    assert math.isnan(record.ttft_s)
    assert math.isnan(record.tpot_s)
    assert record.burst_gaps_s() == []
    assert record.token_gaps_s() == []


def test_one_burst_has_no_time_per_output_token() -> None:
    assert math.isnan(request(bursts=((1.5, 4),)).tpot_s)


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (RunInfo, run_info(bound={"acceptance": 0.7})),
        (RequestRecord, request(error="ends in a quote \" and a 'ü'")),
        (StepRecord, step(accepted_depths=(1, 0, 3), queue_ms=(0.5,))),
        (CellRecord, cell_row(wasted={"rejected": 3}, accepted_by_depth=(4, 2), rtt_ms_measured=None)),
    ],
)
def test_every_record_survives_json(kind: type, record: RequestRecord) -> None:
    assert from_json(kind, json.loads(json.dumps(to_json(record), allow_nan=False))) == record


def test_nan_is_written_as_null_and_read_back() -> None:
    row = to_json(cell_row(rtt_ms_configured=math.nan))
    assert row["rtt_ms_configured"] is None
    assert math.isnan(from_json(CellRecord, row).rtt_ms_configured)


def test_a_newer_schema_is_refused_by_both_versions() -> None:
    row = {**to_json(run_info()), "schema_version": SCHEMA_VERSION + 1, "unheard_of": 1}
    with pytest.raises(SchemaTooNew, match=rf"DIR/run.json has schema version {SCHEMA_VERSION + 1}.*{SCHEMA_VERSION};"):
        from_json(RunInfo, row, "DIR/run.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": "one"}, "seed is 'one'"), ({"unheard_of": 1}, "unknown fields .'unheard_of'")],
)
def test_a_row_of_the_wrong_form_names_its_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        from_json(RequestRecord, {**to_json(request()), **change})


def test_a_missing_field_is_named() -> None:
    row = to_json(request())
    del row["seed"]
    with pytest.raises(BadRecord, match=r"missing fields .'seed'"):
        from_json(RequestRecord, row, "requests.jsonl:1")


def test_a_folder_gives_back_what_was_appended(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", run_info()) as folder:
        folder.append_request(request())
        folder.append_steps([step(), step(started_s=2.0)])
        # Rows are on disk while the run goes on: an interrupted one keeps them.
        assert len(RunFolder.load(tmp_path / "run").steps) == 2
        folder.append_cell(cell_row())
        folder.write_info(run_info(num_skipped_prompts=3))
    run = RunFolder.load(tmp_path / "run")
    assert run.info == run_info(num_skipped_prompts=3)
    assert run.requests == (request(),)
    assert run.steps == (step(), step(started_s=2.0))
    assert run.cells == (cell_row(),)
    assert run.num_torn_rows == 0


def test_a_torn_last_row_is_left_out_and_counted(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_info()) as folder:
        folder.append_request(request())
    with (tmp_path / "requests.jsonl").open("a") as file:
        file.write('{"cell":"spec')
    run = RunFolder.load(tmp_path)
    assert run.requests == (request(),)
    assert run.num_torn_rows == 1


def test_a_broken_row_in_the_middle_is_named(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_info()) as folder:
        folder.append_cell(cell_row())
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(BadRecord, match=r"cells\.jsonl:2 is no JSON"):
        RunFolder.load(tmp_path)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, run_info()).close()
    with pytest.raises(RunFolderError, match="holds a run already"):
        RunFolder.create(tmp_path, run_info())


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json is missing"):
        RunFolder.load(tmp_path)


def test_a_folder_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(SchemaTooNew, match="99"):
        RunFolder.load(tmp_path)


def test_a_folder_of_the_first_schema_is_read(tmp_path: Path) -> None:
    row = to_json(step(num_kv_tokens=512))
    del row["num_kv_tokens"]
    (tmp_path / "run.json").write_text(json.dumps({**to_json(run_info()), "schema_version": 1}))
    (tmp_path / "steps.jsonl").write_text(json.dumps(row) + "\n")

    run = RunFolder.load(tmp_path)
    assert run.info.schema_version == 1
    assert run.steps == (step(num_kv_tokens=0),)
