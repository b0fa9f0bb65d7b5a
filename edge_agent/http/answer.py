"""The HTTP response of a generation request: streamed or whole, and cancelled when its client leaves."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge_agent.draft_only import DRAFT_ONLY
from edge_agent.http.choice_text import Piece
from edge_agent.http.choices import Choice, ChoiceRunner
from edge_agent.http.content_tokens import ContentTokens, ScoredToken
from edge_agent.http.delta import Delta, OutputParser, PlainOutput, joined
from edge_agent.http.disconnect import run_while_connected
from edge_agent.http.errors import describe
from edge_agent.http.event_stream import EventStream
from edge_agent.http.idempotency import REPLAYED_HEADER, Claim
from edge_agent.http.trace import trace_json
from edge_agent.http.writer import AnswerPart, AnswerTotals, AnswerWriter
from specedge.errors import SpecEdgeError

logger = logging.getLogger(__name__)

DEGRADED_HEADER: Final = "x-specedge-degraded"


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """A request that passed every check.

    Args:
        choices: the answers to generate, by index.
        num_prompt_tokens: tokens of all prompts together, each counted once.
        writer: how the endpoint writes answers.
        arrived_s: when the request arrived, by `time.perf_counter`.
        is_stream: events as they come, or everything at the end.
        claim: the request's to its answer; released when that has been sent, or nobody reads it any more.
        make_output: makes the parser of an answer's text.
        shows_tokens: a piece whose tokens have no text yet is shown as well.
        keep_alive_s: a stream that has nothing to send for so long sends a comment.
    """

    choices: Sequence[Choice]
    num_prompt_tokens: int
    writer: AnswerWriter
    arrived_s: float
    is_stream: bool
    claim: Claim
    make_output: Callable[[], OutputParser] = PlainOutput
    shows_tokens: bool = False
    keep_alive_s: float = 15.0

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head tells besides what every one tells."""
        replayed = {REPLAYED_HEADER: "true"} if self.claim.is_replay else {}
        return replayed | ({DEGRADED_HEADER: DRAFT_ONLY} if self.claim.model.is_draft_only else {})


class Answer(Response):
    """Generates while it is sent. An error before the first event is an ordinary error answer."""

    def __init__(self, plan: AnswerPlan, runner: ChoiceRunner) -> None:
        super().__init__()
        self._plan = plan
        self._writer = plan.writer
        self._runner = runner
        self._totals = AnswerTotals(plan.num_prompt_tokens, len(plan.choices))
        self._opened: set[int] = set()
        self._with_calls: set[int] = set()  # answers that have called tools
        self._outputs = [plan.make_output() for _ in plan.choices]
        self._content_tokens = [ContentTokens() for _ in plan.choices]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, for as long as somebody reads it; what it uses shows in the request's state as `totals`."""
        scope["state"]["totals"] = self._totals
        stream = EventStream(send, self._plan.headers)
        work = self._send_stream(stream) if self._plan.is_stream else self._send_whole(scope, receive, send)
        try:
            if not await run_while_connected(receive, work):
                logger.info("request %s: the client left; its generation is cancelled", scope["state"]["request_id"])
        finally:
            self._plan.claim.release()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: list[list[AnswerPart]] = [[] for _ in self._plan.choices]
        async with self._runner.run(self._plan.choices, self._plan.arrived_s) as pieces:
            async for piece in pieces:
                parts[piece.choice].append(self._take(piece))
        whole = self._writer.whole([_whole(part) for part in parts], self._totals)
        headers = self._totals.speculation.as_headers() | self._plan.headers
        self._plan.claim.release()  # before the client can know that it may ask again
        await JSONResponse(whole, headers=headers)(scope, receive, send)

    async def _send_stream(self, stream: EventStream) -> None:
        run = self._runner.run(self._plan.choices, self._plan.arrived_s)
        try:
            async with run as pieces, stream.kept_alive(self._plan.keep_alive_s):
                await self._send_pieces(pieces, stream)
        except Exception as error:
            if not stream.is_begun:
                raise
            if not isinstance(error, SpecEdgeError):
                logger.exception("a stream broke off")
            self._plan.claim.release()
            await stream.write(self._writer.failure(describe(error)), is_last=True)

    async def _send_pieces(self, pieces: AsyncIterator[Piece], stream: EventStream) -> None:
        async for piece in pieces:
            await stream.write(self._events(piece))
        self._plan.claim.release()  # before the client can know that it may ask again
        await stream.write(self._writer.end(self._totals), is_last=True)

    def _events(self, piece: Piece) -> bytes:
        """A piece as one write; with nothing new it shows only if it is its choice's last, or traced."""
        part = self._take(piece)
        events = b"" if self._opened else self._writer.begin(self._totals)
        if piece.choice not in self._opened:
            self._opened.add(piece.choice)
            events += self._writer.opening(piece.choice, self._totals)
        has_tokens = bool(part.token_ids) and self._plan.shows_tokens
        if part.output or part.finish_reason or has_tokens or part.trace is not None:
            events += self._writer.piece(piece.choice, part, self._totals)
        return events

    def _take(self, piece: Piece) -> AnswerPart:
        self._totals.count(piece)
        output, sorted_out = self._outputs[piece.choice], self._content_tokens[piece.choice]
        delta = Delta(content=piece.echo)
        content_tokens: list[ScoredToken] = []
        for index, text in enumerate(piece.texts):
            was_thinking = output.is_thinking
            said = output.feed(text)
            is_thought = was_thinking or output.is_thinking
            delta += said
            self._totals.num_reasoning_tokens += is_thought
            if piece.logprobs:
                token = ScoredToken(piece.token_ids[index], piece.logprobs[index])
                content_tokens += sorted_out.feed(token, said, is_thought=is_thought)
        if piece.finish_reason:
            said = output.end()
            delta += said
            content_tokens += sorted_out.end(said)
        if delta.tool_calls:
            self._with_calls.add(piece.choice)
        # An answer that ends by itself with tool calls asks for their results.
        is_call = piece.finish_reason == "stop" and piece.choice in self._with_calls
        finish_reason = "tool_calls" if is_call else piece.finish_reason
        trace = trace_json(piece, self._runner.spell)
        return AnswerPart(
            delta,
            finish_reason,
            piece.stop_reason,
            piece.token_ids,
            piece.logprobs,
            piece.prompt,
            trace,
            tuple(content_tokens),
        )


def _whole(parts: Sequence[AnswerPart]) -> AnswerPart:
    """One choice's parts in one."""
    return replace(
        parts[-1],
        output=joined(part.output for part in parts),
        token_ids=tuple(chain.from_iterable(part.token_ids for part in parts)),
        logprobs=tuple(chain.from_iterable(part.logprobs for part in parts)),
        content_tokens=tuple(chain.from_iterable(part.content_tokens for part in parts)),
        prompt=parts[0].prompt,
    )
