"""Work for a client lasts as long as the client does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work`, cancelling it as soon as the client disconnects; call it after the body has been read.

    Returns:
        Whether the work was done.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        await task
        return True
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
