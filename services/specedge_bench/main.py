"""`specedge bench`: measures, or does one of the things around measuring. Commands are imported when asked for."""

import importlib
from typing import Final

from specedge.errors import SettingsError

_COMMANDS: Final = {
    "report": "specedge_bench.report",
    "compare": "specedge_bench.compare",
    "shapes": "specedge_bench.shapes",
    "sweep": "specedge_bench.sweep",
    "simulate": "specedge_bench.simulation.command",
}


def main(arguments: list[str]) -> int:
    """Runs one command; a first argument that is none belongs to the measuring run.

    Returns:
        The exit code: 0 done, 1 failed or answers differ, 130 interrupted.

    Raises:
        SettingsError: what was asked for is unknown or not allowed, or a path is not what it should be.
        SpecEdgeError: nothing could be done; names the reason.
    """
    try:
        return _run(arguments)
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise SettingsError(f"{error.filename}: {error.strerror}") from error


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in _COMMANDS:
        code: int = importlib.import_module(_COMMANDS[arguments[0]]).main(arguments[1:])
        return code
    from specedge_bench.options import parse_options
    from specedge_bench.run import run

    return run(parse_options(arguments))
