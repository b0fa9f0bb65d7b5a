"""A verifier and an edge in this process, joined by real gRPC over loopback, perhaps through a proxy that cuts."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.cut_proxy import CutProxy, CutSettings
from edge_agent.draft_source import DraftSource
from edge_agent.generation import GenerationOptions, GenerationService
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_client import VerifierClient
from specedge.drafting.loading import MakeRunner
from specedge.grammar.session_grammars import SessionGrammars
from specedge.model.engines import make_runner
from specedge_verifier.engine import EngineThread
from specedge_verifier.grpc_server import ServerOptions, VerifierServer
from specedge_verifier.loading import Verifier, load
from specedge_verifier.settings import VerifierSettings

_DEADLINE_S = 60.0
_EMPTY_WITHIN_S = 10.0
_NUM_LOOKS = 1000


class StreamWatch(StreamCounters):
    """Counts, and remembers why streams broke."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: Counter[str] = Counter()

    def broken(self, reason: str) -> None:
        super().broken(reason)
        self.reasons[reason] += 1


@dataclass(frozen=True, slots=True)
class Deployment:
    """What runs."""

    settings: VerifierSettings
    verifier: Verifier
    service: GenerationService
    streams: StreamWatch
    proxy: CutProxy | None


@contextlib.asynccontextmanager
async def deployed(
    settings: VerifierSettings,
    source: DraftSource,
    cuts: CutSettings | None = None,
    seed: int = 0,
    *,
    grammars: SessionGrammars | None = None,
    make_runner: MakeRunner = make_runner,
) -> AsyncIterator[Deployment]:
    """Starts both sides; at the end every session must have freed its blocks.

    Args:
        settings: the verifier's.
        source: where the edge's drafts come from.
        cuts: how connections are cut; None connects directly.
        seed: of the cuts.
        grammars: the verifier's, to be closed at the end; None: it makes its own.
        make_runner: see `specedge_verifier.loading.load`.
    """
    verifier = load(settings, make_runner)
    verifier.grammars = grammars or verifier.grammars
    engine = verifier.start_engine(asyncio.get_running_loop())
    server = VerifierServer(engine, ServerOptions(), verifier.grammars)
    port = await server.start()
    await server.set_ready()
    proxy = CutProxy(port, cuts, seed) if cuts is not None else None
    if proxy is not None:
        port = await proxy.start()
    streams = StreamWatch()
    client = VerifierClient(f"127.0.0.1:{port}", streams)
    options = GenerationOptions(verifier_deadline_s=_DEADLINE_S)
    service = GenerationService(client, source, verifier.info.tokenizer_fingerprint, options)
    try:
        await service.start()
        yield Deployment(settings, verifier, service, streams, proxy)
        await _check_empty(verifier, engine, server)
    finally:
        await client.close()
        if proxy is not None:
            await proxy.stop()
        await server.stop()
        verifier.grammars.close()
        engine.stop()
    verifier.core.scheduler.pool.check_integrity()


async def _check_empty(verifier: Verifier, engine: EngineThread, server: VerifierServer) -> None:
    """Waits for the streams that cut connections left behind, then for all blocks to be free."""
    pool = verifier.core.scheduler.pool
    await asyncio.wait_for(server.service.wait_idle(), _EMPTY_WITHIN_S)
    for _ in range(_NUM_LOOKS):
        if not engine.num_sessions and not pool.num_held:
            break
        await asyncio.sleep(_EMPTY_WITHIN_S / _NUM_LOOKS)
    else:
        left = f"{engine.num_sessions} sessions and {pool.num_held} KV blocks"
        raise AssertionError(f"{left} are left after the last answer")
