"""What a container's memory limit leaves: the machine's own figures, as seen inside a container, do not know of it."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Of the second and the first version: folder, limit, usage, and the part of the usage that the kernel gives back.
FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def container_free_bytes(root: Path = CGROUPS) -> int | None:
    """Bytes that this process's container may still take; None where it has no limit, or there is no container."""
    for folder, limit, usage, reclaimable in FILES:
        try:
            most = int((root / folder / limit).read_text())
            used = int((root / folder / usage).read_text())
            statistics = dict(line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such version here, or the limit is the word "max"
            continue
        return max(most - used + int(statistics.get(reclaimable, 0)), 0)
    return None
