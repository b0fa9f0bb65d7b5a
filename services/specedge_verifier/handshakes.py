"""Counts TLS connections by what became of them.

gRPC says when a handshake begins, by asking for the certificate, and when a call comes in; of a handshake that fails it
prints the reason on standard error and tells the process nothing. So a connection is *served* once it carries a call,
and *refused* when no call came of a handshake in good time: its client has no certificate, or a wrong one, or does not
want ours, or went away.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter

logger = logging.getLogger(__name__)

_FORGET_S = 60.0
_MAX_PEERS = 65_536


class Handshakes:
    """The handshakes of one server.

    Args:
        registry: shows `specedge_verifier_tls_connections`.
        patience_s: how long after its handshake began a connection has to carry a call.
        clock: steady time in seconds.
    """

    def __init__(
        self, registry: CollectorRegistry, patience_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        counter = Counter(
            "tls_connections",
            "TLS connections: served carried a call, refused did not",
            ["outcome"],
            namespace="specedge_verifier",
            registry=registry,
        )
        self._served, self._refused = counter.labels("served"), counter.labels("refused")
        self._patience_s = patience_s
        self._clock = clock
        self._begun: deque[float] = deque()
        self._peers: dict[str, float] = {}  # when each was last seen, the longest ago first
        self._num_served = self._num_refused = 0
        self._taken = {"served": 0, "refused": 0}

    def began(self) -> None:
        """A client has connected; may be called on any thread."""
        self._begun.append(self._clock())

    def called(self, peer: str) -> None:
        """A call came from a peer, whose address belongs to one connection."""
        is_known = self._peers.pop(peer, None) is not None
        self._peers[peer] = self._clock()
        if not is_known and self._begun:
            self._begun.popleft()
            self._num_served += 1
            self._served.inc()

    def take(self) -> dict[str, int]:
        """Connections by outcome since the last call, for another process to `add`."""
        totals = {"served": self._num_served, "refused": self._num_refused}
        taken, self._taken = self._taken, totals
        return {outcome: total - taken[outcome] for outcome, total in totals.items()}

    def add(self, connections: Mapping[str, int]) -> None:
        """Counts connections of another process, by outcome."""
        self._served.inc(connections["served"])
        self._refused.inc(connections["refused"])

    def settle(self) -> None:
        """Counts what has waited too long, and forgets peers that are gone."""
        now = self._clock()
        num_refused = 0
        while self._begun and self._begun[0] <= now - self._patience_s:
            self._begun.popleft()
            num_refused += 1
        if num_refused:
            self._refused.inc(num_refused)
            self._num_refused += num_refused
            logger.warning(
                "%d TLS connections without a call within %g s (%d so far): refused, or of clients that refused us; "
                "gRPC's lines before this one (ssl_transport_security) name the reasons",
                num_refused,
                self._patience_s,
                self._num_refused,
            )
        while self._peers and (len(self._peers) > _MAX_PEERS or next(iter(self._peers.values())) < now - _FORGET_S):
            del self._peers[next(iter(self._peers))]
