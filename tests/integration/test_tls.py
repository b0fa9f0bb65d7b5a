"""TLS between edge and verifier over real sockets: who is let in, who is not, and certificates that change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
from edge_harness import PROMPT, QUICK, Edge, answer_of, edge_at, wanted
from fakes import FINGERPRINT, FakeEngine, TreeDrafts, expected_answer, serving, until
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry
from tcp_proxy import TcpProxy
from tls_support import Authority, Paths, link, replace, serial_of, server_source

from edge_agent.draft_source import NullDraftSource
from edge_agent.generation import GenerationOptions
from edge_agent.verifier_channel import LinkTls
from edge_agent.verifier_pool import VerifierPool
from specedge.errors import VerifierUnavailable
from specedge.tls.files import TlsSource
from specedge.tls.metrics import CertificateMetrics
from specedge_cli.probe import probe
from specedge_verifier.grpc_server import HealthServicer, ServerTls, VerifierServer
from specedge_verifier.handshakes import Handshakes

IMPATIENT = GenerationOptions(verifier_deadline_s=1.0, stall_timeout_s=5.0)


class Site:
    """A verifier's and an edge's files, of the same authority, and those of a stranger."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ours")
        self.server = self.authority.files("server", is_server=True)
        self.edge = self.authority.files("edge")
        self.stranger = Authority(folder / "theirs")
        self.registry = CollectorRegistry()

    @property
    def link(self) -> LinkTls:
        return link(self.authority.file, self.edge)

    @asynccontextmanager
    async def serving(self, engine: FakeEngine, *, is_mutual: bool = True) -> AsyncIterator[VerifierServer]:
        source = server_source(self.server, self.authority.file if is_mutual else None)
        tls = ServerTls(source, Handshakes(self.registry, patience_s=0.3))
        async with serving(engine, tls=tls) as server:
            yield server

    def connections(self, outcome: str) -> float:
        return self.registry.get_sample_value("specedge_verifier_tls_connections_total", {"outcome": outcome}) or 0.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("is_mutual", [False, True], ids=["tls", "mutual"])
async def test_an_answer_is_the_same_as_in_plain_text(site: Site, is_mutual: bool) -> None:
    tls = site.link if is_mutual else link(site.authority.file)
    engine = FakeEngine(patience_s=5.0)
    async with (
        site.serving(engine, is_mutual=is_mutual) as server,
        edge_at(server.port, TreeDrafts(12, 3), tls=tls) as edge,
    ):
        assert await answer_of(edge.service, wanted(40)) == expected_answer(PROMPT, 40)
        assert edge.counters.num_broken == 0 and edge.counters.num_nodes_sent > 0
    assert site.connections("served") == 1


async def refusal(port: int | str, tls: LinkTls | None) -> tuple[str, Edge]:
    """What an edge that never gets in says, and its counts."""
    edge = Edge(port, NullDraftSource(), IMPATIENT, tls)
    try:
        with pytest.raises(VerifierUnavailable) as caught:
            await edge.service.start()
        with pytest.raises(VerifierUnavailable) as asked:
            await answer_of(edge.service, wanted(3))
        assert edge.service.failure is None or str(asked.value) == edge.service.failure
    finally:
        await edge.client.close()
    return str(caught.value), edge


def wrong_links(site: Site) -> dict[str, tuple[LinkTls | None, str, str]]:
    """Edges that are not let in or do not want this verifier: their files, the counted reason, what they are told."""
    ours = site.authority.file
    return {
        "no certificate": (link(ours), "refused", "no certificate was shown"),
        "foreign certificate": (link(ours, site.stranger.files("edge")), "refused", "it refused the certificate"),
        "foreign verifier": (link(site.stranger.file, site.edge), "untrusted", "not signed by the authority"),
        "wrong name": (link(ours, site.edge, "other.test"), "wrong_name", "for another name than other.test"),
        "plain text": (None, "needs_tls", "speaks TLS and is asked in plain text"),
    }


