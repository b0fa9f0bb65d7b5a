"""The processes as an operator runs them: mutual TLS between them, HTTPS for users, metrics on ports of their own."""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from processes import HOST, Ask, Edge, Service, Verifier, quiet_port, running
from tls_support import Authority, Paths, replace

from specedge.tls.diagnosis import ClientTls
from specedge_cli.certs import Pair, make_leaf, read_authority
from specedge_cli.main import main

ASK = Ask("Once upon a time there was a fox", seed=11, max_tokens=400)
DEADLINE_S = 20.0


@dataclass(frozen=True)
class Site:
    """A verifier and an edge that trust each other by certificates, and an edge that nobody knows."""

    certs: Path
    verifier: Verifier
    edge: Service
    stranger: Service

    @property
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certs / "ca.crt")

    def post(self, **fields: object) -> httpx.Response:
        with httpx.Client(verify=self.trusting, trust_env=False, timeout=60) as client:
            return client.post(f"{self.edge.address}/v1/completions", json=ASK.body(**fields))


def edge_process(folder: Path, name: str, verifier: Verifier, certs: Path, own: Paths, *flags: str) -> Service:
    """An edge with mutual TLS to its verifier and without a public /metrics."""
    port, metrics_port = quiet_port(), quiet_port()
    where = ["--port", str(port), "--metrics-port", str(metrics_port), "--verifier-address", verifier.address]
    files = ["--verifier-ca-file", str(certs / "ca.crt"), "--verifier-certificate-file", str(own.certificate)]
    files += ["--verifier-key-file", str(own.key), "--verifier-deadline-s", "2"]
    is_https = "--tls-key-file" in flags
    return Service(
        ["edge", *where, *files, "--num-threads", "1", *flags],
        f"{'https' if is_https else 'http'}://{HOST}:{port}",
        f"http://{HOST}:{metrics_port}/metrics",
        folder / f"{name}.log",
        ClientTls(certs / "ca.crt") if is_https else None,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("logs")
    certs = folder / "certs"
    assert main(["certs", "--out", str(certs), "--edge-name", "alice"]) == 0
    server = ["--tls-certificate-file", str(certs / "server.crt"), "--tls-key-file", str(certs / "server.key")]
    verifier = Verifier(folder, "--num-kv-blocks", "72", *server, "--tls-client-ca-file", str(certs / "ca.crt"))
    alice = Paths(certs / "alice.crt", certs / "alice.key")
    verifier.tls = ClientTls(certs / "ca.crt", alice.certificate, alice.key)
    edge = edge_process(folder, "alice", verifier, certs, alice, "--num-draft-slots", "2048", *server)
    no_drafts = ("--draft-model", "none", "--lookup", "off")
    unknown = Authority(folder / "unknown").files("mallory")
    stranger = edge_process(folder, "mallory", verifier, certs, unknown, *no_drafts)
    try:
        stranger.start()
        with running(verifier, edge):
            yield Site(certs, verifier, edge, stranger)
    finally:
        stranger.destroy()
    for service in (verifier, edge, stranger):
        assert "Traceback" not in service.log(), service.log()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, trust_env=False, timeout=5)
    except httpx.ConnectError:
        return None


async def test_a_seeded_answer_is_the_one_of_plain_text(site: Site, tmp_path: Path) -> None:
    verifier = Verifier(tmp_path, "--num-kv-blocks", "72")
    edge = Edge(tmp_path, "plain", verifier, "--draft-model", "none", "--lookup", "off")
    secure = await asyncio.to_thread(site.post)
    assert await site.edge.sample("specedge_edge_drafted_nodes_total") > 0
    with running(verifier, edge):
        async with edge.client() as client:
            assert await ASK.whole(client) == secure.json()["choices"][0]["text"]


async def test_metrics_are_apart_from_the_api(site: Site) -> None:
    async with httpx.AsyncClient(verify=site.trusting, trust_env=False) as client:
        assert (await client.get(f"{site.edge.address}/health")).status_code == 200
        assert (await client.get(f"{site.edge.address}/metrics")).status_code == 404
        paths = (await client.get(f"{site.edge.address}/openapi.json")).json()["paths"]
    assert "/metrics" not in paths
    assert await site.edge.sample("specedge_edge_certificate_expiry_timestamp_seconds", use="link") > time.time()
    assert await site.edge.sample("specedge_edge_certificate_expiry_timestamp_seconds", use="http") > time.time()
    assert await site.verifier.sample("specedge_verifier_tls_connections_total", outcome="served") > 0
    assert "metrics on http://127.0.0.1:" in site.edge.log()


