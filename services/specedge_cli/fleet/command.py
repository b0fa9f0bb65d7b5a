"""The command: render, up, down and status of a fleet."""

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from specedge.errors import SettingsError
from specedge_cli.fleet.plan import LOCAL, Host, read_fleet
from specedge_cli.fleet.remote import HostFailed, Step, argv, compose, run, send_files
from specedge_cli.fleet.render import render

PULL_TIMEOUT_S: Final = 3600.0
STOP_MARGIN_S: Final = 60.0
AT_ONCE: Final = 16
HEALTHY: Final = "healthy"
_STATE: Final = '{"service":{{json (.Label "com.docker.compose.service")}},"status":{{json .Status}}}'


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What a host's Docker says of a process: its status, such as "Up 2 hours (healthy)"."""

    host: str
    service: str
    status: str

    @property
    def is_well(self) -> bool:
        return f"({HEALTHY})" in self.status


def fleet(arguments: Sequence[str], console: Console | None = None) -> int:
    """Runs one subcommand.

    Returns:
        0 when every host did as told, and with `status` when every process is healthy; else 1.

    Raises:
        SettingsError: the fleet's file or a flag is wrong; no host has been touched.
    """
    options = _parse(arguments)
    console = Console() if console is None else console
    hosts = _chosen(read_fleet(options.file), options.only)
    return COMMANDS[options.command](hosts, options, console)


def _render(hosts: Sequence[Host], options: argparse.Namespace, console: Console) -> int:
    for host in hosts:
        folder = options.out / host.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in render(host).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        console.print(f"{host.name}: {folder}", markup=False)
    return 0


def _up(hosts: Sequence[Host], options: argparse.Namespace, console: Console) -> int:
    """Verifiers first: their hosts are done before edges begin."""
    first = [host for host in hosts if "verifier" in host.services]
    rest = [host for host in hosts if "verifier" not in host.services]
    is_done = _on_all(first, _up_steps, options, console)
    return int(not (_on_all(rest, _up_steps, options, console) and is_done))


def _up_steps(host: Host) -> list[Step]:
    return [send_files(host, render(host)), compose(host, ["up", "-d", "--remove-orphans"], PULL_TIMEOUT_S)]


def _down(hosts: Sequence[Host], options: argparse.Namespace, console: Console) -> int:
    """Edges first, so that no user is sent to a verifier that is gone."""
    edges = [host for host in hosts if "verifier" not in host.services]
    verifiers = [host for host in hosts if "verifier" in host.services]
    is_done = _on_all(edges, _down_steps, options, console)
    return int(not (_on_all(verifiers, _down_steps, options, console) and is_done))


def _down_steps(host: Host) -> list[Step]:
    grace_s = max(service.settings.drain_timeout_s for service in host.services.values())
    return [compose(host, ["down", "--remove-orphans"], grace_s + STOP_MARGIN_S)]


def _status(hosts: Sequence[Host], options: argparse.Namespace, console: Console) -> int:
    if options.dry_run:
        return int(not _on_all(hosts, lambda host: [_ask(host)], options, console))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(_states, hosts))
    table = Table("host", "process", "status", box=None, padding=(0, 2, 0, 0))
    for state in (state for states in found for state in states):
        table.add_row(state.host, state.service, state.status, style="" if state.is_well else "red")
    console.print(table)
    return int(not all(state.is_well for states in found for state in states))


def _states(host: Host) -> list[ServiceState]:
    """A line for each process that the host should run."""
    try:
        lines = [json.loads(line) for line in run(host, _ask(host)).splitlines() if line]
    except (HostFailed, json.JSONDecodeError) as error:
        return [ServiceState(host.name, name, f"not known: {error}") for name in host.services]
    told = {line["service"]: line["status"] for line in lines}
    return [ServiceState(host.name, name, told.get(name, "not there")) for name in host.services]


def _ask(host: Host) -> Step:
    wanted = f"label=com.docker.compose.project={host.project}"
    return Step(shlex.join(["docker", "ps", "-a", "--filter", wanted, "--format", _STATE]))


COMMANDS: Final[dict[str, Callable[[Sequence[Host], argparse.Namespace, Console], int]]] = {
    "render": _render,
    "up": _up,
    "down": _down,
    "status": _status,
}


def _on_all(
    hosts: Sequence[Host], steps_of: Callable[[Host], list[Step]], options: argparse.Namespace, console: Console
) -> bool:
    """Runs each host's steps, hosts side by side; whether all went well. A host that fails holds up no other."""
    if options.dry_run:
        for host in hosts:
            for step in steps_of(host):
                note = f"  # reads {len(step.sent)} bytes: {', '.join(render(host))}" if step.sent else ""
                console.print(shlex.join(argv(host, step)) + note, markup=False, soft_wrap=True)
        return True

    def carry_out(host: Host) -> str | None:
        try:
            for step in steps_of(host):
                run(host, step)
        except HostFailed as error:
            return str(error)
        return None

    failures = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for host, failure in zip(hosts, pool.map(carry_out, hosts), strict=True):
            failures += failure is not None
            where = "here" if host.login == LOCAL else host.login
            console.print(failure or f"{host.name}: done ({where})", style="red" if failure else None, markup=False)
    return not failures


def _chosen(hosts: Sequence[Host], only: Sequence[str]) -> list[Host]:
    names = [host.name for host in hosts]
    for name in only:
        if name not in names:
            raise SettingsError(f"--only {name}: there is no such host; there are: {', '.join(names)}")
    return [host for host in hosts if not only or host.name in only]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="specedge fleet",
        allow_abbrev=False,
        description="Verifiers and edge agents on many hosts, from one YAML file: writes a compose file and settings "
        "for each host, starts, stops, and asks, by ssh and Docker. docs/fleet.md has the file's keys.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (
        ("render", "write each host's files into a folder and touch no host"),
        ("up", "send each host its files and start what has changed"),
        ("down", "stop and remove the containers; models and caches stay"),
        ("status", "ask each host for its processes; exit code 1 unless all are healthy"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("file", type=Path, metavar="FILE", help="the fleet")
        command.add_argument("--only", action="append", default=[], metavar="HOST", help="this host; may be repeated")
        if name == "render":
            command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
        else:
            command.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    return parser.parse_args(arguments)
