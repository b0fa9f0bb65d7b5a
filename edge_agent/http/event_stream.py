"""A response of server-sent events: begun with its first event, and kept alive while none comes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import Send

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_KEEP_ALIVE: Final = b": keep-alive\n\n"


class EventStream:
    """One response.

    Args:
        send: takes it.
        headers: besides those of every stream.

    Attributes:
        is_begun: the status line is out; from now on errors can only be events.
    """

    def __init__(self, send: Send, headers: Mapping[str, str] | None = None) -> None:
        self.is_begun = False
        self._headers = [*_HEADERS, *((name.encode(), value.encode()) for name, value in (headers or {}).items())]
        self._send = send
        self._lock = asyncio.Lock()
        self._last_write_s = asyncio.get_running_loop().time()

    async def write(self, events: bytes, *, is_last: bool = False) -> None:
        """Sends events; the first ones send the headers before them."""
        if not events and not is_last:
            return
        async with self._lock:
            if not self.is_begun:
                self.is_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self._last_write_s = asyncio.get_running_loop().time()
            await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})

    @asynccontextmanager
    async def kept_alive(self, after_s: float) -> AsyncIterator[None]:
        """Sends a comment, which clients skip, whenever there was nothing to send for so many seconds.

        Proxies and clients close connections that are silent for long, as one is while its request waits for a place.
        """
        task = asyncio.create_task(self._keep_alive(after_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_alive(self, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet_s = loop.time() - self._last_write_s
            if quiet_s >= after_s:
                await self.write(_KEEP_ALIVE)
            else:
                await asyncio.sleep(after_s - quiet_s)
