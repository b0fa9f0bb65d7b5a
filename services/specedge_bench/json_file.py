"""Files that hold one JSON object."""

import json
from pathlib import Path
from typing import Any

from specedge.errors import SpecEdgeError


def read_object(path: Path, error: type[SpecEdgeError]) -> dict[str, Any]:
    """The object in a file; raises `error`, which names the file and the reason, where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    if not isinstance(content, dict):
        raise error(f"{path} holds a {type(content).__name__}, wanted an object")
    return content
