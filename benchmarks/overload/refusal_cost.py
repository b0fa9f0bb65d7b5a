"""What a refusal costs the edge's event loop, in microseconds of processor time.

    python -m benchmarks.overload.refusal_cost

Real HTTP on a loopback connection, in front of a service that refuses everything. "read" is a request that is parsed,
tokenised and then refused, "unread" one that meets a known refusal. The client is a process of its own.
"""

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from statistics import median

from benchmarks.overload.user import Question, Users
from edge_agent.generation import Burst, GenerationRequest
from edge_agent.http.app import create_app
from edge_agent.http.server import http_server
from edge_agent.http.settings import HttpSettings
from edge_agent.metrics import EdgeMetrics
from specedge.errors import CapacityExceeded
from specedge.logs import start_logging
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.tokenizer import load_tokenizer
from specedge.wire.messages import ServerInfo
from specedge_cli.ports import free_port

HOST = "127.0.0.1"
_FULL = CapacityExceeded("264 sessions are running or waiting, the limit is 264", 3.7)
_ROUNDS = 5


class FullService:
    """Refuses every request, once it knows all of it."""

    is_ready = True
    failure: str | None = None
    verifiers: Sequence[tuple[str, str, str | None]] = ()
    info = ServerInfo("target", "", 1 << 20, 4096, 0, (), 8, "")

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Burst]]:
        """Refuses."""
        raise _FULL
        yield  # an asynchronous generator it is


def main(arguments: list[str]) -> int:
    """Prints the costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload.refusal_cost", allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=300, help="of each kind, in each of five rounds")
    parser.add_argument("--profile", action="store_true", help="show where the time of unread ones goes")
    options = parser.parse_args(arguments)
    start_logging("info")
    costs = asyncio.run(_measure(options.requests, options.profile))
    for kind, each in costs.items():
        print(f"{kind}: {median(each):.0f} us per refusal (rounds: {', '.join(f'{one:.0f}' for one in each)})")
    return 0


async def _measure(num_requests: int, is_profiled: bool) -> dict[str, list[float]]:
    tokenizer = load_tokenizer(resolve_model(EMBEDDED_NAME, "target"))
    settings = HttpSettings(model_name="target")
    apps = {
        "read": create_app(FullService(), tokenizer, settings, EdgeMetrics()),
        "unread": create_app(FullService(), tokenizer, settings, EdgeMetrics(), refusal=lambda: _FULL),
    }
    costs: dict[str, list[float]] = {kind: [] for kind in apps}
    profile = cProfile.Profile()
    for _ in range(_ROUNDS):
        for kind, app in apps.items():
            port = free_port(HOST)
            server = http_server(app, 1.0, port)
            serving = asyncio.create_task(server.serve())
            await _until(lambda: server.started)  # noqa: B023 - awaited at once
            context = get_context("spawn")
            ready, go = context.Event(), context.Event()
            client = context.Process(target=_send, args=(port, num_requests, ready, go))
            client.start()
            await _until(ready.is_set)
            before_s = time.thread_time()
            if is_profiled and kind == "unread":
                profile.enable()
            go.set()
            await _until(lambda: not client.is_alive())  # noqa: B023 - awaited at once
            profile.disable()
            costs[kind].append(1e6 * (time.thread_time() - before_s) / num_requests)
            server.should_exit = True
            await serving
    if is_profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    return costs


async def _until(is_done: Callable[[], bool]) -> None:
    while not is_done():  # noqa: ASYNC110 - of another process, and of uvicorn
        await asyncio.sleep(0.05)


def _send(port: int, num_requests: int, ready: Event, go: Event) -> None:
    users = Users(f"http://{HOST}:{port}", Question())

    async def send() -> None:
        await users.ask()  # the first one builds what later ones find
        ready.set()
        go.wait()
        for _ in range(num_requests):
            outcome = await users.ask()
            assert outcome.status == 503 and outcome.retry_after_s == 4.0, outcome

    asyncio.run(send())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
