"""What hostile clients do to a live verifier and a live edge, and what they may get for it."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import grpc
import httpx
from fuzz import grpc_messages, http_bodies
from fuzz.inputs import Case, Input, Post, Stream, line_of
from processes import Edge, Service

from specedge.verification.v1 import verification_pb2 as pb

METHOD = "/specedge.verification.v1.VerificationService/Generate"
NUM_AT_ONCE = 8
TIMEOUT_S = 60.0
ENDED_WHILE_SENDING = "ended while we sent"
_ENDED_DETAILS = "Internal error from Core"
"""What gRPC's client makes of the status of a stream that ends while the client writes: the status itself is lost."""
NUM_STREAMS = 20
"""Of one connection: grpc.aio keeps a call whose status it has lost, and it counts against those at a time."""
NUM_READ = 3
"""Responses of a stream that are waited for; then it is cancelled, as by a user who goes away."""
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
HARMLESS = {"OK", "left", ENDED_WHILE_SENDING, *(code.name for code in REFUSALS)}
STATUSES = {200, 400, 404, 413, 415, 422, 429, 503}

Show = Callable[[int], None]


@dataclass(slots=True)
class Tally:
    """What came of an attack.

    Attributes:
        num_sent: messages or bodies.
        outcomes: how often each status came.
        broken: what no input may cause, and the input.
        latest: what was sent last: after a crash, which ends the attack, the cause is among it.
    """

    num_sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, Input]] = field(default_factory=list)
    latest: deque[Input] = field(default_factory=lambda: deque(maxlen=4 * NUM_AT_ONCE))


async def attack_verifier(
    verifier: Service, fingerprint: str, num_messages: int, draw: Random, goes_on: Callable[[], bool], show: Show
) -> Tally:
    """Send so many messages on streams of a few each.

    Args:
        verifier: it runs.
        fingerprint: of its tokenizer.
        num_messages: in all.
        draw: decides what is sent.
        goes_on: whether what is attacked still runs.
        show: is told how many more were sent.
    """
    tally = Tally()

    async def one() -> None:
        async with channel_to(verifier) as channel:
            generate: Any = channel.stream_stream(METHOD)
            for _ in range(NUM_STREAMS):
                stream = grpc_messages.stream(draw, fingerprint)
                await send_stream(generate, stream, tally)
                show(len(stream.requests))
                if not goes_on():
                    return

    await _side_by_side(lambda: tally.num_sent < num_messages and goes_on(), one)
    return tally


def channel_to(verifier: Service) -> grpc.aio.Channel:
    """A connection that no other channel shares."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(verifier.address, options=options)


async def send_stream(generate: Callable[[], Any], sent: Stream, tally: Tally, num_responses: float = NUM_READ) -> str:
    """One stream: all is sent at once, so many responses are read, then the stream is left; returns how it ended."""
    tally.latest.append(sent)
    tally.num_sent += len(sent.requests)
    call = generate()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            outcome = await _outcome(call, sent, num_responses)
    except TimeoutError:
        outcome = f"no answer within {TIMEOUT_S:g} s"
        call.cancel()
    tally.outcomes[outcome.partition(":")[0]] += 1
    if outcome not in HARMLESS:
        tally.broken.append((outcome, sent))
    return outcome


async def _outcome(call: Any, sent: Stream, num_responses: float) -> str:
    """How a stream ends: HARMLESS, or a status with its details."""
    try:
        for request in sent.requests:
            await call.write(request)
        if sent.closes:
            await call.done_writing()
        while num_responses and (response := await call.read()) is not grpc.aio.EOF:
            num_responses -= 1
            if pb.GenerateResponse.FromString(response).verdict.finish_reason:
                await call.done_writing()
        if not num_responses:
            call.cancel()
        code = await call.code()
        if call.cancelled():
            return "left"
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        code = await call.code()
    details = await call.details() or ""
    if code is grpc.StatusCode.INTERNAL and details.startswith(_ENDED_DETAILS):
        return ENDED_WHILE_SENDING
    return code.name if code.name in HARMLESS else f"{code.name}: {details}"


async def attack_edge(edge: Edge, num_bodies: int, draw: Random, goes_on: Callable[[], bool], show: Show) -> Tally:
    """Send so many bodies to an edge; else as `attack_verifier`."""
    tally = Tally()
    async with _client_of(edge) as client:

        async def one() -> None:
            await send_body(client, http_bodies.post(draw), tally)
            show(1)

        await _side_by_side(lambda: tally.num_sent < num_bodies and goes_on(), one)
    return tally


async def send_body(client: httpx.AsyncClient, post: Post, tally: Tally) -> str:
    """One request, and what its answer must be: a documented status, and JSON or events without an error of ours."""
    tally.latest.append(post)
    tally.num_sent += 1
    try:
        response = await client.post(post.path, content=post.content, headers={"content-type": post.content_type})
        outcome, problem = str(response.status_code), _problem(response)
    except httpx.HTTPError as error:
        outcome, problem = type(error).__name__, repr(error)
    tally.outcomes[outcome] += 1
    if problem is not None:
        tally.broken.append((problem, post))
    return outcome


async def replay(verifier: Service, edge: Edge, cases: Iterable[Case]) -> tuple[Tally, Tally]:
    """Send each input again, one after the other; one whose outcome is known is read to its end."""
    tallies = Tally(), Tally()
    async with _client_of(edge) as client:
        for case in cases:
            tally = tallies[isinstance(case.sent, Post)]
            if isinstance(case.sent, Post):
                outcome = await send_body(client, case.sent, tally)
            else:
                async with channel_to(verifier) as channel:
                    num_responses = inf if case.outcome else NUM_READ
                    outcome = await send_stream(channel.stream_stream(METHOD), case.sent, tally, num_responses)
            if case.outcome and outcome not in (case.outcome, ENDED_WHILE_SENDING):
                tally.broken.append((f"{case.name}: {outcome} in place of {case.outcome}", case.sent))
    return tallies


def told(broken: Iterable[tuple[str, Input]]) -> list[str]:
    """What broke, each with its input."""
    return [f"{problem}: {line_of(sent)}" for problem, sent in broken]


def _client_of(edge: Edge) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=NUM_AT_ONCE)
    return httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=TIMEOUT_S, limits=limits)


def _problem(response: httpx.Response) -> str | None:
    if response.status_code not in STATUSES:
        return f"status {response.status_code}: {response.text[:200]}"
    if response.headers["content-type"].startswith("text/event-stream"):
        return f"events {response.text[-300:]}" if '"error":{' in response.text else None
    body = response.json()
    if response.status_code != 200 and not body["error"]["message"]:
        return f"an error that says nothing: {response.text[:200]}"
    return None


async def _side_by_side(is_needed: Callable[[], bool], one: Callable[[], Awaitable[None]]) -> None:
    async def work() -> None:
        while is_needed():
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(NUM_AT_ONCE):
            group.create_task(work())
