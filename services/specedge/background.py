"""Long blocking work beside an event loop, in a thread that does not keep the process alive."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def start_in_background(work: Callable[[], Result], name: str) -> "asyncio.Future[Result]":
    """Run `work` on a daemon thread; a process that is told to stop meanwhile can simply leave it behind.

    Returns:
        A future of the running loop with the result or the exception of `work`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
