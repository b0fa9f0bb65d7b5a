"""The count of TLS connections by what became of them."""

import pytest
from prometheus_client import CollectorRegistry

from specedge_verifier.handshakes import Handshakes


class Watched:
    """Handshakes with a clock of the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.registry = CollectorRegistry()
        self.handshakes = Handshakes(self.registry, patience_s=5, clock=lambda: self.now)

    @property
    def counts(self) -> tuple[float | None, float | None]:
        name = "specedge_verifier_tls_connections_total"
        return tuple(self.registry.get_sample_value(name, {"outcome": outcome}) for outcome in ("served", "refused"))  # type: ignore[return-value]


def test_a_connection_is_served_once_however_many_calls_it_carries() -> None:
    watched = Watched()
    watched.handshakes.began()
    for _ in range(3):
        watched.handshakes.called("ipv4:10.0.0.1:5")
    watched.now += 6
    watched.handshakes.settle()
    assert watched.counts == (1, 0)


def test_one_without_a_call_is_refused_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.handshakes.began()
    watched.now += 4
    watched.handshakes.began()
    watched.handshakes.called("ipv4:10.0.0.1:5")
    watched.handshakes.settle()
    assert watched.counts == (1, 0)
    watched.now += 5
    watched.handshakes.settle()
    watched.handshakes.settle()
    assert watched.counts == (1, 1)
    assert [record.message.startswith("1 TLS connections without a call") for record in caplog.records] == [True]


def test_a_peer_that_went_away_is_new_when_it_comes_back() -> None:
    watched = Watched()
    for _ in range(2):
        watched.handshakes.began()
        watched.handshakes.called("ipv4:10.0.0.1:5")
        watched.handshakes.settle()
        watched.now += 61
        watched.handshakes.settle()
    assert watched.counts == (2, 0)
