"""A process in a container sizes itself by the container's memory, not by the machine's."""

from pathlib import Path

import psutil
import pytest
import torch

from specedge.container_memory import container_free_bytes
from specedge.model import memory

MIB = 2**20


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ],
    ids=["second version", "first version"],
)
def test_the_limit_less_what_is_in_use(tmp_path: Path, names: tuple[str, str, str, str]) -> None:
    limit, usage, statistics, reclaimable = names
    files = {limit: f"{100 * MIB}\n", usage: f"{70 * MIB}\n", statistics: f"anon 1\n{reclaimable} {20 * MIB}\n"}
    assert container_free_bytes(cgroup(tmp_path, files)) == 50 * MIB


def test_more_in_use_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "10", "memory.current": "11", "memory.stat": ""}
    assert container_free_bytes(cgroup(tmp_path, files)) == 0


@pytest.mark.parametrize("files", [{}, {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}])
def test_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert container_free_bytes(cgroup(tmp_path, files)) is None


def test_what_fits_is_bounded_by_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": str(100 * MIB), "memory.current": "0", "memory.stat": ""}
    cgroup(tmp_path, files)
    monkeypatch.setattr(memory, "container_free_bytes", lambda: container_free_bytes(tmp_path))
    assert memory.free_bytes(torch.device("cpu")) == 100 * MIB < psutil.virtual_memory().available
    monkeypatch.setattr(memory, "container_free_bytes", lambda: container_free_bytes(tmp_path / "none"))
    assert memory.free_bytes(torch.device("cpu")) > 100 * MIB
