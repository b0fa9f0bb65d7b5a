"""A TCP proxy between an edge and a verifier: it counts bytes, and its connections can be cut."""

from specedge_bench.network.forwarding import ForwardingProxy


class TcpProxy(ForwardingProxy):
    """Forwards to 127.0.0.1:`target_port`, as fast as it can."""

    async def close(self) -> None:
        """No connection is accepted from now on, and those that stand are reset."""
        await self.stop()
