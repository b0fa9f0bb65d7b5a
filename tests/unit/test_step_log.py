"""The step log on a disk that is full: steps are left out, and the engine that writes them works on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE")

WRITER = """
import resource, sys
from pathlib import Path
from specedge.logs import start_logging
from specedge_verifier.step_log import StepLog
from specedge_verifier.step_report import StepReport

def write(*numbers):
    for num_sessions in numbers:
        log.step(StepReport(num_sessions, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0))

start_logging("info")
path, room = Path(sys.argv[1]), int(sys.argv[2])
log = StepLog(path)
write(1)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
write(2, 3)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
write(4, 5)
"""


@pytest.mark.parametrize("room", [0, 100], ids=["nothing more fits", "half a line fits"])
def test_steps_that_cannot_be_written_are_left_out(tmp_path: Path, room: int) -> None:
    path = tmp_path / "steps.jsonl"
    # In a process of its own: the limit is one of all files of a process.
    command = [sys.executable, "-c", WRITER, str(path), str(room)]
    writer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert writer.returncode == 0, writer.stderr
    assert [json.loads(line)["num_sessions"] for line in path.read_text().splitlines()] == [1, 4, 5]
    records = [json.loads(line) for line in writer.stderr.splitlines()]
    assert [record["level"] for record in records] == ["ERROR", "WARNING"]
    assert records[1]["message"].endswith("without 2 steps")
