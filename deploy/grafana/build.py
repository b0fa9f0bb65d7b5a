"""Writes `dashboards/*.json`: `python deploy/grafana/build.py`; `--check` says which of them differ."""

import json
import sys
from pathlib import Path

from boards import BOARDS

FOLDER = Path(__file__).with_name("dashboards")


def main() -> int:
    """Writes every dashboard, or compares; 1 where one differs."""
    is_check, stale = "--check" in sys.argv[1:], []
    for name, board in BOARDS.items():
        path, text = FOLDER / f"{name}.json", json.dumps(board, indent=1) + "\n"
        if not is_check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        print(f"not as deploy/grafana/build.py writes them: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
