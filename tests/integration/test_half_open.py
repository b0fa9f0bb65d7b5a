"""An edge that vanishes without a word: the verifier notices, ends its session and frees what it held."""

import pytest
from engine_thread import TIMEOUT_S, Target, look_into, opening, running
from fakes import serving, until
from grpc.aio import insecure_channel
from tcp_proxy import TcpProxy

from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import channel, codec


async def test_a_session_whose_edge_has_vanished_ends_and_frees_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    options = tuple((name, 300 if value in (15_000, 10_000) else value) for name, value in channel._COMMON)
    monkeypatch.setattr(channel, "_COMMON", options)
    target = Target(holds_at=40)  # for longer than is waited below
    async with running(target) as engine, serving(engine) as server:  # type: ignore[arg-type]
        proxy = TcpProxy(server.port)
        await proxy.start()
        async with insecure_channel(f"127.0.0.1:{proxy.port}") as edge:
            call = pb_grpc.VerificationServiceStub(edge).Generate()
            await call.write(codec.encode_open(opening(240)))
            await call.read()
            await target.held()
            proxy.freeze()
            assert engine.num_sessions == 1
            await until(lambda: engine.num_sessions == 0, 0.5 * TIMEOUT_S)
            target.release()
            assert (await look_into(engine)).num_held == 0
            call.cancel()
        await proxy.close()
