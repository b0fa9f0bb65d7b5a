"""A network proxy of which nothing but the round-trip time is asked: half of it in each direction."""

from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.network.proxy import NetworkProxy


class DelayProxy(NetworkProxy):
    """Forwards to `host`:`target_port` and counts the bytes of each direction.

    Args:
        target_port: where connections lead to.
        rtt_s: the round-trip time added; may be changed at any time, for what arrives from then on.
        host: of the target, and the address listened on.
    """

    def __init__(self, target_port: int, rtt_s: float = 0.0, host: str = "127.0.0.1") -> None:
        super().__init__(target_port, _delayed(rtt_s), host)

    @property
    def rtt_s(self) -> float:
        return self.profile.rtt_ms / 1000

    @rtt_s.setter
    def rtt_s(self, rtt_s: float) -> None:
        self.profile = _delayed(rtt_s)


def _delayed(rtt_s: float) -> NetworkProfile:
    return NetworkProfile(f"{rtt_s * 1000:g} ms", rtt_s * 1000)
