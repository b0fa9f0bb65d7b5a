"""A verifier and an edge agent under load, and a Prometheus that scrapes them as `deploy/prometheus` says."""

import asyncio
import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from processes import HOST, Edge, Verifier, quiet_port, running

PROMETHEUS = Path(__file__).parents[1] / "deploy" / "prometheus"
HISTORY_S = 25.0
"""Seconds of load before anybody asks: several windows of the rates."""

READY_TIMEOUT_S = 60.0
POLL_S = 0.1
NUM_USERS = 4
TALE = "A fox wanted to see the sea. On the way she met a heron, who knew the river but not its end, and asked him: "


class Load:
    """Users that ask again and again, on a thread of its own: long, short, too many at once, and leaving."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self.num_answers = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once the last user has left."""
        self._stop.set()
        self._thread.join(READY_TIMEOUT_S)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        # No connection is used again that the server may be closing at this moment.
        limits = httpx.Limits(keepalive_expiry=1.0)
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=60, limits=limits) as client:
            users = [self._use(client, number) for number in range(NUM_USERS)]
            await asyncio.gather(*users, self._crowd(client), self._leave(client))

    async def _use(self, client: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            answer = await self._ask(client, TALE * (1 + turn % 3) + f"{number}, {turn}", 40)
            self.num_answers += answer.is_success

    async def _crowd(self, client: httpx.AsyncClient) -> None:
        """More at once than the verifier lets wait."""
        while not self._stop.is_set():
            await asyncio.gather(*(self._ask(client, TALE, 8) for _ in range(12)))
            await asyncio.sleep(3)

    async def _leave(self, client: httpx.AsyncClient) -> None:
        """Somebody who does not wait for the answer."""
        while not self._stop.is_set():
            with contextlib.suppress(httpx.TimeoutException):
                await self._ask(client, TALE, 200, patience_s=0.5)
            await asyncio.sleep(2)

    async def _ask(
        self, client: httpx.AsyncClient, prompt: str, max_tokens: int, patience_s: float = 60
    ) -> httpx.Response:
        body = {"model": "specedge-demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        return await client.post("/v1/completions", json=body, timeout=patience_s)


@dataclass(slots=True)
class Monitored:
    """What runs, and how to ask its Prometheus."""

    url: str
    verifier: Verifier
    edge: Edge
    load: Load
    started_s: float

    def wait_for_history(self) -> None:
        """Returns once there are enough samples under load."""
        while time.monotonic() < self.started_s + HISTORY_S:
            time.sleep(POLL_S)
        assert self.load.num_answers > 0

    def api(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of Prometheus' HTTP API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=30)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def instant(self, expr: str) -> list[Any]:
        """Series with their value of this moment."""
        found: list[Any] = self.api("query", query=expr)["result"]
        return found

    def course(self, expr: str, seconds: float = 15.0, step_s: float = 1.0) -> list[Any]:
        """Series with their values of the last seconds."""
        now_s = time.time()
        found: list[Any] = self.api("query_range", query=expr, start=now_s - seconds, end=now_s, step=step_s)["result"]
        return found


@contextmanager
def monitored(folder: Path) -> Iterator[Monitored]:
    """Starts everything, and ends it in order."""
    verifier = Verifier(
        folder,
        *("--num-kv-blocks", "128", "--max-batch-size", "4", "--max-waiting", "3", "--price-per-hour", "4.05"),
    )
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "4096", "--price-per-hour", "0.35")
    with running(verifier, edge), _prometheus(folder, verifier, edge) as url:
        load = Load(edge.url)
        load.start()
        try:
            yield Monitored(url, verifier, edge, load, time.monotonic())
        finally:
            load.stop()


@contextmanager
def _prometheus(folder: Path, verifier: Verifier, edge: Edge) -> Iterator[str]:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    targets = {"specedge-verifier": verifier.metrics_url, "specedge-edge": edge.metrics_url}
    for job in config["scrape_configs"]:
        assert len(job["static_configs"]) == 1
        job["static_configs"] = [{"targets": [urlsplit(targets[job["job_name"]]).netloc]}]
        del job["file_sd_configs"]
    path, port = folder / "prometheus.yml", quiet_port()
    path.write_text(yaml.safe_dump(config))
    flags = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={HOST}:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait_ready(f"http://{HOST}:{port}", process, folder / "prometheus.log")
            yield f"http://{HOST}:{port}"
        finally:
            process.terminate()
            process.wait(READY_TIMEOUT_S)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/-/ready", trust_env=False).is_success:
                return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        time.sleep(POLL_S)