async def test_a_stranger_is_refused_told_why_and_counted_on_both_sides(site: Site) -> None:
    base = site.stranger.address

    def is_explained() -> bool:
        ready = get(f"{base}/ready")
        return ready is not None and "it refused the certificate" in ready.json().get("reason", "")

    await asyncio.to_thread(until, is_explained)
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        answer = await client.post(f"{base}/v1/completions", json=ASK.body())
    assert answer.status_code == 503 and "retry-after" in answer.headers
    assert f"{site.verifier.address} ended the connection after the TLS handshake" in answer.json()["error"]["message"]
    assert await site.stranger.sample("specedge_edge_failed_handshakes_total", reason="refused") > 0
    until_counted = asyncio.get_running_loop().time() + DEADLINE_S
    while await site.verifier.sample("specedge_verifier_tls_connections_total", outcome="refused") == 0:
        assert asyncio.get_running_loop().time() < until_counted
        await asyncio.sleep(0.2)
    assert "TLS connections without a call" in site.verifier.log()
    assert "CERTIFICATE_VERIFY_FAILED" in site.verifier.log()
    assert "no TLS with the verifier" in site.stranger.log()
    assert (await asyncio.to_thread(site.post)).status_code == 200, "the others do not notice"


def test_health_asks_over_tls(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    certs = site.certs
    ca = ["--ca-file", str(certs / "ca.crt")]
    own = ["--certificate-file", str(certs / "alice.crt"), "--key-file", str(certs / "alice.key")]
    assert main(["health", site.verifier.address, *ca, *own]) == 0
    assert main(["health", site.edge.address, *ca]) == 0
    capsys.readouterr()
    assert main(["health", site.verifier.address, *ca]) == 1
    assert "no certificate was shown" in capsys.readouterr().out
    assert main(["health", site.verifier.address]) == 1
    assert "speaks TLS and is asked in plain text" in capsys.readouterr().out
    assert main(["health", site.edge.address]) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
    assert main(["health", site.verifier.address, *own]) == 2
    assert main(["health", site.verifier.address, "--ca-file", str(certs / "no.crt")]) == 2
    assert f"--ca-file = {certs / 'no.crt'} cannot be read" in capsys.readouterr().err


def test_https_takes_a_new_certificate_while_an_answer_streams(site: Site) -> None:
    def served() -> str:
        port = int(site.edge.address.rpartition(":")[2])
        return ssl.get_server_certificate((HOST, port), ca_certs=str(site.certs / "ca.crt"), timeout=10)

    before = served()
    server = Paths(site.certs / "server.crt", site.certs / "server.key")
    with (
        httpx.Client(verify=site.trusting, trust_env=False, timeout=60) as client,
        client.stream("POST", f"{site.edge.address}/v1/completions", json=ASK.body(stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        replace(server, new_server(site.certs))
        until(lambda: served() != before)
        assert [*lines][-2] == "data: [DONE]"
    assert served() == server.certificate.read_text()
    assert site.post().status_code == 200
    assert main(["health", site.verifier.address, "--ca-file", str(site.certs / "ca.crt"), *alice(site.certs)]) == 0


def new_server(certs: Path) -> Pair:
    names = ["localhost", HOST]
    return make_leaf(read_authority(certs / "ca.crt", certs / "ca.key"), "server", names, 9, is_server=True)


def alice(certs: Path) -> list[str]:
    return ["--certificate-file", str(certs / "alice.crt"), "--key-file", str(certs / "alice.key")]


@pytest.mark.parametrize(
    ("process", "flags", "reason"),
    [
        (
            "verifier",
            ["--tls-certificate-file", "no.crt", "--tls-key-file", "no.key"],
            "no.crt cannot be read: No such",
        ),
        ("edge", ["--verifier-ca-file", "no.crt"], "verifier_ca_file = no.crt cannot be read: No such file"),
        ("edge", ["--host", "0.0.0.0"], "host = 0.0.0.0 would speak plain text beyond this machine"),
    ],
)
def test_a_process_that_cannot_be_private_does_not_start(
    process: str, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([process, *flags]) == 2
    assert reason in capsys.readouterr().err


def test_a_second_edge_says_which_setting_it_needs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    port = site.edge.metrics_url.rpartition(":")[2].partition("/")[0]
    assert main(["edge", "--port", "0", "--metrics-port", port]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"specedge edge: cannot serve metrics on 127.0.0.1:{port}: Address already in use; ")
    assert "metrics_port takes another one, each process on a machine needs its own" in line
