"""Real verifier and edge processes on loopback, each edge behind a proxy of its own that makes its way longer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks.delay_proxy import DelayProxy
from specedge.errors import SpecEdgeError
from specedge_bench.pace.pace import Pace
from specedge_cli.ports import free_port
from specedge_cli.probe import probe
from specedge_cli.supervisor import Child, Interrupts, specedge_command

HOST = "127.0.0.1"
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One edge and the verifier it talks to.

    Attributes:
        mode: `proactive.type` of the edge.
        batch_type: of the verifier.
        max_budget: nodes of a tree.
    """

    mode: str
    batch_type: str
    max_budget: int = 32


@dataclass(frozen=True, slots=True)
class Edge:
    """A running edge process."""

    variant: Variant
    url: str
    proxy: DelayProxy
    verifier_metrics_url: str


@contextlib.asynccontextmanager
async def deployed(
    pace: Pace | None, variants: Sequence[Variant], interrupts: Interrupts
) -> AsyncIterator[dict[Variant, Edge]]:
    """Starts one verifier for each batch type and one edge for each variant; all are stopped at the end.

    Args:
        pace: of all forwards; None leaves them as this machine makes them.
        variants: the edges.
        interrupts: of the user.

    Raises:
        SpecEdgeError: a process ended, or was not ready in time.
    """
    children: list[Child] = []
    proxies: list[DelayProxy] = []
    ready: list[tuple[Child, str]] = []

    def start(name: str, arguments: list[str], address: str) -> None:
        arguments = [*arguments, "--host", HOST, "--num-threads", "1"]
        child = Child(name, specedge_command(arguments) if pace is None else pace.command(arguments))
        children.append(child)
        ready.append((child, address))

    try:
        verifiers: dict[str, tuple[int, int]] = {}
        for batch_type in dict.fromkeys(variant.batch_type for variant in variants):
            port, metrics_port = free_port(HOST), free_port(HOST)
            verifiers[batch_type] = port, metrics_port
            ports = ["--port", str(port), "--metrics-port", str(metrics_port)]
            start(f"verifier {batch_type}", ["verifier", *ports, "--batch-type", batch_type], f"{HOST}:{port}")
        edges: dict[Variant, Edge] = {}
        for variant in variants:
            verifier_port, metrics_port = verifiers[variant.batch_type]
            proxy = DelayProxy(verifier_port)
            proxies.append(proxy)
            proxy_port, port = await proxy.start(), free_port(HOST)
            url = f"http://{HOST}:{port}"
            edges[variant] = Edge(variant, url, proxy, f"http://{HOST}:{metrics_port}/metrics")
            arguments = ["edge", "--port", str(port), "--verifier-address", f"{HOST}:{proxy_port}"]
            growth = ["--proactive.type", variant.mode, "--max-budget", str(variant.max_budget)]
            start(f"edge {variant.mode} {variant.batch_type}", [*arguments, *growth], url)
        await _wait_until_ready(ready, interrupts)
        yield edges
    finally:
        for child in reversed(children):
            child.stop(STOP_TIMEOUT_S, interrupts)
        for proxy in proxies:
            await proxy.stop()


async def _wait_until_ready(children: list[tuple[Child, str]], interrupts: Interrupts) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + READY_TIMEOUT_S
    for child, address in children:
        while await asyncio.to_thread(probe, address, 1.0) is not None:
            if child.exit_code() is not None or loop.time() > give_up_at or interrupts.count:
                tail = "\n".join(child.last_lines(20))
                raise SpecEdgeError(f"the {child.name} did not become ready; its last lines:\n{tail}")
            await asyncio.sleep(0.2)
