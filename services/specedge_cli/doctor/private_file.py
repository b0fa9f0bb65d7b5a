"""Files that only their owner should read."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from specedge_cli.doctor.check import Finding

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def judge_mode(setting: str, path: Path, what: str) -> Sequence[Finding]:
    """A warning where other users may read the file."""
    mode = path.stat().st_mode
    if not mode & _OTHERS:
        return []
    found = f"{what} in {path} may be read by others (mode {stat.S_IMODE(mode):03o})"
    return [Finding(f"{setting} is private", "warn", found, f"chmod 600 {path}")]
