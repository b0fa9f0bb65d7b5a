"""Commands on a host, by ssh or here: one line for its shell, and files as a tar stream on the command's input."""

import io
import shlex
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from specedge.errors import SpecEdgeError
from specedge_cli.fleet.plan import LOCAL, Host

SSH: Final = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
_TAIL_LINES: Final = 5
# The folder is the login's alone, so that nobody else of the host gets to the files; the container's user has to.
_READABLE: Final = 0o644
_OPEN: Final = 0o755


class HostFailed(SpecEdgeError):
    """A command on a host failed; names the host and what it said."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command for a host.

    Attributes:
        line: for its shell.
        sent: what the command reads from its standard input.
        timeout_s: after so long it counts as failed.
    """

    line: str
    sent: bytes = b""
    timeout_s: float = 60.0


def send_files(host: Host, files: Mapping[str, bytes]) -> Step:
    """Puts files into the host's folder, in place of those of the same name."""
    folder = shlex.quote(host.folder)
    return Step(f"mkdir -p {folder} && chmod 700 {folder} && tar -x -p -f - -C {folder}", _archive(files))


def compose(host: Host, arguments: Sequence[str], timeout_s: float) -> Step:
    """A compose command on the host's files: `docker compose`, or `docker-compose` where the host has only that."""
    words = shlex.join(["-p", host.project, *arguments])
    folder = shlex.quote(host.folder)
    newer = f"docker compose {words}"
    line = f"cd {folder} && if docker compose version >/dev/null 2>&1; then {newer}; else docker-compose {words}; fi"
    return Step(line, timeout_s=timeout_s)


def run(host: Host, step: Step) -> str:
    """What the command printed.

    Raises:
        HostFailed: it could not be run, took too long, or failed.
    """
    try:
        done = subprocess.run(argv(host, step), input=step.sent, capture_output=True, timeout=step.timeout_s)
    except subprocess.TimeoutExpired:
        raise HostFailed(f"{host.name}: no end after {step.timeout_s:g} s: {step.line}") from None
    except OSError as error:
        raise HostFailed(f"{host.name}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        raise HostFailed(f"{host.name}: exit code {done.returncode} of: {step.line}\n  " + "\n  ".join(said))
    return done.stdout.decode(errors="replace")


def argv(host: Host, step: Step) -> list[str]:
    """The program that runs the command on the host."""
    return ["sh", "-c", step.line] if host.login == LOCAL else [*SSH, "--", host.login, step.line]


def _archive(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, _OPEN
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), _READABLE
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
