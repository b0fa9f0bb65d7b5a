"""gRPC settings of both ends: message limits, liveness, reconnection, and nothing on the wire that is not needed."""

from specedge.tls.rules import UNIX, is_loopback

MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message a verifier takes; a longer one ends its stream with RESOURCE_EXHAUSTED."""
MAX_RESPONSE_BYTES = 8 * 2**20
"""Largest message an edge takes: log-probabilities of a long prompt. Verdicts have about 50 bytes."""

MAX_STREAMS = 1024
"""Streams of one connection; an edge's further ones wait until others have ended."""

FRAMING_BYTES = 5 + 9
"""What gRPC's length prefix and HTTP/2's frame header add to a message."""

Options = tuple[tuple[str, int], ...]

# Bandwidth probing would send a ping with every burst of data; the fixed windows below need none.
_COMMON: Options = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # This, and not the line above, is how long gRPC waits for the answer to a keepalive ping; by default a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def server_options(*, shares_port: bool = False) -> Options:
    """Options of a verifier's server. A port in use is an error, unless processes of one verifier share it."""
    return (
        *_COMMON,
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A connection that has not got through TLS and to HTTP/2 by then is closed.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A client that opens and abandons streams without end is slowed down to the pace of clearing them away.
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # A prompt of 100,000 tokens arrives without waiting for window updates.
        ("grpc.http2.lookahead_bytes", 2**19),
    )


def listening_address(host: str, port: int) -> str:
    """A host, or the address of a unix socket, as gRPC wants to listen on it."""
    if host.startswith(UNIX):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def client_options(address: str) -> Options:
    """Options of an edge's channel to `address` (host:port or unix:path)."""
    return (
        *_COMMON,
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # How long one connection attempt may take, whatever its name says.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # A connection without calls stays: only a lost one is not ready.
        ("grpc.client_idle_timeout_ms", 2**31 - 1),
        # A broken stream is resumed by the generation service, with what was committed in between.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0 if is_loopback(address) else 1),
    )
