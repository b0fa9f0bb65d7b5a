"""`specedge demo`: one verifier and one edge agent as two processes on loopback, until Ctrl-C."""

import argparse
import contextlib
import json
import sys
import time
import urllib.request
from dataclasses import dataclass

from rich.console import Console

from edge_agent.settings import EdgeSettings
from specedge.errors import SpecEdgeError
from specedge_cli.ports import choose_port
from specedge_cli.probe import probe
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_cli.supervisor import Child, Interrupts, specedge_command
from specedge_cli.terminal import own_foreground_group
from specedge_verifier.settings import VerifierSettings

HOST = "127.0.0.1"
SHARED_FLAGS = ("config", "target-model", "device", "dtype", "num-threads", "log-level")
PRIVATE_VERIFIER = (
    "--host",
    HOST,
    "--tls-certificate-file",
    "off",
    "--tls-key-file",
    "off",
    "--tls-client-ca-file",
    "off",
)
PRIVATE_EDGE = (
    *("--host", HOST, "--tls-certificate-file", "off", "--tls-key-file", "off", "--verifier-ca-file", "off"),
    *("--verifier-certificate-file", "off", "--verifier-key-file", "off", "--verifier-name", "auto"),
    *("--public-metrics", "true", "--metrics-host", HOST),
)
"""The demo is plain text on loopback, whatever the settings file says of the network."""
EXAMPLE_PROMPT = "Tell me a tale about a fox who wanted to see the sea."
POLL_S = 0.2
REPORT_EVERY_S = 10.0
STOP_MARGIN_S = 5.0
TAIL_LINES = 30


class DemoFailed(SpecEdgeError):
    """A child process ended, or did not become ready in time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start: settings are checked and ports are chosen before the first process is."""

    verifier: VerifierSettings
    edge: EdgeSettings
    shared_arguments: list[str]
    drafting_arguments: list[str]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.edge.port}"

    def verifier_arguments(self) -> list[str]:
        metrics_port = "off" if self.verifier.metrics_port is None else str(self.verifier.metrics_port)
        own = [
            *PRIVATE_VERIFIER,
            "--port",
            str(self.verifier.port),
            "--metrics-host",
            HOST,
            "--metrics-port",
            metrics_port,
        ]
        return ["verifier", *self.shared_arguments, *own, "--num-threads", str(self.verifier.num_threads)]

    def edge_arguments(self) -> list[str]:
        metrics_port = "off" if self.edge.metrics_port is None else str(self.edge.metrics_port)
        own = [*PRIVATE_EDGE, "--port", str(self.edge.port), "--verifier-address", f"{HOST}:{self.verifier.port}"]
        own += ["--metrics-port", metrics_port]
        return [
            "edge",
            *self.shared_arguments,
            *self.drafting_arguments,
            *own,
            "--num-threads",
            str(self.edge.num_threads),
        ]


def run_demo(arguments: list[str]) -> int:
    """Run the demo until it is interrupted.

    Returns:
        0 after an orderly end.

    Raises:
        SpecEdgeError: a setting is wrong, a port is taken, or a process failed; then everything has been stopped.
    """
    options = parse_arguments(arguments)
    plan = make_plan(options)
    console = Console(highlight=False, soft_wrap=True)
    with own_foreground_group() if options.own_terminal_group else contextlib.nullcontext():
        return _run(plan, options, console, Interrupts())


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="specedge demo",
        description="Runs one verifier and one edge agent on this machine, on loopback, until Ctrl-C. Further settings "
        "come from --config or SPECEDGE_ variables; `specedge verifier --help` and `specedge edge --help` list them.",
        allow_abbrev=False,
    )
    for flag in SHARED_FLAGS:
        parser.add_argument(f"--{flag}", metavar="VALUE", help="as for `specedge verifier` and `specedge edge`")
    parser.add_argument("--draft-model", metavar="VALUE", help="as for `specedge edge`")
    parser.add_argument("--port", metavar="N", help="HTTP port (default 8000, or a free one if that is taken)")
    parser.add_argument("--verifier-port", metavar="N", help="gRPC port (default 50051, or a free one)")
    parser.add_argument("--ready-timeout", type=float, default=600.0, metavar="S", help="seconds to load (default 600)")
    parser.add_argument("--show-logs", action="store_true", help="print what both processes log")
    parser.add_argument(
        "--own-terminal-group",
        action="store_true",
        help="take the terminal's Ctrl-C for the demo alone (`make demo` does, so that make itself is not interrupted)",
    )
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    """Check both processes' settings and choose free ports."""
    shared = [
        text
        for flag in SHARED_FLAGS
        if (value := getattr(options, flag.replace("-", "_"))) is not None
        for text in (f"--{flag}", value)
    ]
    drafting = ["--draft-model", options.draft_model] if options.draft_model is not None else []
    verifier = load_verifier_settings([*shared, *PRIVATE_VERIFIER, *_port_flag(options.verifier_port)])
    address = ["--verifier-address", f"{HOST}:0"]
    edge = load_edge_settings([*shared, *drafting, *PRIVATE_EDGE, *address, *_port_flag(options.port)])
    plain_verifier, plain_edge = VerifierSettings(), EdgeSettings()
    verifier_port = choose_port(
        HOST, verifier.port, bool(options.verifier_port) or verifier.port != plain_verifier.port, "port of the verifier"
    )
    edge_port = choose_port(
        HOST, edge.port, bool(options.port) or edge.port != plain_edge.port, "port of the edge agent"
    )
    return Plan(
        verifier.replace(
            port=verifier_port, metrics_port=_metrics_port(verifier.metrics_port, plain_verifier.metrics_port)
        ),
        edge.replace(port=edge_port, metrics_port=_metrics_port(edge.metrics_port, plain_edge.metrics_port)),
        shared,
        drafting,
    )


