"""OpenAI's client for Node; `make test-clients` fetches it with npm."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from http_support import FakeService, serving_in_thread

SCRIPT = Path(__file__).with_name("node_client.mjs")
CALLING = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo 🙂"}}\n</tool_call>'


def ask(url: str, model: str, kind: str, folder: Path) -> dict[str, Any]:
    modules = os.environ.get("SPECEDGE_NODE_MODULES")
    node = shutil.which("node")
    if node is None or modules is None:
        pytest.skip("needs node, and its openai package: make test-clients")
    (folder / "node_modules").symlink_to(modules)
    script = folder / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    done = subprocess.run([node, script, url, model, kind], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_real_answers(real_url: str, tmp_path: Path) -> None:
    answer = ask(real_url, "specedge-demo", "text", tmp_path)
    assert answer["models"] == ["specedge-demo"]
    text = answer["whole"]["message"]["content"]
    assert text and text == answer["pieces"] == answer["streamed"]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["refused"] == {"status": 400, "param": "temperature"}
    assert answer["response"]


def test_tools(tmp_path: Path) -> None:
    with serving_in_thread(FakeService(CALLING)) as api:
        answer = ask(api.url, "demo", "tools", tmp_path)
    for name in ("whole", "streamed"):
        (call,) = answer[name]["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Oslo 🙂"}
        assert answer[name]["finish_reason"] == "tool_calls"
