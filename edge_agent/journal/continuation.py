"""An answer from what is recorded of it, and then from whoever generates."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from edge_agent.answer_stream import GenerationRequest
from edge_agent.committed_answer import Burst
from edge_agent.journal.journal import ChoiceRecord

Generate = Callable[[GenerationRequest], AbstractAsyncContextManager[AsyncIterator[Burst]]]


@asynccontextmanager
async def continued(
    generate: Generate, request: GenerationRequest, record: ChoiceRecord | None
) -> AsyncIterator[AsyncIterator[Burst]]:
    """The bursts of an answer; recorded tokens come first, as one burst, and new ones are recorded.

    A session is opened only for an answer that lacks something, and before anything is told: if that is refused, the
    client can ask again for the whole.

    Args:
        generate: generates, as `edge_agent.generation.GenerationService` does.
        request: what is wanted.
        record: the answer's place in the journal; None: it has none.
    """
    if record is None:
        async with generate(request) as bursts:
            yield bursts
        return
    told = record.told
    if told.is_ended or told.finish_reason:
        yield _replayed(record)
        return
    async with generate(replace(request, committed_ids=tuple(told.token_ids))) as bursts:
        yield _recorded(record, bursts)


async def _replayed(record: ChoiceRecord) -> AsyncIterator[Burst]:
    yield record.told.burst()


async def _recorded(record: ChoiceRecord, bursts: AsyncIterator[Burst]) -> AsyncIterator[Burst]:
    if record.told.token_ids:
        yield record.told.burst()
    async for burst in bursts:
        record.keep(burst)
        yield burst
