"""`specedge doctor`: checks this machine and a configuration, and says what to change and what to expect."""

import argparse
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from rich.console import Console

from specedge.errors import SettingsError
from specedge_cli.doctor.check import Check, Result, is_failure
from specedge_cli.doctor.report import Report, as_json

MAX_S = 60.0
QUICK_S = 5.0
_PROCESSES = ("verifier", "edge")


def show_doctor(arguments: list[str]) -> int:
    """Check, and print what was found.

    Returns:
        0 when nothing fails, 1 when something does.

    Raises:
        SettingsError: the settings cannot be read, or are not allowed.
    """
    processes, options, flags = _parse(arguments)
    console = Console(stderr=options.json, highlight=False)
    results: list[Result] = []
    max_s = options.max_seconds or (QUICK_S if options.quick else MAX_S)
    with ExitStack() as open_until_done:
        checks = _plan(processes, flags, open_until_done)
        report = None if options.json else Report(console)
        for result in _run(checks, options.quick, max_s, console):
            results.append(result)
            if report is not None:
                report.add(result)
    if report is None:
        print(as_json(results))
    else:
        report.finish(results)
    return 1 if is_failure(results) else 0


def _parse(arguments: list[str]) -> tuple[Sequence[str], argparse.Namespace, list[str]]:
    """(processes, own options, settings flags)."""
    parser = argparse.ArgumentParser(
        prog="specedge doctor",
        usage="specedge doctor [verifier|edge] [--quick] [--json] [--max-seconds N] [settings ...]",
        description="Checks this machine and the configuration that a verifier or an edge would run with, from the "
        "same file, environment and flags; starts no server. Without a process it checks both, with flags that both "
        "know. Exit code: 0 all well, 1 something fails, 2 wrong usage or settings.",
        epilog="`specedge verifier --help` and `specedge edge --help` list the settings.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: no self-tests, nothing is measured")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--max-seconds", type=float, metavar="N", help=f"for all checks (default {MAX_S:g}, quick {QUICK_S:g})"
    )
    processes: Sequence[str] = _PROCESSES
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in _PROCESSES:
            raise SettingsError(f"{arguments[0]!r} is no process; known are {', '.join(_PROCESSES)}")
        processes, arguments = arguments[:1], arguments[1:]
    options, flags = parser.parse_known_args(arguments)
    if options.max_seconds is not None and not 0 < options.max_seconds <= 3600:
        raise SettingsError(f"--max-seconds = {options.max_seconds:g}: allowed is above 0, to 3600")
    return processes, options, flags


def _plan(processes: Sequence[str], flags: list[str], open_until_done: ExitStack) -> list[Check]:
    from specedge_cli.processes import load_edge_settings, load_verifier_settings

    verifier = load_verifier_settings(flags) if "verifier" in processes else None
    edge = load_edge_settings(flags) if "edge" in processes else None

    from specedge_cli.doctor.facts import Facts
    from specedge_cli.doctor.first_verifier import named_verifiers, say_which
    from specedge_cli.doctor.plan import edge_checks, machine_checks, names_own_verifier, verifier_checks
    from specedge_cli.doctor.verifier_link import VerifierLink

    checks = machine_checks([settings for settings in (verifier, edge) if settings is not None])
    if verifier is not None:
        checks += verifier_checks(verifier)
    if edge is not None:
        named = named_verifiers(edge)
        edge = edge.replace(verifier_address=named[0])
        if len(named) > 1:
            checks.append(Check("edge: way to the verifier", "verifiers", partial(say_which, named)))
        link = VerifierLink(edge)
        open_until_done.callback(link.close)
        facts = Facts(verifier_is_to_start=verifier is not None and names_own_verifier(edge, verifier))
        checks += edge_checks(edge, facts, link)
    return checks


def _run(checks: Sequence[Check], is_quick: bool, max_s: float, console: Console) -> Iterator[Result]:
    from specedge_cli.doctor.runner import run_checks

    with _quiet(), console.status("") as status:

        def show(check: Check) -> None:
            status.update(f"{check.group}: {check.name} ...")

        yield from run_checks(checks, is_quick=is_quick, max_s=max_s, on_start=show)


@contextmanager
def _quiet() -> Iterator[None]:
    """Findings say what libraries would print while they are asked; SPECEDGE_LOG_LEVEL=debug shows that too."""
    if os.environ.get("SPECEDGE_LOG_LEVEL") == "debug":
        logging.basicConfig(level=logging.DEBUG)
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
