"""Envoy itself takes what is in `deploy/envoy`, without a warning."""

from pathlib import Path

import pytest
from envoy_support import Envoy, install, validate

from specedge_cli.main import main


@pytest.mark.parametrize("name", ["envoy.yaml", "envoy-tls.yaml"])
def test_a_configuration_is_valid(envoy_program: str, tmp_path: Path, name: str) -> None:
    assert main(["certs", "--out", str(tmp_path / "certs")]) == 0
    install(tmp_path / "certs", tmp_path / "certificates")
    Envoy(envoy_program, tmp_path, (), name)
    assert validate(envoy_program, tmp_path / name) is None
