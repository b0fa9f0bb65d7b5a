"""An edge's generation service against a given port, and short ways to ask it for answers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from fakes import FINGERPRINT

from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.generation import Burst, GenerationOptions, GenerationRequest, GenerationService
from edge_agent.stream_observer import StreamCounters
from edge_agent.verifier_channel import LinkTls
from edge_agent.verifier_client import VerifierClient
from specedge.sampling import SamplingParams
from specedge.wire.shaping import UNSHAPED, FrameShape

PROMPT = (70_000, 80_000, 90_000)
QUICK = GenerationOptions(verifier_deadline_s=5.0, stall_timeout_s=5.0)


class Edge:
    """A generation service with its client and counters."""

    def __init__(
        self,
        address: int | str,
        drafts: DraftSource,
        options: GenerationOptions,
        tls: LinkTls | None = None,
        shape: FrameShape = UNSHAPED,
    ) -> None:
        self.counters = StreamCounters()
        self.client = VerifierClient(
            address if isinstance(address, str) else f"127.0.0.1:{address}", self.counters, tls, shape=shape
        )
        self.service = GenerationService(self.client, drafts, FINGERPRINT, options)


@asynccontextmanager
async def edge_at(
    address: int | str,
    drafts: DraftSource | None = None,
    options: GenerationOptions = QUICK,
    tls: LinkTls | None = None,
    shape: FrameShape = UNSHAPED,
) -> AsyncIterator[Edge]:
    edge = Edge(address, drafts or NullDraftSource(), options, tls, shape)
    try:
        await edge.service.start()
        yield edge
    finally:
        await edge.client.close()


def wanted(num_tokens: int, prompt_ids: Sequence[int] = PROMPT, **changes: object) -> GenerationRequest:
    return replace(GenerationRequest("r1", tuple(prompt_ids), SamplingParams(max_tokens=num_tokens)), **changes)


async def bursts_of(service: GenerationService, request: GenerationRequest) -> list[Burst]:
    async with service.generate(request) as bursts, aclosing(bursts):
        return [burst async for burst in bursts]


async def answer_of(service: GenerationService, request: GenerationRequest) -> list[int]:
    return [token_id for burst in await bursts_of(service, request) for token_id in burst.token_ids]
