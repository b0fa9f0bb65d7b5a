"""A verifier and an edge with the embedded models in this process, joined by real gRPC, that follow grammars."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from grammar_support import EOS, compiler, spec, tokenizer
from tcp_proxy import TcpProxy

from edge_agent.draft_grammars import DraftGrammars
from edge_agent.generation import GenerationOptions, GenerationRequest, GenerationService
from edge_agent.loading import LoadedModels
from edge_agent.loading import load as load_edge
from edge_agent.metrics import EdgeMetrics
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_client import VerifierClient
from specedge.grammar.session_grammars import SessionGrammars
from specedge.sampling import SamplingParams
from specedge_cli.processes import load_edge_settings, load_verifier_settings
from specedge_verifier.grpc_server import ServerOptions, VerifierServer
from specedge_verifier.loading import Verifier
from specedge_verifier.loading import load as load_verifier


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and how many of its tokens had been drafted."""

    token_ids: tuple[int, ...]
    finish_reason: str
    num_accepted: int = 0

    @property
    def text(self) -> str:
        return tokenizer().decode([token for token in self.token_ids if token != EOS])


@dataclass(frozen=True, slots=True)
class Pair:
    """What runs."""

    verifier: Verifier
    service: GenerationService
    models: LoadedModels
    proxy: TcpProxy
    counters: StreamCounters

    async def answer(self, request: GenerationRequest, cut_after: int | None = None) -> Answer:
        """The answer to a request; its connection is cut after some tokens."""
        token_ids, num_accepted, reason, is_cut = [], 0, "", cut_after is None
        async with self.service.generate(request) as bursts, aclosing(bursts):
            async for burst in bursts:
                token_ids += burst.token_ids
                num_accepted += burst.num_accepted
                reason = burst.finish_reason
                if not is_cut and len(token_ids) >= cut_after:
                    is_cut = True
                    self.proxy.cut()
        return Answer(tuple(token_ids), reason, num_accepted)


@asynccontextmanager
async def structured_pair(*flags: str, is_drafting: bool = True) -> AsyncIterator[Pair]:
    """Both services, warm; grammars are compiled by the run's one compiling process."""
    verifier = load_verifier(load_verifier_settings(["--num-threads", "1", *flags]))
    shared = SessionGrammars(compiler)
    engine = verifier.start_engine(asyncio.get_running_loop())
    server = VerifierServer(engine, ServerOptions(), shared)
    port = await server.start()
    await server.set_ready()
    proxy = TcpProxy(port)
    await proxy.start()
    drafter_flags = [] if is_drafting else ["--draft-model", "none"]
    models = load_edge(load_edge_settings(["--num-threads", "1", *drafter_flags]), EdgeMetrics())
    following = models.drafter or models.lookup
    assert following is not None
    following._grammars = DraftGrammars(lambda eos_ids: shared)
    if models.drafter is not None:
        models.drafter.start()
    counters = StreamCounters()
    client = VerifierClient(f"127.0.0.1:{proxy.port}", counters)
    options = GenerationOptions(verifier_deadline_s=30.0)
    service = GenerationService(client, models.draft_source, verifier.info.tokenizer_fingerprint, options)
    try:
        await service.start()
        yield Pair(verifier, service, models, proxy, counters)
    finally:
        await client.close()
        following._grammars = DraftGrammars(None)
        following.stop()
        await proxy.close()
        await server.stop()
        engine.stop()


def request(
    prompt: str, kind: str = "", source: object = "", *, speculate: bool = True, **sampling: object
) -> GenerationRequest:
    """A chat's request."""
    messages = [{"role": "user", "content": prompt}]
    prompt_ids = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    params = SamplingParams(**{"max_tokens": 64, "grammar": spec(kind, source) if kind else None, **sampling})
    return GenerationRequest("r", tuple(prompt_ids), params, speculate=speculate)


def plainly(wanted: GenerationRequest) -> GenerationRequest:
    return replace(wanted, speculate=False)