def _metrics_port(wanted: int | None, default: int | None) -> int | None:
    return None if wanted is None else choose_port(HOST, wanted, wanted != default, "metrics_port")


def _port_flag(port: str | None) -> list[str]:
    return [] if port is None else ["--port", port]


def _run(plan: Plan, options: argparse.Namespace, console: Console, interrupts: Interrupts) -> int:
    children: list[tuple[Child, str, float]] = []
    try:
        verifier = Child("verifier", specedge_command(plan.verifier_arguments()), options.show_logs)
        children.append((verifier, f"{HOST}:{plan.verifier.port}", plan.verifier.drain_timeout_s))
        edge = Child("edge agent", specedge_command(plan.edge_arguments()), options.show_logs)
        children.append((edge, plan.url, plan.edge.drain_timeout_s))
        is_ready = _wait_until_ready([(child, address) for child, address, _ in children], options, console, interrupts)
        if is_ready:
            _print_invitation(plan, console)
        while not interrupts.count:
            _refuse_dead([child for child, _, _ in children])
            time.sleep(POLL_S)
        console.print("stopping (Ctrl-C again ends at once) ...")
    finally:
        for child, _, drain_timeout_s in reversed(children):
            child.stop(drain_timeout_s + STOP_MARGIN_S, interrupts)
    console.print("stopped")
    return 0


def _wait_until_ready(
    children: list[tuple[Child, str]], options: argparse.Namespace, console: Console, interrupts: Interrupts
) -> bool:
    """Wait for every child; False when the user ended the demo first."""
    started = time.monotonic()
    waiting = dict(children)
    next_report_s = REPORT_EVERY_S
    for child, _ in children:
        console.print(f"{child.name}: starting (process {child.process_id})")
    with console.status("loading") as status:
        while waiting and not interrupts.count:
            elapsed_s = time.monotonic() - started
            _refuse_dead([child for child, _ in children])
            for child, address in list(waiting.items()):
                if probe(address, timeout_s=1.0) is None:
                    del waiting[child]
                    console.print(f"{child.name}: ready on {address} after {elapsed_s:.1f} s")
            if waiting and elapsed_s > options.ready_timeout:
                child = next(iter(waiting))
                raise DemoFailed(f"{child.name} was not ready within {options.ready_timeout:g} s{_tail(child)}")
            if waiting:
                progress = f"waiting for {' and '.join(child.name for child in waiting)}, {elapsed_s:.0f} s"
                status.update(progress)
                if elapsed_s >= next_report_s and not console.is_terminal:
                    console.print(progress)
                    next_report_s += REPORT_EVERY_S
                time.sleep(POLL_S)
    return not waiting


def _refuse_dead(children: list[Child]) -> None:
    for child in children:
        code = child.exit_code()
        if code is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise DemoFailed(f"the {child.name} {how}{_tail(child)}")


def _tail(child: Child) -> str:
    lines = child.last_lines(TAIL_LINES)
    return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def _print_invitation(plan: Plan, console: Console) -> None:
    body = json.dumps(
        {"model": _served_model(plan), "messages": [{"role": "user", "content": EXAMPLE_PROMPT}], "stream": True}
    )
    console.print(f"\nSpecEdge is ready: {plan.url}  (OpenAI-compatible, /v1)\nTry:\n", markup=False)
    key = "" if plan.edge.api_keys_file is None else " -H 'Authorization: Bearer KEY'"
    command = f"curl -N {plan.url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    console.print(command, markup=False)
    ports = [port for port in (plan.verifier.metrics_port, plan.edge.metrics_port) if port is not None]
    if ports:
        view = " ".join(f"{HOST}:{port}" for port in ports)
        console.print(f"\nA live view: {sys.executable} -m specedge_cli top {view}", markup=False, soft_wrap=True)
    console.print("\nCtrl-C stops both processes.", markup=False)


def _served_model(plan: Plan) -> str:
    """The model's name in the HTTP API, by a path that needs no key."""
    if plan.edge.served_model_name is not None:
        return plan.edge.served_model_name
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{plan.url}/version", timeout=10) as answer:
        name: str = json.load(answer)["target_model"]
        return name
