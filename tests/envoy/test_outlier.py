"""A verifier that passes its health checks and fails its sessions is left alone for a while, and no answer is lost."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_support import SHORT, Envoy, Fleet, Undisturbed, until
from grpc_health.v1 import health, health_pb2_grpc
from processes import Edge, Verifier, running

OUTLIERS = "cluster.verifiers.outlier_detection"


class Failing(grpc.GenericRpcHandler):
    """Answers UNAVAILABLE to whatever it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._fail)

    def _fail(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.num_asked += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "the device was lost")
        yield b""


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Verifier, Failing]]:
    """The address of a verifier, and what serves there: SERVING, and nothing else."""
    verifier, handler = Verifier(tmp_path, "--num-kv-blocks", "1"), Failing()
    server = grpc.server(ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)  # "" is SERVING from the start
    server.add_generic_rpc_handlers((handler,))
    assert server.add_insecure_port(verifier.address)
    server.start()
    yield verifier, handler
    server.stop(None).wait()


async def test_a_verifier_that_fails_its_sessions_is_ejected_though_it_is_healthy(
    envoy_program: str, tmp_path: Path, undisturbed: Undisturbed, failing: tuple[Verifier, Failing]
) -> None:
    bad, handler = failing
    folders = [tmp_path / name for name in ("good", "envoy", "edge")]
    for folder in folders:
        folder.mkdir()
    good = Verifier(folders[0], "--num-kv-blocks", "600")
    envoy = Envoy(envoy_program, folders[1], (good, bad))
    fleet = Fleet((good, bad), envoy, Edge(folders[2], "edge", envoy))
    answers: list[str] = []
    with running(good, envoy, fleet.edge):
        async with fleet.edge.client() as client:

            async def is_ejected() -> int:
                answers.extend(await asyncio.gather(*(SHORT.whole(client) for _ in range(4))))
                return await envoy.stat(f"{OUTLIERS}.ejections_enforced_total")

            async def are_logged() -> bool:
                return len(fleet.sessions()) >= len(answers)

            await until("it is ejected", is_ejected)
            await until("every session is in the access log", are_logged)
        assert await envoy.stat("cluster.verifiers.health_check.healthy") == 2, "health checks found nothing"
        assert handler.num_asked >= 3, "failures in a row"
        assert set(answers) == {undisturbed.short}
        assert {line["verifier"] for line in fleet.sessions()} == {good.address}, "each went on at the other"
        assert max(line["attempts"] for line in fleet.sessions()) > 1
        assert await fleet.edge.sample("specedge_edge_reconnects_total") == 0
