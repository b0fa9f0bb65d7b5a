"""A process that cannot serve its model ends by itself: exit code 1, and a last line that says why."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from specedge.model.embedded import resolve_model


def test_a_model_that_holds_nan(tmp_path: Path) -> None:
    folder, name = tmp_path / "model", "model.layers.1.mlp.down_proj.weight"
    shutil.copytree(resolve_model("demo", "target"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = subprocess.run(
        [sys.executable, "-m", "specedge_cli", "verifier", "--port", "0", "--device", "cpu", "--target-model", folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"specedge verifier: {folder}: tensor {name} holds NaN")
    assert "Traceback" not in done.stderr
