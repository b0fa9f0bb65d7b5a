"""The dashboards have the types of Grafana's own schema: each panel, its options and its field settings."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BOARDS = sorted((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards").glob("*.json"))
NODE_MODULES = Path(os.environ.get("SPECEDGE_NODE_MODULES", "node_modules"))

KINDS = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg",
    "stat": "stat/panelcfg/x/StatPanelCfg",
    "bargauge": "bargauge/panelcfg/x/BarGaugePanelCfg",
    "heatmap": "heatmap/panelcfg/x/HeatmapPanelCfg",
    "table": "table/panelcfg/x/TablePanelCfg",
}
WITH_FIELD_SETTINGS = {"timeseries", "heatmap", "table"}

# JSON has no enumerations: a text is one if it is a member's.
HEAD = """import type { Dashboard, Panel, RowPanel } from '@grafana/schema';
type Plain<T> = T extends string ? `${T}` : T extends (infer Item)[] ? Plain<Item>[]
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> } : T;
"""


def program(board: dict[str, Any]) -> str:
    """TypeScript that compiles only if everything in the dashboard has its type, and nothing is in it that has none."""
    paths = KINDS.items()
    parts = [
        f"import type * as {kind} from '@grafana/schema/dist/esm/raw/composable/{path}_types.gen';"
        for kind, path in paths
    ]
    parts.append(HEAD)
    frame = {name: value for name, value in board.items() if name != "panels"}
    parts.append(f"export const board: Plain<Dashboard> = {json.dumps(frame, indent=1)};")
    for panel in board["panels"]:
        number, kind = panel["id"], panel["type"]
        if kind == "row":
            parts.append(f"export const row{number}: Plain<RowPanel> = {json.dumps(panel, indent=1)};")
            continue
        options, custom = panel["options"], panel["fieldConfig"]["defaults"]["custom"]
        parts.append(f"export const panel{number}: Plain<Panel> = {json.dumps(panel, indent=1)};")
        parts.append(f"export const options{number}: Plain<Partial<{kind}.Options>> = {json.dumps(options)};")
        if kind in WITH_FIELD_SETTINGS:
            parts.append(f"export const custom{number}: Plain<Partial<{kind}.FieldConfig>> = {json.dumps(custom)};")
        else:
            assert custom == {}
    return "\n".join(parts)


def compiled(folder: Path, *boards: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What `tsc` says to dashboards."""
    (folder / "node_modules").symlink_to(NODE_MODULES.resolve())
    for index, board in enumerate(boards):
        (folder / f"board{index}.ts").write_text(program(board))
    options = {"noEmit": True, "strict": True, "skipLibCheck": True, "moduleResolution": "bundler", "types": []}
    options |= {"target": "es2022", "module": "es2022"}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts"]}))
    tsc = str(NODE_MODULES.resolve() / "typescript" / "bin" / "tsc")
    return subprocess.run(["node", tsc], cwd=folder, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(autouse=True)
def _schema_is_there() -> None:
    for package in ("@grafana/schema", "typescript"):
        if shutil.which("node") is None or not (NODE_MODULES / package).is_dir():
            pytest.skip(f"needs Node and the npm package {package}, which `make test-monitoring` installs where npm is")


def test_every_dashboard_has_the_types_of_grafanas_schema(tmp_path: Path) -> None:
    result = compiled(tmp_path, *(json.loads(path.read_text()) for path in BOARDS))
    assert result.returncode == 0, result.stdout[:4000]


def test_mistakes_would_be_found(tmp_path: Path) -> None:
    mistakes: list[tuple[tuple[str, ...], object]] = [
        (("options", "legend", "placement"), "middle"),
        (("options", "legends"), {}),
        (("gridPos", "x"), "0"),
        (("fieldConfig", "defaults", "custom", "lineWidth"), "thin"),
        (("titel",), "Tokens"),
    ]
    boards = []
    for where, value in mistakes:
        board = json.loads(BOARDS[0].read_text())
        place: Any = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
        for name in where[:-1]:
            place = place[name]
        place[where[-1]] = value
        boards.append(board)
    result = compiled(tmp_path, *boards)
    assert result.returncode != 0
    for index in range(len(mistakes)):
        assert f"board{index}.ts" in result.stdout, mistakes[index]
