"""HTTP/2 by hand, for clients that do what no gRPC library does."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_HEADERS = 4
GENERATE = "/specedge.verification.v1.VerificationService/Generate"
CANCEL = (8).to_bytes(4)


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def header(name: str, value: str) -> bytes:
    """A header that no table knows, neither compressed nor to be remembered."""
    return b"\x00" + _string(name.encode()) + _string(value.encode())


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes([*length, rest]) + text


def call_headers(token: str | None = None) -> bytes:
    """The beginning of a Generate call."""
    fields = {":method": "POST", ":scheme": "https", ":path": GENERATE, ":authority": "x", "te": "trailers"}
    fields |= {"content-type": "application/grpc"}
    if token is not None:
        fields["authorization"] = f"Bearer {token}"
    return b"".join(header(name, value) for name, value in fields.items())


OPENED = PREFACE + frame(SETTINGS)


class RawConnection:
    """A connection whose peer's frames are read and kept.

    Attributes:
        received: kinds of the frames that came, in order.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received: list[int] = []
        self._reader = reader
        self._writer = writer
        self._reading = asyncio.create_task(self._read())

    @property
    def is_closed(self) -> bool:
        """Whether the other side has ended it."""
        return self._reading.done()

    async def send(self, parts: list[bytes]) -> None:
        """Sends until the other side has had enough."""
        with suppress(ConnectionError):
            for part in parts:
                self._writer.write(part)
                await self._writer.drain()

    async def _read(self) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = await self._reader.readexactly(9)
                await self._reader.readexactly(int.from_bytes(head[:3]))
                self.received.append(head[3])

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self._writer.transport.abort()


@asynccontextmanager
async def raw_connection(port: int, authority: Path | None = None) -> AsyncIterator[RawConnection]:
    """A connection to loopback, by TLS where an authority is given."""
    context = None
    if authority is not None:
        context = ssl.create_default_context(cafile=authority)
        context.set_alpn_protocols(["h2"])
    connection = RawConnection(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
    try:
        yield connection
    finally:
        await connection.close()
