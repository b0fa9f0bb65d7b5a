"""The bridge from threads to an event loop, and long blocking work that keeps no process alive."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def call_on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[*Arguments], object], *arguments: *Arguments) -> bool:
    """Has `loop` call something, from any thread; False: the loop has ended, and nobody is left to be told."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return False
    return True


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
        call_on_loop(loop, settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
