"""What hostile clients do to a live verifier and a live edge, and what they may get for it."""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import httpx
from fuzz import grpc_messages, http_bodies

METHOD = "/specedge.verification.v1.VerificationService/Generate"
NUM_AT_ONCE = 8
TIMEOUT_S = 60.0
ENDED_WHILE_SENDING = "Internal error from Core"
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
HARMLESS = {"OK", "left", "ended while we sent", *(code.name for code in REFUSALS)}
STATUSES = {200, 400, 404, 413, 415, 422, 429, 503}

Show = Callable[[int], None]


@dataclass(slots=True)
class Tally:
    """What came of an attack.

    Attributes:
        num_sent: messages or bodies.
        outcomes: how often each status came.
        broken: what no input may cause, with the input, in JSON.
        latest: what was sent last, in JSON: after a crash the cause is among it.
    """

    num_sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=4 * NUM_AT_ONCE))


async def attack_verifier(
    address: str, fingerprint: str, num_messages: int, draw: Random, show: Show = lambda _: None
) -> Tally:
    """Send so many messages on streams of a few each.

    Args:
        address: of the verifier, host:port.
        fingerprint: of its tokenizer.
        num_messages: in all.
        draw: decides what is sent.
        show: is told how many more were sent.
    """
    tally = Tally()
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

    async def one() -> None:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            generate: Any = channel.stream_stream(METHOD)
            for _ in range(NUM_STREAMS):
                requests = grpc_messages.stream(draw, fingerprint)
                await send_stream(generate, requests, tally)
                show(len(requests))

    await _side_by_side(lambda: tally.num_sent < num_messages, one)
    return tally


async def send_stream(generate: Callable[[], Any], requests: list[bytes], tally: Tally) -> None:
    """One stream: everything is sent at once, some responses are read, and the stream is left."""
    sent = json.dumps({"grpc": [request.hex() for request in requests]})
    tally.latest.append(sent)
    tally.num_sent += len(requests)
    call = generate()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            outcome = await _outcome(call, requests)
    except TimeoutError:
        outcome = f"no answer within {TIMEOUT_S:g} s"
        call.cancel()
    tally.outcomes[outcome.partition(":")[0]] += 1
    if outcome not in HARMLESS:
        tally.broken.append(f"{outcome}: {sent}")


async def _outcome(call: Any, requests: list[bytes]) -> str:
    """How a stream ends: HARMLESS, or a status with its details."""
    try:
        for request in requests:
            await call.write(request)
        await call.done_writing()
        for _ in range(NUM_READ):
            if await call.read() is grpc.aio.EOF:
                break
        else:
            call.cancel()
        return "left" if call.cancelled() else str((await call.code()).name)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.INTERNAL and details.startswith(ENDED_WHILE_SENDING):
        return "ended while we sent"
    return code.name if code in REFUSALS else f"{code.name}: {details}"


async def attack_edge(url: str, num_bodies: int, draw: Random, show: Show = lambda _: None) -> Tally:
    """Send so many bodies to an edge at `url`; else as `attack_verifier`."""
    tally = Tally()
    limits = httpx.Limits(max_connections=NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S, limits=limits) as client:

        async def one() -> None:
            await send_body(client, http_bodies.post(draw), tally)
            show(1)

        await _side_by_side(lambda: tally.num_sent < num_bodies, one)
    return tally


async def send_body(client: httpx.AsyncClient, post: http_bodies.Post, tally: Tally) -> None:
    """One request, and what its answer must be: a documented status, and JSON or events without an error of ours."""
    sent = json.dumps({"path": post.path, "type": post.content_type, "content": post.content.hex()})
    tally.latest.append(sent)
    tally.num_sent += 1
    try:
        response = await client.post(post.path, content=post.content, headers={"content-type": post.content_type})
    except httpx.HTTPError as error:
        tally.outcomes[type(error).__name__] += 1
        tally.broken.append(f"{error!r}: {sent}")
        return
    tally.outcomes[str(response.status_code)] += 1
    if (problem := _problem(response)) is not None:
        tally.broken.append(f"{problem}: {sent}")


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
