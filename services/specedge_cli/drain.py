"""`specedge verifier drain`: ends a verifier of this machine in good order, and shows how far it is."""

import argparse
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from specedge.errors import SpecEdgeError
from specedge_cli.processes import load_verifier_settings
from specedge_verifier.drain_socket import REQUEST, DrainNews, drain_folder, drain_path

ANSWER_TIMEOUT_S = 10.0
EXIT_TIMEOUT_S = 60.0
"""How long a verifier may take to end after its grace is over."""


class DrainFailed(SpecEdgeError):
    """There is no such verifier, or it does not end."""


def drain_verifier(arguments: list[str]) -> int:
    """Ask a verifier to drain, and wait until it has ended.

    Raises:
        DrainFailed: none listens there, or it has not ended in time.
        SettingsError: a flag, a variable or the settings file is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="specedge verifier drain",
        description="Ends a verifier of this machine and user as SIGTERM does: it takes no new session, tells edges to "
        "go on elsewhere, lets the rest finish within its drain_timeout_s, and ends. Returns when it has ended.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", help="the port it listens on (default: as in its settings)")
    parser.add_argument("--host", help="unix:PATH for one that listens there")
    parser.add_argument("--config", help="its settings file")
    options = parser.parse_args(arguments)
    flags = [(f"--{name}", value) for name, value in vars(options).items() if value is not None]
    settings = load_verifier_settings([word for flag in flags for word in flag])
    path = drain_path(settings.host, settings.port)
    console = Console()
    began_s = time.monotonic()
    with _ask(path, f"{settings.host}, port {settings.port}") as connection:
        _show(_news(connection), console)
    console.print(f"the verifier has ended after {time.monotonic() - began_s:.1f} s")
    return 0


def _ask(path: Path, where: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.connect(str(path))
        connection.sendall(REQUEST)
    except OSError as error:
        connection.close()
        raise DrainFailed(
            f"no verifier of user {os.getuid()} listens at {where}{_others(path)}; one that loads its "
            "model does not listen yet"
        ) from error
    return connection


def _others(path: Path) -> str:
    """The ports of the verifiers that could have been meant; one that was killed leaves its socket behind."""
    found = []
    for other in sorted(drain_folder().glob("verifier-*.sock")):
        with socket.socket(socket.AF_UNIX) as probe:
            if other != path and probe.connect_ex(str(other)) == 0:
                found.append(other.stem.removeprefix("verifier-"))
    return f"; others listen at port {', '.join(found)}" if found else ""


def _news(connection: socket.socket) -> Iterator[DrainNews]:
    """What the verifier says, until it has ended."""
    deadline_s, last = time.monotonic() + ANSWER_TIMEOUT_S, None
    received = b""
    while True:
        try:
            connection.settimeout(max(deadline_s - time.monotonic(), 0.01))
            piece = connection.recv(4096)
        except TimeoutError:
            if last is None:
                raise DrainFailed(f"the verifier said nothing for {ANSWER_TIMEOUT_S:g} s") from None
            raise DrainFailed(
                f"process {last.process_id} has not ended {EXIT_TIMEOUT_S:g} s after its grace of {last.grace_s:g} s"
            ) from None
        except ConnectionResetError:
            piece = b""
        if not piece and last is None:
            raise DrainFailed("the verifier does not answer to `drain`")
        if not piece:
            return
        *lines, received = (received + piece).split(b"\n")
        for line in lines:
            news = DrainNews(**json.loads(line))
            if last is None:
                deadline_s = time.monotonic() + news.grace_s + EXIT_TIMEOUT_S
            last = news
            yield news


def _show(news: Iterator[DrainNews], console: Console) -> None:
    num_first = num_last = -1
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("sessions ended or moved", total=None)
        for step in news:
            if num_first < 0:
                num_first = step.num_sessions
                console.print(
                    f"process {step.process_id} drains: {num_first} sessions, at most {step.grace_s:g} s",
                    highlight=False,
                )
            elif step.num_sessions != num_last and not console.is_terminal:
                console.print(f"{step.num_sessions} sessions left", highlight=False)
            num_last = step.num_sessions
            progress.update(task, total=max(num_first, num_last), completed=max(num_first - num_last, 0))
