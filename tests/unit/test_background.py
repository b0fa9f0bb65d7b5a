"""Threads beside an event loop, and one that the loop has left behind."""

import asyncio
import threading

import pytest

from specedge.background import call_on_loop, start_in_background


async def test_a_thread_calls_on_the_loop() -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert await asyncio.to_thread(call_on_loop, told.get_loop(), told.set_result, "news")
    async with asyncio.timeout(10):
        assert await told == "news"


async def test_work_ends_with_its_result_or_its_error() -> None:
    async with asyncio.timeout(10):
        assert await start_in_background(lambda: 7, "seven") == 7
        with pytest.raises(ZeroDivisionError):
            await start_in_background(lambda: 1 / 0, "never")


def test_a_loop_that_has_ended_is_told_nothing_and_work_may_outlive_it() -> None:
    may_end = threading.Event()

    def work() -> None:
        assert may_end.wait(10)

    async def leave_it() -> asyncio.AbstractEventLoop:
        start_in_background(work, "left behind")
        return asyncio.get_running_loop()

    loop = asyncio.run(leave_it())
    told: list[str] = []
    assert not call_on_loop(loop, told.append, "news")
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "left behind")
    may_end.set()
    thread.join(10)  # an error of the thread would fail this test as a warning
    assert not thread.is_alive() and not told
