"""Real processes on a system that does not help: a resolver that hangs, a full disk, a log that nobody reads."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from processes import HOST, quiet_port

ALONE = Path(__file__).parents[1] / "edge_with_hanging_resolver.py"
START_S = 120.0
EXIT_S = 60.0


@contextmanager
def edge(output: int, log: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An edge whose verifier's name is never found, and its address."""
    port = quiet_port()
    flags = ["--port", str(port), "--metrics-port", "off", "--draft-model", "none", "--log-level", "debug"]
    name = ["--verifier-address", "dns:verifier.example.org:50051", "--allow-plaintext", "true"]
    command = [sys.executable, str(ALONE), str(os.getpid()), "edge", *flags, *name]
    process = subprocess.Popen(command, stdout=output, stderr=log)
    try:
        yield process, f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.wait()


async def until_healthy(client: httpx.AsyncClient, url: str) -> None:
    while True:
        with suppress(httpx.TransportError):
            if (await client.get(f"{url}/health")).status_code == 200:
                return
        await asyncio.sleep(0.1)


async def test_an_edge_serves_and_ends_without_resolver_log_and_disk() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4096)  # the process finds it full
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with edge(full, writing) as (process, url):
            async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
                await asyncio.wait_for(until_healthy(client, url), START_S)
                ready = await client.get(f"{url}/ready")
                assert ready.status_code == 503
                answer = await client.post(f"{url}/v1/completions", json={"model": "m", "prompt": "a"})
                assert answer.status_code == 503 and "retry-after" in answer.headers
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, EXIT_S) == 0
    finally:
        for fd in (reading, writing, full):
            os.close(fd)
