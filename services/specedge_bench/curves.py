"""Step-time curves: how long one forward takes for its number of rows and the keys and values it reads.

A curve is a grid measured by `specedge bench shapes`, or computed from a device's data sheet. In the *decode* grid
every row belongs to a session of its own; the optional *tree* grid has `num_nodes` rows in each session. Both have the
number of rows of the whole step on one axis and the KV tokens of each session on the other.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

from specedge.errors import SettingsError
from specedge_bench.devices import DEVICES, Device, find_device, slug
from specedge_bench.model_shape import BUILT_IN, ModelShape, dtype_bytes, find_shape

SCHEMA_VERSION = 1
ROOFLINE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ROOFLINE_PREFIXES = (128, 8192)
BANDWIDTH_REACHED = 0.8  # share of the peak that well-tuned kernels reach
FLOPS_REACHED = 0.6
_MAX_MS = 3_600_000.0


class ProfileError(SettingsError):
    """A step-time profile is missing, malformed, or of a newer schema."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds by rows of the step and KV tokens per session; None where a point did not fit into memory."""

    rows: tuple[int, ...]
    prefixes: tuple[int, ...]
    seconds: tuple[tuple[float | None, ...], ...]

    def __post_init__(self) -> None:
        for name, axis in (("rows", self.rows), ("prefixes", self.prefixes)):
            if not axis or axis[0] < 0 or any(left >= right for left, right in pairwise(axis)):
                raise ProfileError(f"{name} are {list(axis)}; they have to be at least one, not negative and ascending")
        if len(self.seconds) != len(self.rows) or any(len(line) != len(self.prefixes) for line in self.seconds):
            raise ProfileError(f"times have to be {len(self.rows)} lines of {len(self.prefixes)} values")
        for num_rows, line in zip(self.rows, self.seconds, strict=True):
            values = [value for value in line if value is not None]
            if not values or min(values) <= 0:
                raise ProfileError(f"times of {num_rows} rows are {list(line)}; one or more positive ones are needed")

    def at(self, num_rows: float, prefix: float) -> float:
        """Seconds by straight lines between neighbours; beyond the grid the outermost line goes on, never falling."""
        right = min(max(bisect_right(self.rows, num_rows), 1), len(self.rows) - 1)
        if num_rows <= self.rows[0] or len(self.rows) == 1:
            return self._line(0, prefix)
        return _straight(
            num_rows,
            (self.rows[right - 1], self._line(right - 1, prefix)),
            (self.rows[right], self._line(right, prefix)),
        )

    def _line(self, index: int, prefix: float) -> float:
        points = [
            (tokens, value)
            for tokens, value in zip(self.prefixes, self.seconds[index], strict=True)
            if value is not None
        ]
        if len(points) == 1:
            return points[0][1]
        right = min(max(sum(tokens <= prefix for tokens, _ in points), 1), len(points) - 1)
        return _straight(prefix, points[right - 1], points[right])


def _straight(x: float, left: tuple[int, float], right: tuple[int, float]) -> float:
    slope = (right[1] - left[1]) / (right[0] - left[0])
    if left[0] <= x <= right[0]:
        return left[1] + slope * (x - left[0])
    # Noise can make the outermost line fall; going on with it would promise time that falls without end.
    slope = max(slope, 0.0)
    nearest = right if x > right[0] else left
    return max(nearest[1] + slope * (x - nearest[0]), 0.1 * nearest[1])


@dataclass(frozen=True, slots=True)
class StepCurve:
    """T(rows, KV) of one model on one device; both are empty words where a curve is only a line.

    Attributes:
        method: "roofline", "measured eager" or "measured graph", with more words where they help.
        decode: every row is a session of its own.
        tree: `num_nodes` rows in each session; None where it was not measured.
    """

    name: str
    device: str
    model: str
    dtype: str
    method: str
    decode: Grid
    tree: Grid | None = None
    num_nodes: int = 1

    @property
    def rows(self) -> tuple[int, ...]:
        return self.decode.rows

    @property
    def prefixes(self) -> tuple[int, ...]:
        return self.decode.prefixes

    def seconds(self, num_rows: int, kv_tokens: int, num_sessions: int) -> float:
        """How long one step takes, in seconds.

        Args:
            num_rows: tokens of the step, over all sessions.
            kv_tokens: tokens whose keys and values are read, summed over the sessions.
            num_sessions: sessions with a row in the step.
        """
        if num_rows <= 0 or num_sessions <= 0:
            return 0.0
        rows_per_session = num_rows / num_sessions
        if self.tree is None or rows_per_session <= 1:
            # A session's keys are read once for all of its rows: what counts is the sum, spread over all rows.
            return self.decode.at(num_rows, kv_tokens / num_rows)
        share = min(log(rows_per_session) / log(self.num_nodes), 1.0)
        in_trees = self.tree.at(num_rows, kv_tokens / num_sessions)
        if share == 1.0:
            return in_trees
        return (1 - share) * self.decode.at(num_rows, kv_tokens / num_rows) + share * in_trees


def roofline_curve(device: Device, shape: ModelShape, dtype: str = "bfloat16") -> StepCurve:
    """max(weights / 0.8 bandwidth, 2 P rows / 0.6 flops) + KV / 0.8 bandwidth; without launch and network overheads."""
    # Tensor cores run float32 (as TF32) and vector units run float32 at half their 16-bit rate.
    flops = FLOPS_REACHED * device.flops * min(2 / dtype_bytes(dtype), 1.0)
    bandwidth = BANDWIDTH_REACHED * device.memory_bytes_per_s
    # The row count from which matrix products take longer than reading the weights is a corner of the curve.
    corner = round(flops / bandwidth * dtype_bytes(dtype) / 2)
    rows = tuple(sorted({*ROOFLINE_ROWS, corner}))
    seconds = []
    for num_rows in rows:
        math_s = max(shape.weight_bytes(dtype) / bandwidth, 2 * shape.num_matmul_parameters * num_rows / flops)
        read_s = num_rows * shape.kv_bytes_per_token(dtype) / bandwidth
        seconds.append(tuple(math_s + prefix * read_s for prefix in ROOFLINE_PREFIXES))
    return StepCurve(
        name=f"{slug(device.name)}-{slug(shape.name)}-roofline",
        device=device.name,
        model=shape.name,
        dtype=dtype,
        method="roofline",
        decode=Grid(rows, ROOFLINE_PREFIXES, tuple(seconds)),
    )


