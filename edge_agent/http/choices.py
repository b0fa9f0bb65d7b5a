"""Runs the answers of one request side by side and merges their pieces, in order of arrival, behind a small buffer."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from edge_agent.answer_meter import AnswerMeter
from edge_agent.detokenizer import DetokenizerFactory
from edge_agent.generation import GenerationRequest
from edge_agent.http.choice_text import ChoiceText, Piece
from edge_agent.http.ports import GenerationPort
from edge_agent.journal.continuation import continued
from edge_agent.journal.journal import ChoiceRecord
from edge_agent.metrics import EdgeMetrics
from specedge.errors import VerifierUnavailable

_MIN_SHARED_TOKENS: Final = 128


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to be generated.

    Args:
        request: what the generation service is asked.
        stops: stop strings.
        context_ids: tokens whose text the answer directly continues.
        keeps_stop: what ends the answer is part of its text.
        skips_special: special tokens have no text.
        echo: text that comes before the answer's.
        drops_answer: only the prompt is of interest; the request asks for one token.
        record: its place in the journal; None: it has none.
    """

    request: GenerationRequest
    stops: tuple[str, ...]
    context_ids: tuple[int, ...] = ()
    keeps_stop: bool = False
    skips_special: bool = True
    echo: str = ""
    drops_answer: bool = False
    record: ChoiceRecord | None = None


@dataclass(frozen=True, slots=True)
class _Turn:
    """When an answer begins.

    A prompt's first answer begins at once, its others when the first one's first tokens have come: from then on the
    verifier finds the prompt in its prefix cache, instead of computing it for each of them. Short prompts are cheaper
    to compute again than to wait for.
    """

    prompt_computed: asyncio.Event
    is_first: bool

    async def wait(self) -> None:
        """Waits until the answer may begin."""
        if not self.is_first:
            await self.prompt_computed.wait()


def _turns(choices: Sequence[Choice]) -> Iterator[_Turn]:
    events: dict[tuple[int, ...], asyncio.Event] = {}
    for choice in choices:
        prompt_ids = choice.request.prompt_ids
        computed = events.get(prompt_ids)
        is_first = computed is None
        if computed is None:
            computed = events[prompt_ids] = asyncio.Event()
            if len(prompt_ids) < _MIN_SHARED_TOKENS:
                computed.set()
        yield _Turn(computed, is_first)


class ChoiceRunner:
    """Generates the answers of requests."""

    def __init__(
        self, service: GenerationPort, detokenizers: DetokenizerFactory, metrics: EdgeMetrics, max_parallel: int
    ) -> None:
        self._service = service
        self._detokenizers = detokenizers
        self._metrics = metrics
        self._max_parallel = max_parallel

    def spell(self, token_id: int) -> str:
        """Text of one token by itself."""
        return self._detokenizers.spell(token_id)

    @asynccontextmanager
    async def run(self, choices: Sequence[Choice], arrived_s: float) -> AsyncIterator[AsyncIterator[Piece]]:
        """Pieces of all answers until each has finished; leaving the context cancels those that have not.

        The buffer holds one piece for each answer that runs: when nobody takes them, generation stops.
        """
        num_parallel = min(len(choices), self._max_parallel)
        slots = asyncio.Semaphore(num_parallel)
        buffer: asyncio.Queue[Piece | Exception] = asyncio.Queue(maxsize=num_parallel)
        tasks = [
            asyncio.create_task(self._generate(index, choice, turn, arrived_s, slots, buffer))
            for index, (choice, turn) in enumerate(zip(choices, _turns(choices), strict=True))
        ]
        try:
            yield _merged(buffer, len(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(
        self,
        index: int,
        choice: Choice,
        turn: "_Turn",
        arrived_s: float,
        slots: asyncio.Semaphore,
        buffer: "asyncio.Queue[Piece | Exception]",
    ) -> None:
        text = ChoiceText(
            index,
            self._detokenizers.create(choice.context_ids, skips_special=choice.skips_special),
            choice.stops,
            choice.request.sampling.min_tokens,
            keeps_stop=choice.keeps_stop,
            stop_token_ids=choice.request.sampling.stop_token_ids,
            prompt_ids=choice.request.prompt_ids,
            echo=choice.echo,
            drops_answer=choice.drops_answer,
            prediction_ids=choice.request.prediction_ids,
        )
        try:
            await turn.wait()
            async with slots:
                with AnswerMeter(self._metrics, arrived_s, len(choice.request.prompt_ids)) as meter:
                    last = await self._pump(choice, turn, text, meter, buffer)
                    meter.end(last.finish_reason)
                await buffer.put(last)
        except Exception as error:
            await buffer.put(error)

    async def _pump(
        self,
        choice: Choice,
        turn: "_Turn",
        text: ChoiceText,
        meter: AnswerMeter,
        buffer: "asyncio.Queue[Piece | Exception]",
    ) -> Piece:
        """Puts all pieces but the last, which is returned after the session has been closed."""
        async with continued(self._service.generate, choice.request, choice.record) as bursts:
            async for burst in bursts:
                turn.prompt_computed.set()
                piece = text.advance(burst)
                if not turn.is_first:
                    piece = replace(piece, num_cached_tokens=None)
                meter.burst(piece.num_tokens, is_replayed=piece.is_replayed)
                if piece.finish_reason:
                    if choice.record is not None:
                        choice.record.end()
                    return piece
                await buffer.put(piece)
        raise VerifierUnavailable(f"the answer to {choice.request.request_id} broke off")


async def _merged(buffer: "asyncio.Queue[Piece | Exception]", num_running: int) -> AsyncIterator[Piece]:
    while num_running:
        item = await buffer.get()
        if isinstance(item, Exception):
            raise item
        if item.finish_reason:
            num_running -= 1
        yield item
