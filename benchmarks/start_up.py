"""How long `specedge` commands take from exec until they have done their work or are ready for it.

    python -m benchmarks.start_up

The verifier counts until its health says SERVING, the edge agent until `/ready` says yes with that verifier running,
the demo until it invites; each is asked every 10 ms. `health` asks the running processes. The first run of a machine
reads files from the disk and may compile the native engine, so it is made beforehand and not counted. CPU seconds are
those of the command's processes until then; unlike the wall time, other work on the machine hardly changes them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import grpc
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from specedge_bench.pace.pace import Pace
from specedge_cli.ports import free_port

HOST = "127.0.0.1"
POLL_S = 0.01
LIMIT_S = 120.0
INVITATION = b"SpecEdge is ready"


@contextmanager
def started(
    arguments: Sequence[str], output: int = subprocess.DEVNULL, pace: Pace | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A `specedge` process, ended with the block; its forwards are stretched to `pace`, if there is one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECEDGE_")}
    command = [sys.executable, "-m", "specedge_cli", *arguments] if pace is None else pace.command(arguments)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def until(is_done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Ask again and again; an ended process or a passed limit is an error."""
    give_up_at = time.monotonic() + LIMIT_S
    while not is_done():
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with exit code {process.returncode}")
        if time.monotonic() > give_up_at:
            raise SystemExit(f"{process.args!r} was not ready within {LIMIT_S:g} s")
        time.sleep(POLL_S)


def verifier_serves(port: int) -> Callable[[], bool]:
    """Asks a verifier's health; connects anew each time, since a channel waits between its attempts."""

    def ask() -> bool:
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"{HOST}:{port}", options=options) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            try:
                answer = check(HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                return False
        return bool(answer.status == HealthCheckResponse.SERVING)

    return ask


def edge_is_ready(port: int) -> Callable[[], bool]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> bool:
        try:
            with opener.open(f"http://{HOST}:{port}/ready", timeout=1.0):
                return True
        except OSError:
            return False

    return ask


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took, in seconds."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """Starts with the command."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()

    def cost_of(self, process: subprocess.Popen[bytes]) -> Cost:
        """Until now, of a running process and its children."""
        wall_s = time.monotonic() - self._began_at
        own = psutil.Process(process.pid)
        times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
        return Cost(wall_s, sum(one.user + one.system for one in times))

    def cost_of_ended(self, before: os.times_result) -> Cost:
        """Until now, of a child that ran from `before` on."""
        wall_s, now = time.monotonic() - self._began_at, os.times()
        return Cost(wall_s, now.children_user + now.children_system - before.children_user - before.children_system)


def measure_commands(addresses: Sequence[str]) -> dict[str, Cost]:
    """The short commands, `health` with each address."""
    costs = {}
    for arguments in [["--help"], ["version"], *(["health", address] for address in addresses)]:
        name = f"specedge {arguments[0]}" + (" (HTTP)" if "http" in arguments[-1] else "")
        before, watch = os.times(), Stopwatch()
        subprocess.run([sys.executable, "-m", "specedge_cli", *arguments], check=True, stdout=subprocess.DEVNULL)
        costs[name] = watch.cost_of_ended(before)
    return costs


def measure() -> dict[str, Cost]:
    """Every command, once."""
    verifier_port, edge_port = free_port(HOST), free_port(HOST)
    costs = {}
    with ExitStack() as stack:
        watch = Stopwatch()
        own = ["--host", HOST, "--port", str(verifier_port), "--metrics-port", "off"]
        verifier = stack.enter_context(started(["verifier", *own]))
        until(verifier_serves(verifier_port), verifier)
        costs["specedge verifier"] = watch.cost_of(verifier)
        watch = Stopwatch()
        own = ["--host", HOST, "--port", str(edge_port), "--metrics-port", "off"]
        own += ["--verifier-address", f"{HOST}:{verifier_port}"]
        edge = stack.enter_context(started(["edge", *own]))
        until(edge_is_ready(edge_port), edge)
        costs["specedge edge"] = watch.cost_of(edge)
        costs |= measure_commands([f"{HOST}:{verifier_port}", f"http://{HOST}:{edge_port}"])
    watch = Stopwatch()
    with started(["demo"], output=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        if not any(INVITATION in line for line in demo.stdout):
            raise SystemExit("the demo ended before it was ready")
        costs["specedge demo"] = watch.cost_of(demo)
        demo.terminate()
        demo.stdout.read()
    return costs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's seconds here")
    options = parser.parse_args(arguments)
    measure()
    runs = [measure() for _ in range(options.runs)]
    print(f"{'wall s, ' + str(options.runs) + ' runs':28}{'median':>8}{'least':>8}{'most':>8}{'CPU s, median':>16}")
    for name in runs[0]:
        walls = [run[name].wall_s for run in runs]
        cpu_s = median(run[name].cpu_s for run in runs)
        print(f"{name:28}{median(walls):8.2f}{min(walls):8.2f}{max(walls):8.2f}{cpu_s:16.2f}")
    if options.json is not None:
        costs = [{name: asdict(cost) for name, cost in run.items()} for run in runs]
        options.json.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
