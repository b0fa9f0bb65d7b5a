"""A generation service that behaves without a model, and the HTTP API over it on a real socket."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fakes import until
from transformers import AutoTokenizer

from edge_agent.draft_trace import RoundTrace
from edge_agent.generation import Burst, BurstStats, GenerationRequest
from edge_agent.http.app import create_app
from edge_agent.http.server import http_server
from edge_agent.http.settings import HttpSettings
from edge_agent.journal.journal import Journal
from edge_agent.metrics import EdgeMetrics
from specedge.errors import CapacityExceeded
from specedge.stopping import TokenStops
from specedge.wire.messages import DefaultSampling, ServerInfo, TokenLogprob

TARGET = Path(__file__).parents[1] / "models" / "target"
EOS_ID = 2
INFO = ServerInfo(
    target_model="demo-target",
    tokenizer_fingerprint="f",
    vocab_size=4096,
    max_len=1024,
    max_live_nodes=64,
    eos_ids=(EOS_ID,),
    max_batch_size=8,
    server_version="9.9",
    default_sampling=DefaultSampling(temperature=0.7, top_p=0.9, top_k=50, min_p=0.05, repetition_penalty=1.1),
)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TARGET)


def ids(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False).input_ids)


def fake_logprobs(token_ids: Sequence[int], num_top: int | None) -> tuple[TokenLogprob, ...]:
    """Each token is the best where its id is even, and a little worse than ids from 100 on where it is odd."""
    if num_top is None:
        return ()
    return tuple(
        TokenLogprob(-token_id / 4096 - token_id % 2, (token_id - token_id % 2, *range(100, 120))[:num_top], values)
        for token_id in token_ids
        for values in [(-(token_id - token_id % 2) / 4096, *(-1.0 - n for n in range(20)))[:num_top]]
    )


class FakeService:
    """Answers each request with a given text and the end-of-sequence token, by the real rules of stopping by token.

    Args:
        reply: the answer's text, or a function that makes it from the request.
        burst_size: tokens that arrive together.
        is_endless: the answer repeats instead of ending.
    """

    def __init__(
        self,
        reply: str | Callable[[GenerationRequest], str] = "Once upon a time.",
        *,
        burst_size: int = 3,
        is_endless: bool = False,
    ) -> None:
        self.info: ServerInfo | None = INFO
        self.is_ready = True
        self.failure: str | None = None
        self.verifiers: list[tuple[str, str, str | None]] = []
        self.reply = reply
        self.burst_size = burst_size
        self.is_endless = is_endless
        self.refusal: CapacityExceeded | None = None
        self.open_error: Exception | None = None
        self.error_after: tuple[int, Exception] | None = None
        self.gate: asyncio.Event | None = None
        self.round = RoundTrace(None, 0.004, None, None)  # of every burst of a traced answer
        self.requests: list[GenerationRequest] = []
        self.num_open = 0
        self.max_open = 0
        self.num_bursts = 0
        self.closed: asyncio.Event = asyncio.Event()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Burst]]:
        self.requests.append(request)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            await asyncio.sleep(0)
            if self.open_error is not None:
                raise self.open_error
            yield self._bursts(request)
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self.closed.set()

    async def _bursts(self, request: GenerationRequest) -> AsyncIterator[Burst]:
        stops = TokenStops(INFO.eos_ids, request.sampling)
        num_generated = len(request.committed_ids)
        for index, tokens in enumerate(self._token_groups(request)):
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            if self.error_after is not None and index == self.error_after[0]:
                raise self.error_after[1]
            kept, reason = stops.truncate(tokens, num_generated)
            num_generated += len(kept)
            self.num_bursts += 1
            accepted = max(len(kept) - 1, 0)
            yield Burst(
                tuple(kept),
                reason or "",
                accepted,
                BurstStats(250, 1500, 2 * accepted, round=self.round if request.is_traced else None),
                fake_logprobs(kept, request.sampling.num_logprobs),
                fake_logprobs(request.prompt_ids[1:], request.sampling.num_prompt_logprobs) if index == 0 else (),
            )
            if reason:
                return

    def _token_groups(self, request: GenerationRequest) -> Iterator[list[int]]:
        text = self.reply if isinstance(self.reply, str) else self.reply(request)
        tokens = ids(text)
        if not self.is_endless:
            tokens.append(EOS_ID)
        source = iter(tokens)
        if self.is_endless or request.sampling.ignore_eos:
            source = cycle(tokens)
        source = islice(source, len(request.committed_ids), None)
        while group := list(islice(source, self.burst_size)):
            yield group


class RunningApi:
    """The API over a service, listening on a loopback port."""

    def __init__(self, service: FakeService, metrics: EdgeMetrics, address: tuple[str, int]) -> None:
        self.service = service
        self.metrics = metrics
        self.address = address
        self.url = f"http://{address[0]}:{address[1]}"

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving(
    service: FakeService, make_journal: Callable[[EdgeMetrics], Journal] | None = None, **settings: Any
) -> AsyncIterator[RunningApi]:
    metrics = EdgeMetrics(lambda: "demo")
    http = HttpSettings(**{"model_name": "demo", "public_metrics": True, **settings})
    journal = None if make_journal is None else make_journal(metrics)
    app = create_app(service, tokenizer(), http, metrics, journal=journal, refusal=lambda: service.refusal)
    server = http_server(app, drain_timeout_s=5, on_refused=metrics.refused_head)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or task.done())
        yield RunningApi(service, metrics, server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        await task
        if journal is not None:
            journal.close()


@contextlib.contextmanager
def serving_in_thread(service: FakeService, **settings: Any) -> Iterator[RunningApi]:
    """The same on a loop and a thread of its own, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    context = serving(service, **settings)
    try:
        yield run(context.__aenter__())
        run(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