def profile_folders() -> tuple[Path, ...]:
    """Where profiles lie: beside this package when installed, in `benchmarks/` in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "profiles", package.parents[1] / "benchmarks" / "profiles"


def list_curves() -> list[str]:
    """Names of the profiles of this installation."""
    return sorted({path.stem for folder in profile_folders() if folder.is_dir() for path in folder.glob("*.json")})


def straight_curve(name: str) -> StepCurve:
    """`30ms` takes that long whatever it computes, `30ms+0.1ms` that long and 0.1 ms more for every row.

    Raises:
        ProfileError: a time is no number of milliseconds, or not from above 0 to below an hour.
    """
    try:
        step_ms, per_row_ms = (float(part.strip().removesuffix("ms")) for part in f"{name}+0ms".split("+")[:2])
    except ValueError as error:
        raise ProfileError(f"curve {name}: wanted is 30ms, or 30ms+0.1ms with a time for every row") from error
    if not (0 < step_ms < _MAX_MS and 0 <= per_row_ms < _MAX_MS):
        raise ProfileError(f"curve {name}: a step has to take more than 0 and less than {_MAX_MS:g} ms, a row no less")
    rows = (0, ROOFLINE_ROWS[-1])
    seconds = tuple(((step_ms + num_rows * per_row_ms) / 1e3,) for num_rows in rows)
    return StepCurve(name, "", "", "", "straight line", Grid(rows, (0,), seconds))


def load_curve(name_or_path: str | Path) -> StepCurve:
    """A curve by the path of its file, by the name of a profile, or `DEVICE/MODEL` for the roofline of a known pair.

    `30ms` and `30ms+0.1ms` are curves too, see `straight_curve`.

    Raises:
        ProfileError: there is no such profile, or it is malformed; names what is known.
    """
    name = str(name_or_path)
    if name.endswith("ms"):
        return straight_curve(name)
    for path in (Path(name), *(folder / f"{name}.json" for folder in profile_folders())):
        if path.is_file():
            return read_curve(path)
    device, _, model = name.partition("/")
    if (shape := find_shape(model)) is not None:
        return roofline_curve(find_device(device), shape)
    raise ProfileError(
        f"profile {name}: no such file; known are {', '.join(list_curves()) or 'none'}, and as DEVICE/MODEL a roofline "
        f"of {', '.join(DEVICES)} with {', '.join(BUILT_IN)}"
    )


def read_curve(path: Path) -> StepCurve:
    """Read one profile file.

    Raises:
        ProfileError: names the file and what is wrong with it.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ProfileError) as error:
        raise ProfileError(f"profile {path}: {error}") from error


def from_json(fields: Mapping[str, Any]) -> StepCurve:
    """A curve from the fields of a profile file; fields it does not know are notes for people.

    Raises:
        ProfileError: a field is missing or malformed, or the schema is newer than this installation's.
    """
    try:
        version = int(fields["schema_version"])
        if version > SCHEMA_VERSION:
            raise ProfileError(f"schema {version} is newer than {SCHEMA_VERSION}, the newest one known here")
        tree = fields.get("tree")
        return StepCurve(
            name=str(fields["name"]),
            device=str(fields["device"]),
            model=str(fields["model"]),
            dtype=str(fields["dtype"]),
            method=str(fields["method"]),
            decode=_grid(fields),
            tree=None if tree is None else _grid(tree),
            num_nodes=1 if tree is None else _at_least_two(int(tree["num_nodes"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"field {error} is missing or malformed") from error


def _at_least_two(num_nodes: int) -> int:
    if num_nodes < 2:
        raise ProfileError(f"num_nodes is {num_nodes}; a tree has 2 or more")
    return num_nodes


def _grid(fields: Mapping[str, Any]) -> Grid:
    seconds = tuple(tuple(None if ms is None else float(ms) / 1e3 for ms in line) for line in fields["ms"])
    return Grid(tuple(map(int, fields["rows"])), tuple(map(int, fields["prefixes"])), seconds)


def to_json(curve: StepCurve) -> dict[str, Any]:
    """The fields of a profile file, times in milliseconds rounded to 0.1 us."""
    fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    fields |= {key: getattr(curve, key) for key in ("name", "device", "model", "dtype", "method")}
    fields |= _grid_fields(curve.decode)
    if curve.tree is not None:
        fields["tree"] = {"num_nodes": curve.num_nodes, **_grid_fields(curve.tree)}
    return fields


def _grid_fields(grid: Grid) -> dict[str, Sequence[Any]]:
    ms = [[None if value is None else round(value * 1e3, 4) for value in line] for line in grid.seconds]
    return {"rows": list(grid.rows), "prefixes": list(grid.prefixes), "ms": ms}


def write_curve(path: Path, curve: StepCurve, notes: Mapping[str, Any] | None = None) -> None:
    """Write a profile file, one line of the grid a line."""
    lines = []
    for key, value in {**to_json(curve), **(notes or {})}.items():
        text = json.dumps(value)
        if key == "ms":
            text = "[\n    " + ",\n    ".join(json.dumps(line) for line in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
