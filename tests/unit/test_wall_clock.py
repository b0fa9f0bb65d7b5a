"""Nothing waits by the wall clock, which may jump: it is read only to tell people and peers what time it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOLD = {
    "services/specedge/tls/files.py",  # whether a certificate has expired
    "services/specedge_verifier/step_log.py",  # when a step began
    "edge_agent/http/status_routes.py",  # `created` of a model
    "edge_agent/http/endpoints.py",  # `created` of an answer
    "edge_agent/journal/folder.py",  # how old a file is, which outlives the process
}
READS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}


def readers(path: Path) -> Iterator[int]:
    """Lines of a module that read the wall clock, or import a function that does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in READS:
            yield node.lineno
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and {"time", "time_ns"} & {a.name for a in node.names}
        ):
            yield node.lineno


def test_only_what_tells_the_time_reads_the_wall_clock() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("services/specedge", "services/specedge_verifier", "edge_agent")
        for path in (ROOT / folder).rglob("*.py")
        if any(readers(path))
    }
    assert found == TOLD
