"""The `specedge` command: one name per process, and what a user needs around them.

Nothing heavy is imported until a command needs it, so that `--help` and `version` answer at once.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from specedge import __version__
from specedge.errors import DrafterDead, EngineDead, SettingsError, SpecEdgeError

if TYPE_CHECKING:
    from specedge.settings import ProcessSettings

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 failed, 2 a flag, variable or settings file is wrong. A process whose model thread or
        event loop is dead or stuck ends with 70 and does not come back here.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = _split(arguments)
    try:
        return COMMANDS[command](rest)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SpecEdgeError as error:
        print(f"specedge {command}: {error}", file=sys.stderr)
        return USAGE_ERROR if isinstance(error, SettingsError) else FAILURE


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The command and its own arguments; the top-level help is all that is parsed here."""
    parser = argparse.ArgumentParser(
        prog="specedge", description="Edge-assisted LLM serving.", allow_abbrev=False, add_help=True
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("verifier", help="run the verification service; `verifier drain` ends one", add_help=False)
    commands.add_parser("edge", help="run the edge agent: draft model and OpenAI-compatible HTTP API", add_help=False)
    commands.add_parser("demo", help="run one verifier and one edge agent on this machine", add_help=False)
    commands.add_parser("bench", help="measure, simulate and compare systems on this machine", add_help=False)
    commands.add_parser("fleet", help="start, stop and ask processes on many hosts", add_help=False)
    commands.add_parser("top", help="a live view of running processes, from their metrics", add_help=False)
    commands.add_parser("health", help="ask a running process whether it is ready; exit code 0 or 1", add_help=False)
    commands.add_parser("doctor", help="check this machine and a configuration, and what to expect", add_help=False)
    commands.add_parser("certs", help="make a certificate authority and certificates to try TLS with", add_help=False)
    commands.add_parser("key", help="make an API key for the edge agent's users", add_help=False)
    commands.add_parser("token", help="make a token for a tenant of the verifier", add_help=False)
    commands.add_parser("version", help="print the version", add_help=False)
    parser.parse_args(arguments[:1])
    return arguments[0], arguments[1:]


def _verifier(arguments: list[str]) -> int:
    if arguments[:1] == ["drain"]:
        from specedge_cli.drain import drain_verifier

        return drain_verifier(arguments[1:])
    from specedge_cli.processes import load_verifier_settings

    settings = load_verifier_settings(arguments)
    _start_process(settings, "verifier")
    _run("specedge_verifier.app", settings)
    return 0


def _edge(arguments: list[str]) -> int:
    from specedge_cli.processes import load_edge_settings

    settings = load_edge_settings(arguments)
    _start_process(settings, "edge")
    _run("edge_agent.app", settings)
    return 0


def _demo(arguments: list[str]) -> int:
    from specedge_cli.demo import run_demo

    return run_demo(arguments)


def _bench(arguments: list[str]) -> int:
    from specedge_bench.main import main as bench

    return bench(arguments)


def _fleet(arguments: list[str]) -> int:
    from specedge_cli.fleet.command import fleet

    return fleet(arguments)


def _top(arguments: list[str]) -> int:
    from specedge_cli.top.command import top

    return top(arguments)


def _health(arguments: list[str]) -> int:
    from specedge_cli.health import show_health

    return show_health(arguments)


def _doctor(arguments: list[str]) -> int:
    from specedge_cli.doctor.command import show_doctor

    return show_doctor(arguments)


def _certs(arguments: list[str]) -> int:
    from specedge_cli.certs import make_certs

    return make_certs(arguments)


def _key(arguments: list[str]) -> int:
    from specedge_cli.key import make_key

    return make_key(arguments)


def _token(arguments: list[str]) -> int:
    from specedge_cli.token import make_token

    return make_token(arguments)


def _version(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="specedge version", description="Print the version.").parse_args(arguments)
    print(f"specedge {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "verifier": _verifier,
    "edge": _edge,
    "demo": _demo,
    "bench": _bench,
    "fleet": _fleet,
    "top": _top,
    "health": _health,
    "doctor": _doctor,
    "certs": _certs,
    "key": _key,
    "token": _token,
    "version": _version,
}


def _run(app: str, settings: "ProcessSettings") -> None:
    """Run a process to its end; one that has lost a thread is not waited for."""
    from specedge.watchdog import leave

    try:
        importlib.import_module(app).run(settings)
    except (EngineDead, DrafterDead) as error:
        logging.getLogger(__name__).critical("ending with an exit code for the supervisor: %s", error)
        leave()


def _start_process(settings: "ProcessSettings", process: str) -> None:
    """What both processes do before anything else: logging, and traces if they are wanted."""
    from specedge.logs import start_logging

    start_logging(settings.log_level, settings.log_format)
    if settings.traces_endpoint is not None:
        from specedge.tracing import start_tracing

        start_tracing(settings.traces_endpoint, f"specedge-{process}")
    logging.getLogger(__name__).info("specedge %s: starting the %s", __version__, process)
