"""What a start may import: seconds of it, if nobody looks."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from specedge.model.native.build import COMPILERS

HEAVY = ("torch", "transformers", "grpc", "fastapi", "pydantic", "rich", "numpy", "matplotlib")
MODEL_CODE = ("transformers.modeling_utils", "transformers.models.auto", "torch._dynamo", "sympy", "matplotlib", "rich")
START = """
import numpy as np
import edge_agent.app as edge, specedge_verifier.app as verifier
from edge_agent.metrics import EdgeMetrics
from specedge.model.batch import chain
from specedge.model.engines import load_for, make_runner
from specedge.model.embedded import resolve_model
from specedge_cli.processes import load_edge_settings, load_verifier_settings

flags = ["--engine", "{engine}", "--num-threads", "1"]
loaded = verifier.load(load_verifier_settings(flags))
models = edge.load(load_edge_settings(flags), EdgeMetrics())
chat = models.tokenizer.apply_chat_template([{{"role": "user", "content": "Hi"}}], tokenize=False)
runner = make_runner(load_for("{engine}", resolve_model("demo", "target")), 64)
assert runner.forward(chain(3)).shape == (3, loaded.info.vocab_size) and "Hi" in chat
"""


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh Python has imported after running `code`."""
    script = f"{code}\nimport sys; print(*[name for name in {names!r} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECEDGE_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2].split()


@pytest.mark.parametrize(
    "code",
    [
        "import specedge_cli.main",
        "import specedge_cli.main\nspecedge_cli.main.main(['version'])",
        "import specedge_cli.main\nspecedge_cli.main.main(['health', 'http://127.0.0.1:1', '--timeout', '0.1'])",
    ],
)
def test_short_commands_import_nothing_heavy(code: str) -> None:
    assert imported(code, HEAVY) == []


def test_asking_a_verifier_imports_grpc_alone() -> None:
    code = "from specedge_cli.main import main\nmain(['health', '127.0.0.1:1', '--timeout', '0.1'])"
    assert imported(code, HEAVY) == ["grpc"]


def test_settings_import_no_tensors() -> None:
    code = "from specedge_cli.processes import load_edge_settings\nload_edge_settings([])"
    assert imported(code, ("torch", "transformers", "grpc", "fastapi")) == []


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("native", marks=pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C compiler")),
        "lean",
    ],
)
def test_no_process_imports_model_code_of_transformers(engine: str) -> None:
    assert imported(START.format(engine=engine), MODEL_CODE) == []


@pytest.mark.parametrize("module", MODEL_CODE)
def test_the_list_of_model_code_is_of_modules_that_exist(module: str) -> None:
    assert find_spec(module) is not None
