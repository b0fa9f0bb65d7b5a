"""How many sessions one verifier process carries, and what of it is full then.

    python -m benchmarks.host_limit

A real verifier process (gRPC server, engine thread, scheduler, metrics) serves real streams on loopback; only its
target is a wait, as a GPU's forward is one for the host: until the drafts for the next step have come, so that each
step has the same to do on a busy machine and on an idle one. Load processes send the draft trees that a recorded pair
makes. Per step: CPU milliseconds of the engine thread, of the event loop's thread, both by phase, and of
gRPC's own threads. Python runs one thread at a time, so that the verifier is full when the first two together have a
core for themselves (`python, cores` near 1). With --stream-processes gRPC and the messages are theirs, and the event
loop's thread exchanges frames with them.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.host_limit.clocks import process_cpu_s

ENGINE_PHASES = ("intake", "schedule", "pack", "accept", "settle", "learn", "deliver", "metrics")
LOOP_PHASES = ("protobuf in", "decode", "hand over", "dispatch", "encode", "protobuf out", "metrics")
FRAME_PHASES = ("hand over", "dispatch", "frames in", "frames out")
_OTHER = "rest"
_LINE_TIMEOUT_S = 60.0
_WARM_UP_VERDICTS = 8
_WARM_UP_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class HostLoad:
    """What one number of sessions costs; milliseconds of CPU time are per step.

    Attributes:
        engine_ms, loop_ms: by phase; what no phase has is the rest.
        grpc_ms: of gRPC's own threads.
        streams_ms: of the stream processes together, with all their threads.
        python_cores: cores that the threads of Python kept busy.
    """

    num_sessions: int
    num_stream_processes: int
    step_ms: float
    verdicts_per_s: float
    tokens_per_s: float
    messages_per_s: float
    nodes_per_verdict: float
    tokens_per_verdict: float
    engine_ms: dict[str, float]
    loop_ms: dict[str, float]
    grpc_ms: float
    streams_ms: float
    python_cores: float
    load_cores: float

    @property
    def host_us(self) -> float:
        """CPU microseconds of Python's threads in the engine's process per verdict."""
        return 1e6 * self.python_cores / self.verdicts_per_s


class Child:
    """A process of this package, spoken to by lines."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.host_limit.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> str:
        """Its next line; raises RuntimeError where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"process {self.pid} has ended with code {self._process.wait(_LINE_TIMEOUT_S)}")
        return line

    def ask(self) -> str:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LINE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def measure(num_sessions: int, num_stream_processes: int, options: argparse.Namespace) -> HostLoad:
    """Runs a verifier and its load for some seconds."""
    flags = ["--sessions", str(num_sessions), "--forward-ms", str(options.forward_ms)]
    flags += ["--rows-each", str(options.rows_each), "--messages", str(options.messages)]
    flags += ["--stream-processes", str(num_stream_processes)]
    children = [Child("verifier", *flags, *(() if options.no_phases else ("--phases",)))]
    verifier = children[0]
    try:
        port = verifier.read().strip()
        first, loads = 0, []
        for index in range(options.loads):
            part = num_sessions * (index + 1) // options.loads - first
            edges = max(1, part // options.users_per_edge)
            load = Child(
                *("load", port, "--sessions", str(part), "--first", str(first), "--edges", str(edges)),
                *("--nodes", str(options.nodes), "--messages", str(options.messages), "--trace", options.trace),
            )
            loads.append(load)
            children.append(load)
            first += part
        _warm_up(verifier, num_sessions)
        before, load_s = json.loads(verifier.ask()), sum(process_cpu_s(load.pid) for load in loads)
        time.sleep(options.seconds)
        after, load_s = json.loads(verifier.ask()), sum(process_cpu_s(load.pid) for load in loads) - load_s
        return _load_of(num_sessions, num_stream_processes, before, after, load_s)
    finally:
        for child in reversed(children):
            child.end()


def _warm_up(verifier: Child, num_sessions: int) -> None:
    """Returns once every session has had its prompt computed and some verdicts, on average."""
    give_up_s = time.monotonic() + _WARM_UP_TIMEOUT_S
    while json.loads(verifier.ask())["num_verdicts"] < _WARM_UP_VERDICTS * num_sessions:
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"{num_sessions} sessions were not warm after {_WARM_UP_TIMEOUT_S:g} s")
        time.sleep(0.5)


def _load_of(
    num_sessions: int, num_stream_processes: int, before: dict[str, Any], after: dict[str, Any], load_s: float
) -> HostLoad:
    phases = {name: after["phases"][name] - before["phases"].get(name, 0.0) for name in after["phases"]}
    spent = {name: after[name] - before[name] for name in after if name not in ("phases", "running")}
    wall_s, steps, verdicts = spent["wall_s"], max(1, spent["num_steps"]), max(1, spent["num_verdicts"])
    engine_ms = {name: 1e3 * phases.get(name, 0.0) / steps for name in ENGINE_PHASES}
    loop_ms = {name: 1e3 * phases.get(f"loop: {name}", 0.0) / steps for name in _loop_phases(num_stream_processes)}
    engine_ms[_OTHER] = 1e3 * spent["engine_s"] / steps - sum(engine_ms.values())
    loop_ms[_OTHER] = 1e3 * spent["loop_s"] / steps - sum(loop_ms.values())
    python_s = spent["engine_s"] + spent["loop_s"]
    return HostLoad(
        num_sessions=num_sessions,
        num_stream_processes=num_stream_processes,
        step_ms=1e3 * wall_s / steps,
        verdicts_per_s=verdicts / wall_s,
        tokens_per_s=spent["num_tokens"] / wall_s,
        messages_per_s=(spent["num_up"] + verdicts) / wall_s,
        nodes_per_verdict=spent["num_nodes"] / verdicts,
        tokens_per_verdict=spent["num_tokens"] / verdicts,
        engine_ms=engine_ms,
        loop_ms=loop_ms,
        grpc_ms=1e3 * (spent["process_s"] - python_s) / steps,
        streams_ms=1e3 * spent["streams_s"] / steps,
        python_cores=python_s / wall_s,
        load_cores=load_s / wall_s,
    )


def _loop_phases(num_stream_processes: int) -> tuple[str, ...]:
    return FRAME_PHASES if num_stream_processes else LOOP_PHASES


def table(loads: list[HostLoad]) -> str:
    """The loads as Markdown: first the totals, then the phases."""
    titles: tuple[str, ...] = (
        "sessions",
        "stream processes",
        "step, ms",
        "verdicts/s",
        "tokens/s",
        "messages/s",
        "nodes/verdict",
        "tokens/verdict",
    )
    titles += ("engine, ms", "loop, ms", "gRPC, ms", "streams, ms", "us/verdict", "python, cores", "load, cores")
    lines = [_line(titles), _line(["---:"] * len(titles))]
    for load in loads:
        cells = [
            str(load.num_sessions),
            str(load.num_stream_processes),
            f"{load.step_ms:.1f}",
            f"{load.verdicts_per_s:.0f}",
        ]
        cells += [f"{load.tokens_per_s:.0f}", f"{load.messages_per_s:.0f}", f"{load.nodes_per_verdict:.1f}"]
        cells += [f"{load.tokens_per_verdict:.2f}", f"{sum(load.engine_ms.values()):.2f}"]
        cells += [f"{sum(load.loop_ms.values()):.2f}", f"{load.grpc_ms:.2f}", f"{load.streams_ms:.2f}"]
        cells += [f"{load.host_us:.0f}", f"{load.python_cores:.2f}", f"{load.load_cores:.2f}"]
        lines.append(_line(cells))
    names = [f"{load.num_sessions}, {load.num_stream_processes}" for load in loads]
    lines += ["", _line(["CPU ms per step; sessions, stream processes", *names])]
    lines.append(_line(["---", *["---:"] * len(loads)]))
    of_loop = [*dict.fromkeys((*LOOP_PHASES, *FRAME_PHASES)), _OTHER]
    for thread, phases in (("engine", [*ENGINE_PHASES, _OTHER]), ("loop", of_loop)):
        for phase in phases:
            values = [getattr(load, f"{thread}_ms").get(phase) for load in loads]
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            if any(cells):
                lines.append(_line([f"{thread}: {phase}", *cells]))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_limit", allow_abbrev=False)
    add = parser.add_argument
    add("--sessions", default="16,64,128,256,512", help="streams, one run for each (default %(default)s)")
    add("--stream-processes", default="0", help="that serve the streams, one run for each (default %(default)s)")
    add("--forward-ms", type=float, default=20.0, help="least time of a forward (default %(default)s)")
    add("--rows-each", type=int, default=8, help="draft nodes the step has room for, per session (default 8)")
    add("--nodes", type=int, default=24, help="of a draft tree (default 24)")
    add("--messages", type=int, default=2, help="in which a tree is sent (default 2)")
    add("--trace", default="embedded-t0.7", help="recorded acceptance (default %(default)s)")
    add("--users-per-edge", type=int, default=4, help="streams of one connection (default 4)")
    add("--loads", type=int, default=1, help="load processes (default 1)")
    add("--seconds", type=float, default=8.0, help="measured (default 8)")
    add("--no-phases", action="store_true", help="without the clocks in the verifier, which cost some percent")
    add("--json", type=Path, metavar="FILE", help="write the numbers here as well")
    options = parser.parse_args(arguments)
    counts = [
        (int(sessions), int(processes))
        for sessions in options.sessions.split(",")
        for processes in options.stream_processes.split(",")
    ]
    loads = []
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("sessions", total=len(counts))
        for count in counts:
            loads.append(measure(*count, options))
            progress.advance(task)
    print(table(loads))
    if options.json is not None:
        from dataclasses import asdict

        options.json.write_text(json.dumps([asdict(load) for load in loads], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
