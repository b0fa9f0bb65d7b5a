"""The engine bench's own arithmetic: which forwards, what bounds them, what the tables say; a tiny model end to end."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.engine import __main__ as command
from benchmarks.engine import gpu_targets, report
from benchmarks.engine.gpu_targets import Report, Target, rates_of, run_parts
from benchmarks.engine.hardware import Hardware, Sizes, measure_hardware
from benchmarks.engine.models import TINY, EngineRefused, check_engines, random_model
from benchmarks.engine.points import KINDS, BadGrid, Kind, Point, grid
from benchmarks.engine.step_profile import Span, summarise
from benchmarks.engine.timing import MIN_TURNS, STEPS_PER_TURN, Times, clock_for, take_turns
from specedge.errors import ModelLoadError, SettingsError
from specedge.model.native import load_native
from specedge_bench.model_shape import QWEN3_14B
from specedge_bench.shape_timing import EagerSteps

CPU = torch.device("cpu")
ALL_KINDS = tuple(KINDS)


def test_grid_has_every_forward_once() -> None:
    points = grid(ALL_KINDS, [1, 2, 8, 12, 16], [128, 512], 4096)

    assert [p.num_rows for p in points if p.kind == "tree" and p.prefix == 128] == [1, 2, 8, 12, 16]
    assert [(p.num_sessions, p.num_nodes) for p in points if p.kind == "sessions" and p.prefix == 512] == [
        (8, 1),
        (8, 2),
    ]
    assert [p.num_rows for p in points if p.kind == "chunk" and p.prefix == 512] == [2, 8, 12, 16]
    assert len(points) == len(set(points))


def test_prefixes_beyond_the_model_become_the_longest_that_leaves_room() -> None:
    points = grid(["tree"], [1, 256], [128, 512, 2048, 4096], 1024)

    assert sorted({p.prefix for p in points}) == [128, 512, 768]


@pytest.mark.parametrize(
    ("kinds", "rows", "positions", "message"),
    [
        (["tree"], [5000], 10_000, "rows 5000: at most 4096"),
        (["tree"], [64], 64, "rows 64: the model has 64 positions"),
        (["sessions"], [4], 64, "rows 4: sessions need 8"),
    ],
)
def test_grid_refuses(kinds: list[Kind], rows: list[int], positions: int, message: str) -> None:
    with pytest.raises(BadGrid, match=message):
        grid(kinds, rows, [16], positions)


def test_bound_is_the_larger_of_reading_weights_and_multiplying_and_then_the_context() -> None:
    sizes = Sizes(QWEN3_14B, weight_bytes=2, kv_bytes=2)
    one, many = Point("sessions", 8, 1, 1000), Point("sessions", 8, 128, 1000)
    bytes_per_s, flops = 4e12, 8e14
    parameters = QWEN3_14B.num_matmul_parameters

    assert sizes.products_s(one, bytes_per_s, flops) == pytest.approx(2 * parameters / bytes_per_s)
    assert sizes.products_s(many, bytes_per_s, flops) == pytest.approx(2 * parameters * 1024 / flops)
    # 40 layers of keys and values, 8 heads of 128, in two bytes each.
    context_s = 8 * 1001 * 40 * 2 * 8 * 128 * 2 / bytes_per_s
    assert sizes.bound_s(one, bytes_per_s, flops) - sizes.products_s(one, bytes_per_s, flops) == pytest.approx(
        context_s
    )


def test_a_chunk_multiplies_the_head_once_and_sees_half_of_itself() -> None:
    sizes = Sizes(TINY, weight_bytes=2, kv_bytes=4)
    chunk, tree = Point("chunk", 1, 64, 10), Point("tree", 1, 64, 10)

    assert sizes.matmul_flops(tree) - sizes.matmul_flops(chunk) == 2 * 63 * TINY.head_parameters
    assert chunk.num_pairs == sum(10 + row + 1 for row in range(64))
    assert sizes.kv_read(chunk) == 74 * TINY.kv_bytes_per_token("float32")


def test_hardware_is_measured_within_what_the_device_has_room_for() -> None:
    found = measure_hardware(1, torch.float32, CPU)

    assert found.num_bytes == 1 << 20
    assert found.read_bytes_per_s > 1e8
    assert found.flops > 1e8
    assert found.dtype == "float32"


def test_times_are_the_median_and_the_95th_of_100() -> None:
    assert Times.of([float(number) for number in range(100, 0, -1)]) == Times(50.5, 95.0, 100)
    assert Times.of([3.0]) == Times(3.0, 3.0, 1)


def test_engines_take_turns() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "AB"}

    times = take_turns(steps, CPU, 2 * STEPS_PER_TURN, 60.0)

    turn = ["A"] * (STEPS_PER_TURN + 1) + ["B"] * (STEPS_PER_TURN + 1)
    assert order == ["A", "B", *turn, *turn]
    assert {name: taken.num_steps for name, taken in times.items()} == {"A": 10, "B": 10}


def test_one_thread_on_the_cpu_is_timed_by_its_own_clock() -> None:
    assert clock_for(CPU, 1) is time.thread_time
    assert clock_for(CPU, 2) is time.perf_counter
    assert clock_for(torch.device("cuda:0"), 1) is time.perf_counter

    taken = take_turns({"sleeper": lambda: time.sleep(0.001)}, CPU, STEPS_PER_TURN, 60.0, time.thread_time)

    assert taken["sleeper"].median_s < 0.001


def test_slow_steps_are_fewer() -> None:
    times = take_turns({"A": lambda: None}, CPU, 10_000, 1e-9)

    assert times["A"].num_steps == MIN_TURNS * STEPS_PER_TURN


def test_engines_compute_the_same_from_one_set_of_random_weights() -> None:
    """What is timed is one model, and the tree's masks and the chunk's wanted row reach every engine."""
    loaded = random_model(TINY, CPU, torch.float32)
    engines = ["transformers", "lean", *(["native"] if load_native() is not None else [])]
    for is_chain in (False, True):
        logits = []
        for engine in engines:
            runner = loaded.make(engine, 64)  # type: ignore[arg-type]
            runner.cache.layer(0)[0].fill_(0.5)
            batch = EagerSteps(runner).batch(2, 5, 7, is_chain=is_chain)
            batch.token_ids[:] = np.arange(10)
            logits.append(runner.forward(batch))
        assert logits[0].shape == (2 if is_chain else 10, TINY.vocab_size)
        assert float(logits[0].abs().max()) > 1e-3
        for other in logits[1:]:
            torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)


def test_native_is_refused_on_a_gpu() -> None:
    with pytest.raises(EngineRefused, match="not on cuda:0"):
        check_engines(["native"], torch.device("cuda:0"))


def run_of(model: str, times: dict[str, list[float]]) -> report.EngineRun:
    """A run whose points have 8 and 64 rows."""
    run = report.EngineRun(model, "cpu", 1, "bfloat16", tuple(times), Hardware(1, 1e9, "float32", 1e9), {"cpu": "one"})
    for number, num_rows in enumerate((8, 64)):
        for engine, taken in times.items():
            ms = taken[number]
            run.points.append(report.Measured("tree", 1, num_rows, 128, engine, ms, 2 * ms, 30, 0.5))
    return run


def test_ratios_are_of_the_same_point() -> None:
    run = run_of("m", {"transformers": [6.0, 10.0], "native": [1.5, 4.0]})

    assert run.ratios("native", 8) == [4.0]
    assert run.ratios("native", 64) == [2.5]
    assert run.ratios("native", 32) == []
    assert run.ratios("bound", 64) == [20.0]
    assert run.points[1].of_bound == pytest.approx(1 / 3)


def test_runs_are_added_to_the_file(tmp_path: Path) -> None:
    first, second = run_of("a", {"transformers": [1.0, 2.0]}), run_of("b", {"lean": [1.0, 2.0]})
    report.write(tmp_path, [first])
    newer = run_of("a", {"transformers": [3.0, 4.0], "native": [1.0, 1.0]})

    report.write(tmp_path, report.merge(report.read(tmp_path, SettingsError), [newer, second]))

    assert report.read(tmp_path, SettingsError) == [newer, second]
    text = (tmp_path / "engine.md").read_text()
    assert "| 8 | 128 | 3.00 (6.00) | 17 % | 1.00 (2.00) | 3.00 | 50 % |" in text
    assert "| a on cpu, 1 thread | native | 3.00 |" in text
    assert "| a on cpu, 1 thread | bound | 6.00 |" in text


def test_a_run_that_was_interrupted_at_once_replaces_nothing() -> None:
    old, new = run_of("a", {"transformers": [1.0, 2.0]}), run_of("a", {})

    assert report.merge([old], [new]) == [old]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"runs": [{"model": "a"}]}')

    with pytest.raises(SettingsError, match=r"engine\.json"):
        report.read(tmp_path, SettingsError)


TINY_GRID = ["--shape", "tiny", "--rows", "1,8", "--prefix", "16", "--threads", "1", "--steps", "2", "--device", "cpu"]


def test_the_command_measures_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main([*TINY_GRID, "--engines", "transformers,lean", "--out", str(tmp_path)])

    assert status == 0
    (run,) = json.loads((tmp_path / "engine.json").read_text())["runs"]
    assert len(run["points"]) == 2 * (2 + 1 + 1)
    assert all(0 < point["median_ms"] <= point["p95_ms"] and point["bound_ms"] > 0 for point in run["points"])
    assert "tiny on cpu, 1 thread" in capsys.readouterr().out


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def interrupted(*arguments: object) -> dict[str, Times]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return {"lean": Times(1e-3, 2e-3, 5)}

    monkeypatch.setattr(command, "take_turns", interrupted)

    assert command.main([*TINY_GRID, "--engines", "lean", "--out", str(tmp_path)]) == 130
    assert len(json.loads((tmp_path / "engine.json").read_text())["runs"][0]["points"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "0"], "threads 0: from 1 to"),
        (["--steps", "0"], "steps 0: from 1 to 10000"),
        (["--max-seconds", "0"], "max-seconds 0: more than 0"),
        (["--shape", "gpt-9"], "shape gpt-9: known are"),
        (["--rows", "9000"], "rows 9000: at most 4096"),
        (["--device", "tpu"], "device tpu"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert command.main([*TINY_GRID, *flags, "--out", str(tmp_path)]) in (1, 2)
    assert message in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", [["--rows", "0"], ["--engines", "vllm"], ["--kinds", "forest"], ["--models", "judge"]]
)
def test_unknown_words_are_refused_by_the_parser(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(flags)
    assert ended.value.code == 2


def test_gaps_are_between_spans_and_not_within_them() -> None:
    spans = [Span("outer", 0, 10), Span("inner", 2, 5), Span("late", 9, 14), Span("far", 30, 31), Span("inner", 35, 36)]

    found = summarise("step", spans)

    assert found.gaps == [(16, "late", "far"), (4, "far", "inner")]
    assert found.busy_us == 14 + 1 + 1
    assert found.kernels[:3] == [("outer", 1, 10), ("late", 1, 5), ("inner", 2, 4)]


@pytest.mark.parametrize(
    ("gpu", "sheet", "bytes_per_s"),
    [
        ("NVIDIA H200", "H200", 0.8 * 4.8e12),
        ("NVIDIA H100 80GB HBM3", "H100", 0.8 * 3.35e12),
        ("NVIDIA A100-SXM4-80GB", "A100-80", 0.8 * 2.039e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 0.8 * 1.008e12),
        ("NVIDIA L4", "measured", 7.0),
    ],
)
def test_the_data_sheet_is_found_by_the_devices_name(
    monkeypatch: pytest.MonkeyPatch, gpu: str, sheet: str, bytes_per_s: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)

    found = rates_of(torch.device("cuda:0"), Hardware(1, 7.0, "bfloat16", 9.0))

    assert found[0] == pytest.approx(bytes_per_s)
    assert sheet in found[2]


def test_targets_have_a_side() -> None:
    assert Target("time", 1.2, 1.3).is_met
    assert not Target("time", 1.4, 1.3).is_met
    assert Target("throughput", 4.5, 4.0, is_least=True).is_met
    assert not Target("throughput", 3.5, 4.0, is_least=True).is_met


def test_a_part_that_does_not_fit_is_named_and_the_next_one_runs() -> None:
    found = Report("a device", {})
    ran = []

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    def refused() -> None:
        raise ModelLoadError("no room")

    run_parts({"big": too_large, "no": refused, "small": lambda: ran.append(1)}, CPU, 60.0, found)

    assert found.left_out == ["big: CUDA out of memory", "no: no room"]
    assert ran == [1]
    run_parts({"late": too_large}, CPU, -1.0, found)
    assert found.left_out[-1] == "late: -1 s were over"


def test_gpu_targets_run_on_the_cpu_with_a_tiny_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--device", "cpu", "--shapes", "tiny", "--draft-shape", "tiny", "--prefix", "16", "--steps", "2"]

    status = gpu_targets.main([*given, "--draft-rows", "4", "--out", str(tmp_path)])

    assert status == 0
    found = json.loads((tmp_path / "engine-gpu.json").read_text())
    assert found["left_out"] == []
    assert [target["name"] for target in found["targets"]] == [
        "attention, 8 decoding, prefix 128: time / reference's",
        "attention, 8 decoding, prefix 128: largest error",
        "tiny: draft step of 4 rows / bound",
        "tiny: draft rows/s of 8 users / of 1, 4 rows each",
        "tiny: 8 x 32 nodes / 8 plain rows",
        "tiny: plain step / bound",
        "tiny: verify step / bound",
    ]
    assert {step["step"]: step["num_rows"] for step in found["steps"]} == {
        "1 x 4 rows": 4,
        "8 x 4 rows": 32,
        "plain": 8,
        "verify": 256,
    }
    assert all(profile["kernels"] and profile["busy_us"] > 0 for profile in found["profiles"])
    assert "Profile of tiny: verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "qwen3-14b"], "real shapes need a CUDA device"),
        (["--prefix", "0"], "prefix 0"),
        (["--draft-rows", "0"], "draft rows 0: allowed are numbers from 1 to 256"),
        (["--draft-rows", "x"], "draft rows x"),
    ],
)
def test_gpu_targets_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    given = ["--device", "cpu", "--shapes", "tiny", "--draft-shape", "tiny", "--out", str(tmp_path / "new")]

    assert gpu_targets.main([*given, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_cuda_the_attention_bench_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert command.main(["attention"]) == 0
    assert "No CUDA device" in capsys.readouterr().out
