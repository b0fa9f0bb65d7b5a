"""The processes of a simulation end with the one that began them, however it ends."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

LONG = ["--sessions", "64", "--requests-per-user", "50", "--processes", "2", "--system", "specedge", "--seed", "0,1"]


@pytest.mark.timeout(60)
def test_a_killed_simulation_leaves_no_process(tmp_path: Path) -> None:
    code = f"from specedge_bench.simulation.command import main; main({LONG!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        parent = psutil.Process(process.pid)
        workers: list[psutil.Process] = []
        while len(workers) < 2:
            assert process.poll() is None, "the simulation was to last longer"
            workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive, "a simulating process outlived the one that began it"
