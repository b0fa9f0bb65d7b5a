"""Step-time curves: interpolation against hand-computed values, the roofline, and profile files."""

import json
import shutil
from pathlib import Path

import pytest

from specedge_bench import curves
from specedge_bench.curves import (
    Grid,
    ProfileError,
    StepCurve,
    from_json,
    list_curves,
    load_curve,
    read_curve,
    roofline_curve,
    straight_curve,
    to_json,
    write_curve,
)
from specedge_bench.devices import DEVICES, UnknownDevice, find_device
from specedge_bench.model_shape import BUILT_IN, QWEN3_1_7B, QWEN3_14B

GRID = Grid((1, 8), (100, 200), ((0.010, 0.012), (0.017, 0.033)))
CURVE = StepCurve("c", "d", "m", "float32", "test", GRID)
TREE = Grid((4, 8), (100, 200), ((0.011, 0.013), (0.012, 0.016)))
FIELDS = to_json(CURVE)


@pytest.mark.parametrize(
    ("rows", "prefix", "ms"),
    [
        (1, 100, 10),
        (8, 200, 33),
        (1, 150, 11),
        (4.5, 100, 13.5),
        (4.5, 150, 18),  # between 11 and 25
        (15, 100, 24),  # goes on by 1 ms a row
        (8, 250, 41),  # goes on by 0.16 ms a token
        (8, 50, 9),
        (8, 0, 1.7),  # the line would end at 1 ms; a tenth of the nearest point is the least
    ],
)
def test_grid_by_straight_lines(rows: float, prefix: float, ms: float) -> None:
    assert GRID.at(rows, prefix) * 1e3 == pytest.approx(ms)


def test_outside_the_grid_time_never_falls() -> None:
    noisy = Grid((1, 2, 4), (128,), ((0.010,), (0.012,), (0.011,)))
    assert noisy.at(3, 128) == pytest.approx(0.0115)
    assert noisy.at(400, 128) == pytest.approx(0.011)


def test_points_that_did_not_fit_are_read_off_their_row() -> None:
    grid = Grid((1, 2), (100, 200, 300), ((0.010, 0.011, 0.012), (0.010, 0.014, None)))
    assert grid.at(2, 300) == pytest.approx(0.018)
    assert Grid((1,), (100, 200), ((0.010, None),)).at(1, 900) == pytest.approx(0.010)


def test_a_session_s_keys_are_read_once_for_all_of_its_rows() -> None:
    # 8 rows of 2 sessions with 400 tokens each read what 8 sessions with 100 each read
    assert CURVE.seconds(8, 800, 2) == CURVE.seconds(8, 800, 8) == pytest.approx(0.017)
    assert CURVE.seconds(0, 0, 0) == 0.0


def test_tree_grid_by_rows_per_session() -> None:
    curve = StepCurve("c", "d", "m", "float32", "test", GRID, TREE, num_nodes=4)
    assert curve.seconds(8, 400, 2) == pytest.approx(0.016)  # trees of 4, 200 tokens each
    assert curve.seconds(8, 200, 1) == pytest.approx(0.016)  # larger trees count as trees
    assert curve.seconds(8, 800, 8) == pytest.approx(0.017)  # plain rows
    # trees of 2 are halfway (log 2 / log 4): between 17 ms for 8 x 100 and 16 ms for 200 tokens in each tree
    assert curve.seconds(8, 800, 4) == pytest.approx(0.0165)


def test_roofline_by_hand() -> None:
    """14.0 G parameters in matrices: 27.98 GB at 0.8 x 1.555 TB/s is 22.49 ms; 163,840 bytes of KV for each token."""
    curve = roofline_curve(DEVICES["A100-40"], QWEN3_14B)
    assert curve.seconds(1, 0, 1) == pytest.approx(2 * 13_989_969_920 / (0.8 * 1.555e12), rel=1e-6)
    assert curve.seconds(1, 0, 1) == pytest.approx(0.02249, rel=1e-3)
    per_token_s = (curve.seconds(8, 8000, 8) - curve.seconds(8, 0, 8)) / 8000
    assert per_token_s == pytest.approx(163840 / (0.8 * 1.555e12), rel=1e-6)
    # compute-bound from 150 rows: 2 x 13.99 G x 512 rows at 0.6 x 312 TFLOP/s
    assert curve.seconds(512, 0, 16) == pytest.approx(2 * 13_989_969_920 * 512 / (0.6 * 312e12), rel=1e-6)


