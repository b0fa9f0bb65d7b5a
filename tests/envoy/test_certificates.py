"""Envoy with certificates: edges and verifiers prove who they are to it, and it to them; new files need no restart."""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from envoy_support import Envoy, install, until
from processes import Ask, Edge, Verifier, running
from tls_support import Authority, Paths

from specedge.tls.diagnosis import ClientTls
from specedge_cli.main import main
from specedge_cli.probe import probe

ASK = Ask("Once upon a time there was a fox", seed=11, max_tokens=48)
NAME = "specedge-verifier"


@dataclass(frozen=True)
class Site:
    """What runs, and its certificates."""

    certs: Path
    envoy: Envoy
    verifiers: tuple[Verifier, Verifier]
    edge: Edge


@pytest.fixture(scope="module")
def site(envoy_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("secure")
    certs = folder / "certs"
    assert main(["certs", "--out", str(certs), "--server-name", NAME, "--edge-name", "alice"]) == 0
    own = ["--tls-certificate-file", str(certs / "server.crt"), "--tls-key-file", str(certs / "server.key")]
    alice = ClientTls(certs / "ca.crt", certs / "alice.crt", certs / "alice.key")
    verifiers = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        flags = ("--num-kv-blocks", "128", *own, "--tls-client-ca-file", str(certs / "ca.crt"))
        verifiers.append(Verifier(folder / name, *flags))
        verifiers[-1].tls = alice
    (folder / "envoy").mkdir()
    install(certs, folder / "envoy" / "certificates")
    envoy = Envoy(envoy_program, folder / "envoy", verifiers, "envoy-tls.yaml", alice)
    link = ["--verifier-ca-file", str(certs / "ca.crt"), "--verifier-certificate-file", str(certs / "alice.crt")]
    edge = Edge(folder, "edge", envoy, *link, "--verifier-key-file", str(certs / "alice.key"))
    with running(*verifiers, envoy, edge):
        yield Site(certs, envoy, (verifiers[0], verifiers[1]), edge)


async def test_a_seeded_answer_comes_through(site: Site) -> None:
    async with site.edge.client() as client:
        drafted, plain = await asyncio.gather(ASK.whole(client), ASK.whole(client, speculation={"enabled": False}))
    assert drafted == plain
    assert await site.envoy.stat("cluster.verifiers.ssl.handshake") > 0


def test_who_has_no_certificate_of_the_authority_is_not_let_in(site: Site, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "unknown").files("mallory")
    for own in (None, stranger):
        tls = ClientTls(site.certs / "ca.crt", *(() if own is None else (own.certificate, own.key)))
        assert "certificate" in str(probe(site.envoy.address, 5.0, tls))
    assert probe(site.envoy.address, 5.0) is not None, "nor in plain text"
    assert probe(site.envoy.address, 5.0, site.envoy.tls) is None


async def test_a_verifier_whose_certificate_has_another_name_gets_no_sessions(
    site: Site, envoy_program: str, tmp_path: Path
) -> None:
    (tmp_path / "envoy").mkdir()
    install(site.certs, tmp_path / "envoy" / "certificates")
    envoy = Envoy(envoy_program, tmp_path / "envoy", site.verifiers, "envoy-tls.yaml", site.envoy.tls)
    path = tmp_path / "envoy" / "envoy-tls.yaml"
    path.write_text(path.read_text().replace(f"exact: {NAME}", "exact: another.example.org"))
    try:
        envoy.start()
        await asyncio.to_thread(envoy.wait_started)
        await until("a name is refused", lambda: envoy.stat("cluster.verifiers.ssl.fail_verify_san"))
        assert await envoy.stat("cluster.verifiers.membership_healthy") == 0
        assert await asyncio.to_thread(probe, envoy.address, 2.0, envoy.tls) is not None
    finally:
        envoy.destroy()


def serial(site: Site) -> int:
    """Of the certificate that Envoy shows at this moment."""
    host, _, port = site.envoy.address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


async def test_a_new_certificate_is_shown_without_a_restart(site: Site) -> None:
    before = await asyncio.to_thread(serial, site)
    old = Paths(site.certs / "server.crt", site.certs / "server.key")
    old.certificate.unlink()
    old.key.unlink()
    assert await asyncio.to_thread(main, ["certs", "--out", str(site.certs), "--server-name", NAME]) == 0
    install(site.certs, site.envoy.folder / "certificates")

    async def is_new() -> bool:
        return await asyncio.to_thread(serial, site) != before

    await until("the new certificate is shown", is_new)
    async with site.edge.client() as client:
        assert await ASK.whole(client)
    assert await site.edge.sample("specedge_edge_reconnects_total") == 0
