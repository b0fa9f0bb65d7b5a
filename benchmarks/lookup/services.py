"""The embedded pair behind real services: tokens per verification and tokens per second of each way to draft.

Its target is far smaller than any that is served, so by default forwards are stretched to what a large target takes on
a data-centre GPU and a draft model on a consumer's.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.start_up import HOST, edge_is_ready, until, verifier_serves
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy import NetworkProxy
from specedge_bench.pace.pace import Pace
from specedge_cli.ports import free_port

WAYS = ("plain", "lookup", "model", "both")
NETWORKS = (NetworkProfile("loopback", 0.0), NetworkProfile("40 ms", 40.0))
_EDGES: Mapping[str, Sequence[str]] = {
    "lookup": ("--draft-model", "none"),
    "model": ("--lookup", "off"),
    "both": ("--lookup", "on"),
}
_MAX_TOKENS = 64
_TIMEOUT_S = 120.0
PROMPTS = (
    "Tell me a story about a duckling who is afraid of puddles.",
    "Tell me a tale about a fox who wanted to learn to swim.",
    "Tell me a story about two mice and a very long ladder.",
)


@dataclass(slots=True)
class Total:
    """What some answers took."""

    num_tokens: int = 0
    num_verifications: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Measured:
    """All totals, by (network, workload, way), and how many answers differed from plain decoding's."""

    totals: dict[tuple[str, str, str], Total] = field(default_factory=dict)
    num_answers: int = 0
    num_different: int = 0

    def add(self, key: tuple[str, str, str], total: Total) -> None:
        """Takes an answer into account."""
        into = self.totals.setdefault(key, Total())
        into.num_tokens += total.num_tokens
        into.num_verifications += total.num_verifications
        into.seconds += total.seconds


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one kind.

    Attributes:
        name: in the table.
        temperature: of all.
        predict: makes the prediction from the right answer and another one; None: without.
    """

    name: str
    temperature: float
    predict: Any = None


def nearly(answer: str, other: str) -> str:
    """Every tenth word exchanged for another."""
    words = answer.split(" ")
    return " ".join("Marigold" if index % 10 == 4 else word for index, word in enumerate(words))


WORKLOADS = (
    Workload("a tale, T 0.7", 0.7),
    Workload("a tale, T 0 (repeats itself)", 0.0),
    Workload("prediction: the answer", 0.7, lambda answer, other: answer),
    Workload("prediction: one word in ten differs", 0.7, nearly),
    Workload("prediction: another tale", 0.7, lambda answer, other: other),
)


async def measure(num_rounds: int, pace: Pace | None) -> Measured:
    """Every workload over every network, the ways by turns; a first round warms up and is not counted."""
    verifier_port = free_port(HOST)
    ports = {way: free_port(HOST) for way in _EDGES}
    with ExitStack() as stack:
        own = ["--host", HOST, "--port", str(verifier_port), "--metrics-port", "off", "--num-threads", "1"]
        verifier = stack.enter_context(_started(["verifier", *own], pace))
        await asyncio.to_thread(until, verifier_serves(verifier_port), verifier)
        proxy = NetworkProxy(verifier_port, NETWORKS[0])
        proxy_port = await proxy.start()
        for way, flags in _EDGES.items():
            own = ["--host", HOST, "--port", str(ports[way]), "--verifier-address", f"{HOST}:{proxy_port}"]
            own += ["--metrics-port", "off", "--public-metrics", "true", "--num-threads", "1"]
            edge = stack.enter_context(_started(["edge", *own, *flags], pace))
            await asyncio.to_thread(until, edge_is_ready(ports[way]), edge)
        measured = Measured()
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            urls = {way: f"http://{HOST}:{ports.get(way, ports['lookup'])}" for way in WAYS}
            await _round(client, urls, NETWORKS[0].name, 0, Measured())
            for network in NETWORKS:
                proxy.profile = network
                for index in range(num_rounds):
                    await _round(client, urls, network.name, index + 1, measured)
        await proxy.stop()
    return measured


@contextmanager
def _started(arguments: Sequence[str], pace: Pace | None) -> Iterator[subprocess.Popen[bytes]]:
    """A service, paced or not, ended with the block."""
    command = [sys.executable, "-m", "specedge_cli", *arguments] if pace is None else pace.command(arguments)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def _round(
    client: httpx.AsyncClient, urls: Mapping[str, str], network: str, index: int, measured: Measured
) -> None:
    """All prompts of all workloads, once each way; plain decoding has no use for a prediction."""
    plain: dict[tuple[float, int], tuple[str, Total]] = {}
    for temperature in {workload.temperature for workload in WORKLOADS}:
        for number in range(len(PROMPTS)):
            body = _body(number, index, temperature) | {"speculation": {"enabled": False}}
            plain[temperature, number] = await _ask(client, urls["plain"], body)
    for workload in WORKLOADS:
        for number in range(len(PROMPTS)):
            answer, plain_total = plain[workload.temperature, number]
            body = _body(number, index, workload.temperature)
            if workload.predict is not None:
                other = plain[workload.temperature, (number + 1) % len(PROMPTS)][0]
                body["prediction"] = {"type": "content", "content": workload.predict(answer, other)}
            measured.add((network, workload.name, "plain"), plain_total)
            for way in _EDGES:
                text, total = await _ask(client, urls[way], body)
                measured.add((network, workload.name, way), total)
                measured.num_answers += 1
                measured.num_different += text != answer


def _body(number: int, index: int, temperature: float) -> dict[str, Any]:
    return {
        "model": "",
        "messages": [{"role": "user", "content": PROMPTS[number]}],
        "temperature": temperature,
        "seed": 100 * index + number,
        "max_tokens": _MAX_TOKENS,
        "ignore_eos": True,
    }


async def _ask(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> tuple[str, Total]:
    before = await _num_bursts(client, url)
    began_s = time.perf_counter()
    response = await client.post(f"{url}/v1/chat/completions", json=body)
    seconds = time.perf_counter() - began_s
    response.raise_for_status()
    answer = response.json()
    num_bursts = await _num_bursts(client, url) - before
    return answer["choices"][0]["message"]["content"], Total(answer["usage"]["completion_tokens"], num_bursts, seconds)


async def _num_bursts(client: httpx.AsyncClient, url: str) -> int:
    """Verdicts that the edge has had: a first one of each answer, and those after it."""
    names = ("specedge_edge_time_to_first_token_seconds_count", "specedge_edge_inter_burst_seconds_count")
    lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.split(" ")[0] in names)
