"""The bounded buffer between a stream and its consumer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from specedge.errors import SpecEdgeError

T = TypeVar("T")


class BurstBuffer(Generic[T]):
    """One producer, one consumer, one event loop.

    The producer starts it, puts, and finishes or fails it; after a `put` that fills it, it waits for room. Room is
    there again when half of it is read, so that a slow consumer does not switch the producer on and off per item.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: deque[T] = deque()
        self._is_started = False
        self._is_finished = False
        self._error: SpecEdgeError | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """No more should be put."""
        return len(self._items) >= self._max_items

    def start(self) -> None:
        """The session is open: items will follow."""
        self._is_started = True
        self._changed.set()

    def put(self, item: T) -> None:
        """Adds an item, even beyond the bound."""
        self._items.append(item)
        self._changed.set()

    def finish(self) -> None:
        """No more items follow."""
        self._is_finished = True
        self._changed.set()

    def fail(self, error: SpecEdgeError) -> None:
        """No more items follow; after those here the consumer gets `error`."""
        self._error = error
        self.finish()

    async def wait_room(self) -> None:
        """Returns when half of the buffer is free."""
        while len(self._items) > self._max_items // 2:
            self._has_room.clear()
            await self._has_room.wait()

    async def wait_started(self) -> None:
        """Returns when the session is open; raises the error that ended it before."""
        while not self._is_started:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def bursts(self) -> AsyncIterator[T]:
        """The items, until the end; raises the error the session failed with."""
        while True:
            while self._items:
                item = self._items.popleft()
                self._has_room.set()
                yield item
            if self._error is not None:
                raise self._error
            if self._is_finished:
                return
            self._changed.clear()
            await self._changed.wait()
