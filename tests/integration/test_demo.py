"""`specedge demo` with both real processes: it serves, ends in order, and leaves nothing running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.http.api_keys import new_key, spell_entry

END_TIMEOUT_S = 60


class Demo:
    """A running demo whose output is read line by line."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECEDGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "specedge_cli", "demo", "--port", "0", "--verifier-port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "SPECEDGE_METRICS_PORT": "off", "PYTHONUNBUFFERED": "1", **variables},
        )
        self.output = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        while not (match := re.search(pattern, self.output)):
            line = self.process.stdout.readline()
            assert line, f"the demo ended before {pattern!r}:\n{self.output}"
            self.output += line
        return match

    def end(self) -> int:
        """Wait for its end, reading what is left of its output."""
        rest, _ = self.process.communicate(timeout=END_TIMEOUT_S)
        self.output += rest
        return self.process.returncode

    def child_ids(self) -> dict[str, int]:
        return {name: int(number) for name, number in re.findall(r"(.+): starting \(process (\d+)\)", self.output)}


@pytest.fixture
def demos() -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.communicate()


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(process_ids: list[int]) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(is_alive(process_id) for process_id in process_ids):
        assert time.monotonic() < deadline, f"still running: {process_ids}"
        time.sleep(0.05)


def start(demos: list[Demo], *arguments: str, **variables: str) -> Demo:
    demos.append(Demo(*arguments, **variables))
    return demos[-1]


def test_a_demo_with_api_keys_says_where_the_key_goes(demos: list[Demo], tmp_path: Path) -> None:
    key = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(spell_entry("alice", key))
    demo = start(demos, SPECEDGE_API_KEYS_FILE=str(path))
    command = demo.read_until(r"curl -N (\S+) -H '(.+?): (Bearer) KEY' -H 'Content-Type: application/json' -d '(.+)'\n")
    body = json.dumps({**json.loads(command[4]), "max_tokens": 2}).encode()
    headers = {"Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(urllib.request.Request(command[1], body, headers), timeout=60)
    headers[command[2]] = f"{command[3]} {key}"
    with urllib.request.urlopen(urllib.request.Request(command[1], body, headers), timeout=60) as answer:
        assert answer.read().decode().endswith("data: [DONE]\n\n")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0


def test_the_printed_command_works_and_interrupt_ends_everything(demos: list[Demo]) -> None:
    demo = start(demos)
    url = demo.read_until(r"SpecEdge is ready: (http://127\.0\.0\.1:\d+)")[1]
    command = demo.read_until(r"curl -N (\S+) -H 'Content-Type: application/json' -d '(.+)'\n")
    demo.read_until("Ctrl-C stops both processes")
    assert command[1] == f"{url}/v1/chat/completions"
    body = {**json.loads(command[2]), "max_tokens": 8}
    request = urllib.request.Request(command[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    assert text.count('"content":') >= 2
    assert text.endswith("data: [DONE]\n\n")

    children = demo.child_ids()
    assert set(children) == {"verifier", "edge agent"}
    assert all(is_alive(child) for child in children.values())
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0, demo.output
    assert demo.output.endswith("stopped\n")
    assert not any(is_alive(child) for child in children.values())


def test_a_process_that_dies_ends_the_demo_with_its_last_lines(demos: list[Demo]) -> None:
    demo = start(demos)
    demo.read_until("Ctrl-C stops both processes")
    children = demo.child_ids()
    os.kill(children["verifier"], signal.SIGKILL)
    assert demo.end() == 1
    assert "the verifier was ended by signal 9; its last lines:" in demo.output
    assert not any(is_alive(child) for child in children.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death on Linux only")
def test_a_killed_demo_leaves_nothing_running(demos: list[Demo]) -> None:
    demo = start(demos)
    demo.read_until("Ctrl-C stops both processes")
    children = list(demo.child_ids().values())
    demo.process.kill()
    demo.end()
    wait_until_gone(children)


def test_sigterm_while_loading_ends_everything(demos: list[Demo]) -> None:
    demo = start(demos)
    demo.read_until("edge agent: starting")
    children = list(demo.child_ids().values())
    demo.process.terminate()
    assert demo.end() == 0, demo.output
    assert not any(is_alive(child) for child in children)


def test_a_model_that_is_missing_is_named(demos: list[Demo], tmp_path: Path) -> None:
    demo = start(demos, "--target-model", str(tmp_path / "nothing"))
    assert demo.end() == 1
    assert f"{tmp_path / 'nothing'}: no such folder" in demo.output
    assert not any(is_alive(child) for child in demo.child_ids().values())


def test_a_process_that_is_not_ready_in_time_is_named(demos: list[Demo]) -> None:
    demo = start(demos, "--ready-timeout", "0.1")
    assert demo.end() == 1
    assert "verifier was not ready within 0.1 s" in demo.output
    assert not any(is_alive(child) for child in demo.child_ids().values())