@pytest.mark.parametrize(
    ("device", "num_rows"), [("A100-40", 150), ("A100-80", 115), ("H100", 221), ("H200", 155), ("RTX 4090", 123)]
)
def test_rows_that_are_free(device: str, num_rows: int) -> None:
    curve = roofline_curve(DEVICES[device], QWEN3_14B)
    assert num_rows in curve.rows
    assert curve.seconds(num_rows, 0, 1) == pytest.approx(curve.seconds(1, 0, 1), rel=0.005)
    assert curve.seconds(num_rows + 20, 0, 1) > 1.05 * curve.seconds(1, 0, 1)


def test_the_committed_rooflines_are_what_the_code_computes() -> None:
    names = [name for name in list_curves() if name.endswith("-roofline")]
    assert len(names) >= 10
    for name in names:
        stored = load_curve(name)
        assert stored.name == name
        fresh = roofline_curve(find_device(stored.device), BUILT_IN[stored.model], stored.dtype)
        assert to_json(stored) == to_json(fresh)


def test_every_profile_of_the_project_loads() -> None:
    for name in list_curves():
        curve = load_curve(name)
        assert curve.name == name
        assert 0 < curve.seconds(1, 128, 1) <= curve.seconds(256, 256 * 1024, 256) < 100


def test_any_known_pair_has_a_roofline() -> None:
    assert load_curve("rtx-4090/qwen3-1.7b") == roofline_curve(DEVICES["RTX 4090"], QWEN3_1_7B)
    with pytest.raises(UnknownDevice, match="device B900: known are A100-40"):
        load_curve("B900/Qwen3-14B")


def test_profiles_are_found_beside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "specedge_bench"
    write_curve(package / "profiles" / "mine.json", CURVE)
    shutil.copy(curves.__file__, package / "curves.py")
    monkeypatch.setattr(curves, "__file__", str(package / "curves.py"))
    assert list_curves() == ["mine"]
    assert load_curve("mine").decode == GRID


def test_round_trip_with_notes_and_gaps(tmp_path: Path) -> None:
    gaps = Grid((4, 8), (100, 200), ((0.011, 0.013), (0.012, None)))
    curve = StepCurve("c", "d", "m", "float32", "measured graph", GRID, gaps, num_nodes=4)
    write_curve(tmp_path / "c.json", curve, {"kernels": {"gemm": 0.5}})
    assert read_curve(tmp_path / "c.json") == curve
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["kernels"] == {"gemm": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema 2 is newer than 1"),
        ({"rows": [8, 1]}, r"rows are \[8, 1\]"),
        ({"ms": [[1.0, 2.0]]}, "2 lines of 2 values"),
        ({"ms": [[1.0, 2.0], [0.0, 1.0]]}, "times of 8 rows"),
        ({"ms": [[1.0, 2.0], [None, None]]}, "times of 8 rows"),
        ({"ms": "fast"}, "missing or malformed"),
        ({"tree": {"num_nodes": 1, "rows": [1], "prefixes": [1], "ms": [[1.0]]}}, "num_nodes is 1"),
    ],
)
def test_a_malformed_profile_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        from_json(FIELDS | change)


def test_a_missing_profile_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="profile fast: no such file; known are a100-40-"):
        load_curve("fast")
    with pytest.raises(ProfileError, match="field 'device' is missing"):
        from_json({key: value for key, value in FIELDS.items() if key != "device"})
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ProfileError, match=r"broken\.json: Expecting"):
        load_curve(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("name", "rows", "ms"),
    [("30ms", 1, 30), ("30ms", 5000, 30), ("30ms+0.1ms", 1, 30.1), ("30ms+0.1ms", 120, 42), ("2ms+1ms", 9000, 9002)],
)
def test_straight_curves_are_named_by_their_times(name: str, rows: int, ms: float) -> None:
    curve = load_curve(name)

    assert curve.name == name
    assert curve.seconds(rows, 100_000, 7) * 1e3 == pytest.approx(ms)


@pytest.mark.parametrize("name", ["0ms", "-1ms", "30ms+-1ms", "4000000ms", "nanms", "30ms+infms", "30xms"])
def test_straight_curves_need_sensible_times(name: str) -> None:
    with pytest.raises(ProfileError, match="curve "):
        straight_curve(name)
