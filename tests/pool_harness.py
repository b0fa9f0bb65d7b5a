"""An edge that knows several verifiers, and some prompts to ask it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from edge_harness import QUICK, wanted
from fakes import FINGERPRINT

from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.generation import GenerationOptions, GenerationRequest, GenerationService
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_addresses import FixedAddresses, VerifierAddresses
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_member import PoolTimes
from edge_agent.verifier_pool import VerifierPool

TIMES = PoolTimes(ping_every_s=0.05, idle_ping_every_s=0.1, ping_timeout_s=0.8, spread_s=0.02, left_out_pause_s=0.1)
PROMPTS = [(1000 + i, 7, 9) for i in range(8)]
NUM_TOKENS = 150


@dataclass(slots=True)
class PoolEdge:
    """An edge that knows several verifiers."""

    pool: VerifierPool
    service: GenerationService
    counters: StreamCounters

    def state(self, port: int) -> str:
        return next(state for address, state, _ in self.pool.states if address.endswith(f":{port}"))

    async def answers(self, on_started: Callable[[], object], num_tokens: int = NUM_TOKENS) -> list[list[int]]:
        """The answers to PROMPTS; `on_started` is called in the middle of them."""
        started = 0

        async def one(request: GenerationRequest) -> list[int]:
            nonlocal started
            token_ids: list[int] = []
            async with self.service.generate(request) as bursts, aclosing(bursts):
                async for burst in bursts:
                    if len(token_ids) < 30 <= len(token_ids) + len(burst.token_ids):
                        started += 1
                        if started == len(PROMPTS):
                            on_started()
                    token_ids += burst.token_ids
            return token_ids

        async with asyncio.timeout(20):
            return await asyncio.gather(*(one(wanted(num_tokens, prompt)) for prompt in PROMPTS))


@asynccontextmanager
async def edge_of(
    addresses: VerifierAddresses | Sequence[int],
    drafts: DraftSource | None = None,
    options: GenerationOptions = QUICK,
    times: PoolTimes = TIMES,
) -> AsyncIterator[PoolEdge]:
    source = addresses
    if isinstance(source, Sequence):
        source = FixedAddresses([f"127.0.0.1:{port}" for port in source])
    counters = StreamCounters()
    pool = VerifierPool(source, lambda address: VerifierClient(address, counters), counters, times)
    service = GenerationService(pool, drafts or NullDraftSource(), FINGERPRINT, options)
    running = None
    try:
        await service.start()
        running = asyncio.create_task(pool.run())
        yield PoolEdge(pool, service, counters)
    finally:
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
        await pool.close()
