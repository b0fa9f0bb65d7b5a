"""The `specedge` command: dispatch, exit codes, probes, ports and child processes."""

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from specedge import __version__
from specedge.errors import ModelLoadError
from specedge_cli.cores import available_cores, model_threads
from specedge_cli.demo import make_plan, parse_arguments
from specedge_cli.main import main
from specedge_cli.ports import PortBusy, choose_port, free_port, is_free
from specedge_cli.probe import probe
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_cli.supervisor import Child, Interrupts, specedge_command

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SPECEDGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def kept_signal_handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not become true in time"
        time.sleep(0.02)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Dispatch and exit codes


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"specedge {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["verifier", "--help"], ["edge", "--help"]])
def test_answers_about_the_command_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom specedge_cli.main import main\n"
        "try:\n code = main(sys.argv[1:])\nexcept SystemExit as end:\n code = end.code\n"
        "heavy = {'torch', 'transformers', 'grpc', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "specedge" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["unheard-of"], ["health"], ["version", "--loud"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: specedge" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verifier", "edge", "demo"])
def test_a_wrong_setting_is_exit_code_2_and_no_traceback(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--device", "gpu"]) == 2
    assert capsys.readouterr().err == (
        f"specedge {command}: device = 'gpu' (flag --device): allowed is auto, cpu, cuda or cuda:N\n"
    )


@pytest.mark.parametrize(("command", "module"), [("verifier", "specedge_verifier.app"), ("edge", "edge_agent.app")])
def test_processes_run_with_their_settings_and_report_failure(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = []
    app = ModuleType(module)
    app.run = lambda settings: ports.append(settings.port)
    monkeypatch.setitem(sys.modules, module, app)
    assert main([command, "--port", "77"]) == 0
    assert ports == [77]

    def fail(settings: object) -> None:
        raise ModelLoadError("/models/x: no such folder")

    app.run = fail
    assert main([command]) == 1
    assert f"specedge {command}: /models/x: no such folder\n" in capsys.readouterr().err


# Probes


def test_probe_of_a_verifier_follows_its_health() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
    server.start()
    try:
        assert probe(address, 5.0) is None
        assert main(["health", address]) == 0
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert probe(address, 5.0) == "not ready (NOT_SERVING)"
        assert main(["health", address]) == 1
        assert "no answer" in probe(f"http://{address}", 5.0), "that is no HTTP/1"
    finally:
        server.stop(None).wait()
    assert "UNAVAILABLE" in probe(address, 5.0)


def test_probe_of_an_edge_agent_follows_ready() -> None:
    status = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://{HOST}:{server.server_port}"
        try:
            assert probe(address, 5.0) == "not ready (HTTP 503)"
            status[0] = 200
            assert probe(address + "/", 5.0) is None
        finally:
            server.shutdown()
            thread.join()
    assert "no answer" in probe(address, 5.0)


# Ports


def test_a_taken_port_is_replaced_unless_it_was_asked_for(taken_port: int) -> None:
    assert not is_free(HOST, taken_port)
    assert choose_port(HOST, taken_port, False, "port") != taken_port
    with pytest.raises(PortBusy, match=f"port = {taken_port}: something else is listening on {HOST}:{taken_port}"):
        choose_port(HOST, taken_port, True, "port")


def test_a_free_port_is_taken_as_wanted() -> None:
    port = free_port(HOST)
    assert choose_port(HOST, port, True, "port") == port
    assert choose_port(HOST, 0, True, "port") > 0


# The demo's plan


def test_the_plan_gives_both_processes_matching_addresses_and_half_the_cores(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("verifier: {max_batch_size: 3, metrics_port: off}\nedge: {max_budget: 8}\n")
    plan = make_plan(parse_arguments(["--config", str(config), "--draft-model", "none"]))
    verifier, edge = plan.verifier_arguments(), plan.edge_arguments()
    assert verifier[:3] == ["verifier", "--config", str(config)]
    assert edge[edge.index("--verifier-address") + 1] == f"{HOST}:{plan.verifier.port}"
    assert edge[edge.index("--draft-model") + 1] == "none"
    assert verifier[verifier.index("--metrics-port") + 1] == "off"
    assert edge[edge.index("--metrics-port") + 1] == str(plan.edge.metrics_port)
    threads = model_threads(available_cores())
    assert (plan.verifier.num_threads, plan.edge.num_threads) == (threads, threads)
    assert (plan.verifier.max_batch_size, plan.edge.max_budget) == (3, 8)


def test_the_demo_stays_on_loopback_whatever_the_file_says(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text((Path(__file__).parents[2] / "deploy" / "large-pair.yaml").read_text())
    plan = make_plan(parse_arguments(["--config", str(config)]))
    assert load_verifier_settings(plan.verifier_arguments()[1:]).tls_certificate_file is None
    edge = load_edge_settings(plan.edge_arguments()[1:])
    assert (edge.verifier_ca_file, edge.verifier_certificate_file, edge.public_metrics) == (None, None, True)
    assert {plan.verifier.host, plan.edge.host, edge.host} == {HOST}


def test_model_threads_leave_room_for_the_rest(tmp_path: Path) -> None:
    assert [model_threads(cores) for cores in (1, 2, 3, 8)] == [1, 1, 1, 4]
    everything = available_cores(tmp_path / "no-such-file")
    assert everything >= 1
    quota = tmp_path / "cpu.max"
    for text, cores in (("max 100000", everything), ("100000 100000", 1), ("50000 100000", 1), ("garbage", everything)):
        quota.write_text(text)
        assert available_cores(quota) == cores


def test_a_port_asked_for_and_taken_ends_the_demo(taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--port", str(taken_port)]) == 1
    assert f"port of the edge agent = {taken_port}" in capsys.readouterr().err


# Child processes


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_child_keeps_its_last_lines_and_its_exit_code(kept_signal_handlers: None) -> None:
    child = Child("child", python("import sys\nfor n in range(90): print('line', n)\nsys.exit(3)"))
    wait_for(lambda: child.exit_code() is not None)
    assert child.exit_code() == 3
    assert child.last_lines(2) == ["line 88", "line 89"]
    child.stop(1.0, Interrupts())


READY = "import signal, sys, time; {}; print('ready', flush=True); time.sleep(60)"


def test_a_child_gets_time_to_drain(kept_signal_handlers: None) -> None:
    drain = "signal.signal(signal.SIGTERM, lambda *a: (time.sleep(0.3), print('drained', flush=True), sys.exit(0)))"
    child = Child("child", python(READY.format(drain)))
    wait_for(lambda: child.last_lines(1) == ["ready"])
    child.stop(20.0, Interrupts())
    assert child.exit_code() == 0


@pytest.mark.parametrize("is_urgent", [False, True])
def test_a_child_that_does_not_end_is_killed(kept_signal_handlers: None, is_urgent: bool) -> None:
    child = Child("child", python(READY.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)")))
    wait_for(lambda: child.last_lines(1) == ["ready"])
    interrupts = Interrupts()
    interrupts.count = 2 if is_urgent else 1
    started = time.monotonic()
    child.stop(60.0 if is_urgent else 0.3, interrupts)
    assert child.exit_code() == -signal.SIGKILL
    assert time.monotonic() - started < 20


def test_requests_to_end_are_counted(kept_signal_handlers: None) -> None:
    interrupts = Interrupts()
    for count, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), start=1):
        os.kill(os.getpid(), number)
        wait_for(lambda expected=count: interrupts.count == expected)
    assert interrupts.is_urgent


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death on Linux only")
def test_a_child_ends_with_a_parent_that_was_killed(taken_port: int) -> None:
    """The grandchild waits for an answer that never comes, so nothing but its parent's death ends it."""
    arguments = ["health", f"http://{HOST}:{taken_port}", "--timeout", "100"]
    script = (
        "import subprocess, time\nfrom specedge_cli.supervisor import specedge_command\n"
        f"child = subprocess.Popen(specedge_command({arguments}))\nprint(child.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(python(script), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    grandchild = int(parent.stdout.readline())
    try:
        time.sleep(1.0)
        assert is_alive(grandchild)
        parent.kill()
        wait_for(lambda: not is_alive(grandchild))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_recipe_takes_the_interrupt_for_itself() -> None:
    """The shell stands for `make`: it would die of the same Ctrl-C if it were still in the foreground group."""
    recipe = (
        "import signal, time\nfrom specedge_cli.terminal import own_foreground_group\n"
        "hits = []\nsignal.signal(signal.SIGINT, lambda *arguments: hits.append(1))\n"
        "with own_foreground_group():\n"
        "    print('ready', flush=True)\n"
        "    while not hits: time.sleep(0.02)\n"
        "print('orderly end', flush=True)"
    )
    take_terminal = (
        "import fcntl, os, sys, termios\n"
        "os.setsid()\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\nos.execvp('sh', ['sh', '-c', sys.argv[1]])"
    )
    terminal, other_end = pty.openpty()
    shell = subprocess.Popen(
        [*python(take_terminal), f'"{sys.executable}" -c "{recipe}"; echo "exit code $?"'],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
    )
    os.close(other_end)
    output = b""
    try:
        while b"ready" not in output:
            output += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 4096):
                output += chunk
    finally:
        os.close(terminal)
        shell.wait()
    assert b"orderly end" in output and b"exit code 0" in output
    assert shell.returncode == 0


def test_a_child_whose_parent_is_gone_does_not_start() -> None:
    command = specedge_command(["version"])
    command[command.index(str(os.getpid()))] = "1" if os.getpid() != 1 else "2"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
