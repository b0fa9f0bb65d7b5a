"""The HTTP response of a generation request: streamed or whole, and cancelled when its client leaves."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge_agent.http.choice_text import Piece
from edge_agent.http.choices import Choice, ChoiceRunner
from edge_agent.http.delta import Delta, OutputParser, PlainOutput, joined
from edge_agent.http.disconnect import run_while_connected
from edge_agent.http.errors import describe
from edge_agent.http.shapes import AnswerShape, Json, Usage, WholeChoice
from edge_agent.http.speculation import SpeculationSummary
from specedge.errors import SpecEdgeError

logger = logging.getLogger(__name__)

_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """A request that passed every check.

    Args:
        choices: the answers to generate, by index.
        num_prompt_tokens: tokens of all prompts together, each counted once.
        shape: how the endpoint writes answers.
        arrived_s: when the request arrived, by `time.perf_counter`.
        is_stream: chunks as they come, or everything at the end.
        include_usage: a stream ends with a chunk of usage.
        continuous_usage: every chunk of a stream has the usage so far.
        make_output: makes the parser of an answer's text.
    """

    choices: Sequence[Choice]
    num_prompt_tokens: int
    shape: AnswerShape
    arrived_s: float
    is_stream: bool
    include_usage: bool = False
    continuous_usage: bool = False
    make_output: Callable[[], OutputParser] = PlainOutput


class Answer(Response):
    """Generates while it is sent. An error before the first token is an ordinary error answer."""

    def __init__(self, plan: AnswerPlan, runner: ChoiceRunner) -> None:
        super().__init__()
        self._plan = plan
        self._runner = runner
        self._usage = Usage(plan.num_prompt_tokens)
        self._speculation = SpeculationSummary()
        self._with_calls: set[int] = set()  # answers that have called tools
        self._outputs = [plan.make_output() for _ in plan.choices]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, for as long as somebody reads it."""
        work = self._send_stream(send) if self._plan.is_stream else self._send_whole(scope, receive, send)
        if not await run_while_connected(receive, work):
            logger.info("request %s: the client left; its generation is cancelled", scope["state"]["request_id"])

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        deltas: list[list[Delta]] = [[] for _ in self._plan.choices]
        finish_reasons = ["" for _ in self._plan.choices]
        async with self._runner.run(self._plan.choices, self._plan.arrived_s) as pieces:
            async for piece in pieces:
                self._count(piece)
                deltas[piece.choice].append(self._delta(piece))
                finish_reasons[piece.choice] = self._finish_reason(piece)
        choices = [WholeChoice(joined(parts), why) for parts, why in zip(deltas, finish_reasons, strict=True)]
        body = self._plan.shape.whole(choices) | {"usage": self._usage.as_json()} | self._metrics()
        await JSONResponse(body)(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        async with self._runner.run(self._plan.choices, self._plan.arrived_s) as pieces:
            first = await anext(pieces)
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            try:
                await self._send_pieces(first, pieces, send)
            except Exception as error:
                if not isinstance(error, SpecEdgeError):
                    logger.exception("a stream broke off")
                await _send_frames(send, _event(describe(error).body))
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def _send_pieces(self, first: Piece, rest: AsyncIterator[Piece], send: Send) -> None:
        is_open = [False for _ in self._plan.choices]
        await self._send_piece(first, is_open, send)
        async for piece in rest:
            await self._send_piece(piece, is_open, send)
        if self._plan.include_usage:
            chunk = self._plan.shape.usage_chunk() | {"usage": self._usage.as_json()} | self._metrics()
            await _send_frames(send, _event(chunk))

    async def _send_piece(self, piece: Piece, is_open: list[bool], send: Send) -> None:
        """A piece as one write; with nothing new it has a chunk only if it is its answer's last."""
        self._count(piece)
        delta = self._delta(piece)
        chunks = []
        if not is_open[piece.choice]:
            is_open[piece.choice] = True
            opening = self._plan.shape.opening(piece.choice)
            chunks += [] if opening is None else [opening]
        if delta or piece.finish_reason:
            chunks.append(self._plan.shape.chunk(piece.choice, delta, self._finish_reason(piece)))
        if chunks:
            await _send_frames(send, *(_event(chunk | self._running_usage()) for chunk in chunks))

    def _delta(self, piece: Piece) -> Delta:
        output = self._outputs[piece.choice]
        delta = output.feed(piece.text)
        if piece.finish_reason:
            delta += output.end()
        if delta.tool_calls:
            self._with_calls.add(piece.choice)
        return delta

    def _finish_reason(self, piece: Piece) -> str:
        """Why an answer ended, as clients are told it: one that ends by itself with tool calls asks for results."""
        is_call = piece.finish_reason == "stop" and piece.choice in self._with_calls
        return "tool_calls" if is_call else piece.finish_reason

    def _count(self, piece: Piece) -> None:
        self._usage.num_completion_tokens += piece.num_tokens
        if piece.num_cached_tokens is not None and len(self._plan.choices) == 1:
            self._usage.num_cached_tokens = piece.num_cached_tokens
        self._speculation.add(piece)

    def _running_usage(self) -> Json:
        if self._plan.continuous_usage:
            return {"usage": self._usage.as_json()}
        return {"usage": None} if self._plan.include_usage else {}

    def _metrics(self) -> Json:
        """Of single answers only: a mean over several would describe none of them."""
        summary = self._speculation.as_json() if len(self._plan.choices) == 1 else None
        return {} if summary is None else {"metrics": {"speculative_decoding": summary}}


def _event(data: Json) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _send_frames(send: Send, *frames: bytes) -> None:
    await send({"type": "http.response.body", "body": b"".join(frames), "more_body": True})
