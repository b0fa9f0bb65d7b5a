"""Real `specedge` processes on loopback: started, watched until they are ready, measured, and ended by signal."""

import asyncio
import inspect
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from specedge.tls.diagnosis import ClientTls
from specedge_cli.ports import is_free
from specedge_cli.probe import probe
from specedge_cli.supervisor import specedge_command

HOST = "127.0.0.1"
READY_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 60.0
POLL_S = 0.05


def quiet_port() -> int:
    """A free port that no system hands out by itself, so that a service can have it again after a restart."""
    draw = random.SystemRandom()
    while not is_free(HOST, port := draw.randrange(20_000, 32_000)):
        pass
    return port


class Service:
    """One `specedge` process; after its end it can be started again at the same address.

    Args:
        arguments: the command and its flags.
        address: where `specedge_cli.probe` asks whether it is ready.
        metrics_url: where it shows its metrics.
        log: file that takes what it prints.
        tls: how it is asked; None is plain text.
    """

    command = staticmethod(specedge_command)

    def __init__(
        self, arguments: Sequence[str], address: str, metrics_url: str, log: Path, tls: ClientTls | None = None
    ) -> None:
        self.address = address
        self.tls = tls
        self.metrics_url = metrics_url
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        """The process as the system sees it."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def children(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return self.process.children(recursive=True)

    @property
    def rss_bytes(self) -> int:
        """Memory that the process holds."""
        size: int = self.process.memory_info().rss
        return size

    def log(self) -> str:
        """What it has printed, over all its starts."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Starts the process; call it on the main thread, with which the process ends if all else fails."""
        assert not self.is_running
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECEDGE_")}
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Blocks until it serves."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (reason := probe(self.address, 2.0, self.tls)) is not None:
            assert self.is_running, f"{self._arguments[0]} ended: {self.log()}"
            assert time.monotonic() < deadline, f"{self._arguments[0]}: {reason}: {self.log()}"
            time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to this process."""
        assert self._process is not None
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Blocks until the process has ended."""
        assert self._process is not None
        return self._process.wait(EXIT_TIMEOUT_S)

    def destroy(self) -> None:
        """Leaves nothing running, whatever has happened before."""
        if self.is_running:
            self.signal(signal.SIGKILL)
            self.exit_code()

    async def sample(self, name: str, **labels: str) -> float:
        """The present value of a metric."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            text = (await client.get(self.metrics_url)).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"{self.metrics_url} has no {name} {labels}")


class Verifier(Service):
    """A verifier with the embedded target."""

    def __init__(self, folder: Path, *flags: str) -> None:
        port, metrics_port = quiet_port(), quiet_port()
        arguments = ["verifier", "--port", str(port), "--metrics-port", str(metrics_port), "--num-threads", "1", *flags]
        self.num_blocks = int(flags[flags.index("--num-kv-blocks") + 1])
        super().__init__(arguments, f"{HOST}:{port}", f"http://{HOST}:{metrics_port}/metrics", folder / "verifier.log")

    async def num_held(self) -> int:
        """KV blocks that are not free."""
        return self.num_blocks - int(await self.sample("specedge_verifier_kv_blocks", state="free"))


class Edge(Service):
    """An edge agent of a verifier, or of what stands before some, with the embedded draft model."""

    def __init__(self, folder: Path, name: str, verifier: Service, *flags: str) -> None:
        port = quiet_port()
        self.url = f"http://{HOST}:{port}"
        self.num_slots = int(flags[flags.index("--num-draft-slots") + 1]) if "--num-draft-slots" in flags else 0
        where = ["--port", str(port), "--metrics-port", "off", "--public-metrics", "true"]
        arguments = ["edge", *where, "--verifier-address", verifier.address, "--num-threads", "1", *flags]
        super().__init__(arguments, self.url, f"{self.url}/metrics", folder / f"{name}.log")

    async def num_held(self) -> int:
        """KV slots of the draft model that are not free."""
        if not self.num_slots:
            return 0
        return self.num_slots - int(await self.sample("specedge_edge_draft_kv_slots", state="free"))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """An official client, typed as anything: its overloads know only OpenAI's own fields."""
        plain = openai.DefaultAsyncHttpxClient(trust_env=False)
        url = f"{self.url}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key="x", max_retries=0, timeout=120, http_client=plain
        ) as client:
            yield client

    async def verifier_states(self) -> list[str]:
        """How it sees its verifiers."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            return [found["state"] for found in (await client.get(f"{self.url}/ready")).json()["verifiers"]]

    async def answers(
        self, asks: "Sequence[Ask]", on_begun: Callable[[], object] = lambda: None, num_pieces: int = 10
    ) -> list[str]:
        """The texts of answers that are streamed side by side.

        Args:
            asks: what they answer.
            on_begun: called, and awaited if it can be, when the first answer has `num_pieces` pieces.
            num_pieces: of an answer that has begun.
        """
        has_begun = False

        async def one(ask: Ask, client: Any) -> str:
            nonlocal has_begun
            pieces: list[str] = []
            async for piece in ask.pieces(client):
                pieces.append(piece)
                if len(pieces) == num_pieces and not has_begun:
                    has_begun = True
                    if inspect.isawaitable(waiting := on_begun()):
                        await waiting
            return "".join(pieces)

        async with self.client() as client:
            return await asyncio.gather(*(one(ask, client) for ask in asks))


@contextmanager
def running(*services: Service) -> Iterator[None]:
    """Starts services side by side, and ends them as an operator does: an orderly end has exit code 0."""
    try:
        for service in services:
            service.start()
        for service in services:
            service.wait_ready()
        yield
        left = [service for service in services if service.is_running]
        for service in left:
            service.signal(signal.SIGTERM)
        codes = [service.exit_code() for service in left]
        assert not any(codes), f"exit codes {codes}: {[service.log() for service in left]}"
    finally:
        for service in services:
            service.destroy()


async def nothing_held(*services: Verifier | Edge, timeout_s: float = 20.0) -> None:
    """Waits until no session holds anything on either side."""
    held: dict[str, int] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while not held or any(held.values()):
                held = {service.address: await service.num_held() for service in services}
    except TimeoutError:
        raise AssertionError(f"still held after {timeout_s:g} s: {held}") from None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for an answer to a chat or, with `is_chat` false, for the continuation of a text."""

    prompt: str
    seed: int
    max_tokens: int
    temperature: float = 1.0
    is_chat: bool = False

    def body(self, **fields: Any) -> dict[str, Any]:
        """The JSON body; the answer has all its tokens whatever the model would like."""
        own = {"messages": [{"role": "user", "content": self.prompt}]} if self.is_chat else {"prompt": self.prompt}
        return {
            "model": "specedge-demo",
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": True,
            **own,
            **fields,
        }

    async def send(self, client: Any, **fields: Any) -> Any:
        """What the official client returns: an answer, or with `stream=True` a stream of chunks."""
        body = self.body(**fields)
        extra = {name: body.pop(name) for name in ("ignore_eos", "speculation", "return_token_ids") if name in body}
        endpoint = client.chat.completions if self.is_chat else client.completions
        return await endpoint.create(**body, extra_body=extra)

    async def whole(self, client: Any, **fields: Any) -> str:
        """The text of a whole answer."""
        choice = (await self.send(client, **fields)).choices[0]
        assert choice.finish_reason == "length"
        text: str = choice.message.content if self.is_chat else choice.text
        return text

    async def pieces(self, client: Any, **fields: Any) -> AsyncIterator[str]:
        """The pieces of a streamed answer; leaving the stream early cancels it."""
        finish_reason = None
        async with await self.send(client, stream=True, **fields) as chunks:
            async for chunk in chunks:
                (choice,) = chunk.choices
                finish_reason = choice.finish_reason or finish_reason
                if text := (choice.delta.content if self.is_chat else choice.text):
                    yield text
        assert finish_reason == "length", "the stream must end with its answer"

    async def streamed(self, client: Any, **fields: Any) -> str:
        """The text of a streamed answer."""
        return "".join([piece async for piece in self.pieces(client, **fields)])