@pytest.mark.parametrize(
    "case", ["no certificate", "foreign certificate", "foreign verifier", "wrong name", "plain text"]
)
async def test_who_is_not_let_in_is_told_why_and_counted_while_others_are_served(
    site: Site, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    tls, reason, text = wrong_links(site)[case]
    engine = FakeEngine(step_s=0.002)
    async with site.serving(engine) as server, edge_at(server.port, tls=site.link) as good:
        async with good.service.generate(wanted(60)) as bursts, aclosing(bursts):
            token_ids = [*(await anext(bursts)).token_ids]
            message, bad = await refusal(server.port, tls)
            assert text in message and f"127.0.0.1:{server.port}" in message
            assert bad.counters.failed_handshakes == {reason: 1}
            assert bad.counters.num_opened == 0
            assert bad.service.failure is not None and text in bad.service.failure
            async for burst in bursts:
                token_ids += burst.token_ids
        assert token_ids == expected_answer(PROMPT, 60)
        assert good.counters.num_broken == 0
        await until(lambda: site.connections("refused") >= 2, 10)
    assert len(engine.opened) == 1
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("TLS connections without a call" in warning for warning in warnings)
    assert any(warning.startswith("no TLS with the verifier") and text in warning for warning in warnings)


@pytest.mark.parametrize("who", ["edge", "verifier"])
async def test_an_expired_certificate_is_refused_by_the_other_side(
    site: Site, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither process would read one, so here they do not look: a good one in memory expires in the same way."""
    monkeypatch.setattr("specedge.tls.files._check_period", lambda file, certificate: None)
    good = link(site.authority.file, site.authority.files("good"))
    async with site.serving(FakeEngine()) as server, edge_at(server.port, tls=good) as edge:
        assert await answer_of(edge.service, wanted(3)) == expected_answer(PROMPT, 3)
        paths = site.edge if who == "edge" else site.server
        replace(paths, site.authority.leaf(who, is_server=who == "verifier", days_old=2, days=1))
        message, bad = await refusal(server.port, site.link)
        assert ("it refused the certificate" if who == "edge" else "its certificate has expired") in message
        assert bad.counters.failed_handshakes == {"refused" if who == "edge" else "expired": 1}
        # A certificate is looked at when a connection begins: what stood before stays.
        assert await answer_of(edge.service, wanted(3)) == expected_answer(PROMPT, 3)
        assert edge.counters.num_broken == 0


async def test_an_edge_that_speaks_tls_to_a_plain_verifier_says_so(site: Site) -> None:
    async with serving(FakeEngine()) as server:
        message, bad = await refusal(server.port, site.link)
    assert "does not speak TLS" in message
    assert bad.counters.failed_handshakes == {"not_tls": 1}


async def test_the_name_may_be_another_than_the_addresss_host(site: Site) -> None:
    async with site.serving(FakeEngine()) as server:
        tls = link(site.authority.file, site.edge, "verifier.test")
        async with edge_at(server.port, tls=tls) as edge:
            assert await answer_of(edge.service, wanted(3)) == expected_answer(PROMPT, 3)


async def test_certificates_change_on_both_sides_while_a_stream_runs(site: Site) -> None:
    """The authority, too: for a while both trust the old and the new one, then the new one alone."""
    engine = FakeEngine(step_s=0.01)
    new = Authority(site.authority.folder.parent / "new")
    async with site.serving(engine) as server:
        source = site.link.source
        async with edge_at(server.port, tls=LinkTls(source)) as edge:
            async with edge.service.generate(wanted(80)) as bursts, aclosing(bursts):
                token_ids = [*(await anext(bursts)).token_ids]
                both = site.authority.file.read_bytes() + new.file.read_bytes()
                site.authority.file.write_bytes(both)
                assert await answer_of(edge.service, wanted(3)) == expected_answer(PROMPT, 3)
                replace(site.server, new.leaf("server", is_server=True))
                replace(site.edge, new.leaf("edge"))
                assert await answer_of(edge.service, wanted(4)) == expected_answer(PROMPT, 4)
                site.authority.file.write_bytes(new.file.read_bytes())
                assert await answer_of(edge.service, wanted(5)) == expected_answer(PROMPT, 5)
                old, _ = await refusal(server.port, link(site.stranger.file, site.edge))
                assert "not signed by the authority" in old
                async for burst in bursts:
                    token_ids += burst.token_ids
            assert token_ids == expected_answer(PROMPT, 80)
            assert edge.counters.num_broken == 0 and edge.counters.failed_handshakes == {}
            assert serial_of(source.material.certificate_pem or b"") == serial_of(site.edge.certificate.read_bytes())
        # A newcomer that trusts the new authority alone gets in, one of the old authority does not.
        async with edge_at(server.port, tls=link(new.file, site.edge)) as newcomer:
            assert await answer_of(newcomer.service, wanted(3)) == expected_answer(PROMPT, 3)
        message, _ = await refusal(server.port, link(new.file, site.authority.files("former")))
        assert "it refused the certificate" in message


async def test_an_edge_that_was_refused_gets_in_once_its_files_are_right(site: Site) -> None:
    own = site.stranger.files("edge")
    async with site.serving(FakeEngine()) as server:
        edge = Edge(server.port, NullDraftSource(), QUICK, link(site.authority.file, own))
        try:
            starting = asyncio.create_task(edge.service.start())
            await until(lambda: edge.service.failure is not None, 10)
            replace(own, site.authority.leaf("edge"))
            await starting
            assert edge.service.failure is None
            assert await answer_of(edge.service, wanted(3)) == expected_answer(PROMPT, 3)
        finally:
            await edge.client.close()


async def test_an_answer_goes_on_over_a_connection_with_the_new_certificate(site: Site) -> None:
    engine = FakeEngine(step_s=0.002)
    async with site.serving(engine) as server, AsyncExitStack() as stack:
        proxy = TcpProxy(server.port)
        await proxy.start()
        stack.push_async_callback(proxy.close)
        async with edge_at(proxy.port, tls=site.link) as edge:
            token_ids: list[int] = []
            async with edge.service.generate(wanted(60)) as bursts, aclosing(bursts):
                async for burst in bursts:
                    if len(token_ids) < 30 <= len(token_ids) + len(burst.token_ids):
                        replace(site.server, site.authority.leaf("server", is_server=True))
                        replace(site.edge, site.authority.leaf("edge"))
                        proxy.cut()
                    token_ids += burst.token_ids
            assert token_ids == expected_answer(PROMPT, 60)
            assert edge.counters.num_broken == 1


async def test_the_verifier_sees_the_verified_names_of_an_edge(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, list[bytes]]] = []
    check = HealthServicer.Check

    async def spy(self: HealthServicer, request: health_pb2.HealthCheckRequest, context: object) -> object:
        seen.append(context.auth_context())  # type: ignore[attr-defined]
        return await check(self, request, context)

    monkeypatch.setattr(HealthServicer, "Check", spy)
    async with site.serving(FakeEngine()) as server, edge_at(server.port, tls=site.link) as edge:
        pool = VerifierPool.of(edge.client)
        await pool.start(FINGERPRINT, 5.0)
        pinging = asyncio.create_task(pool.run())
        await until(lambda: edge.counters.num_pings > 0, 10)
        pinging.cancel()
    assert seen[0]["x509_common_name"] == [b"edge"] and seen[0]["peer_dns"] == [b"edge"]


async def test_pings_and_health_checks_over_tls(site: Site) -> None:
    async with site.serving(FakeEngine()) as server:
        address = f"localhost:{server.port}"
        mine = site.link.client
        assert await asyncio.to_thread(probe, address, 5.0, mine) is None
        stranger = link(site.authority.file).client
        assert "no certificate was shown" in str(await asyncio.to_thread(probe, address, 5.0, stranger))
        assert "speaks TLS and is asked in plain text" in str(await asyncio.to_thread(probe, address, 5.0))
        replace(site.server, site.authority.leaf("server", is_server=True))
        assert await asyncio.to_thread(probe, address, 5.0, mine) is None


async def test_a_unix_socket_needs_no_tls(tmp_path: Path) -> None:
    host = f"unix:{tmp_path}/verifier.sock"
    async with serving(FakeEngine(), host=host), edge_at(host) as edge:
        assert await answer_of(edge.service, wanted(5)) == expected_answer(PROMPT, 5)
        assert await asyncio.to_thread(probe, host, 5.0) is None


def test_the_expiry_of_a_certificate_is_a_metric(site: Site) -> None:
    source: TlsSource = server_source(site.server)
    CertificateMetrics(site.registry, "specedge_verifier").watch("link", source)
    name = "specedge_verifier_certificate_expiry_timestamp_seconds"
    assert source.material.expires_at is not None
    assert site.registry.get_sample_value(name, {"use": "link"}) == source.material.expires_at.timestamp()
    replace(site.server, site.authority.leaf("server", is_server=True, days=3))
    soon = site.registry.get_sample_value(name, {"use": "link"})
    assert soon is not None and soon < source.material.expires_at.timestamp() + 1
    assert isinstance(site.server, Paths)
