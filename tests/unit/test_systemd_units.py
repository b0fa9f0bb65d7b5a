"""The systemd units: they start what exists, give a drain its time, and systemd itself accepts them."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.settings import EdgeSettings
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_verifier.settings import VerifierSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = {"verifier": (VerifierSettings, load_verifier_settings), "edge": (EdgeSettings, load_edge_settings)}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / f"specedge-{name}.service").read_text())
    return parser


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_its_process_and_gives_a_drain_its_time(name: str, tmp_path: Path) -> None:
    settings_class, load = UNITS[name]
    service = unit(name)["Service"]
    program, command, *flags = service["ExecStart"].split()
    assert (program, command) == ("/opt/specedge/bin/specedge", name)
    (tmp_path / "settings.yaml").write_text(f"{name}:\n  port: 1234\n")
    assert flags == ["--config", f"/etc/specedge/{name}.yaml"]
    assert load(["--config", str(tmp_path / "settings.yaml")]).port == 1234
    assert int(service["TimeoutStopSec"]) > settings_class().drain_timeout_s
    assert service["KillSignal"] == "SIGTERM"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        text = (FOLDER / f"specedge-{name}.service").read_text()
        # The program need not be installed here.
        (tmp_path / f"specedge-{name}.service").write_text(text.replace("/opt/specedge/bin/specedge", "/bin/true"))
    paths = sorted(map(str, tmp_path.iterdir()))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stderr) == (0, "")
