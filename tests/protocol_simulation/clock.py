"""An event loop without sockets and threads whose time is virtual and whose order depends on nothing but its tasks."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

TASKS: ContextVar["list[Task] | None"] = ContextVar("tasks of the process", default=None)
"""Where tasks begun in this context are listed: those of one simulated process."""


class Task(asyncio.Task[Any]):
    """A task that sets hold in order of creation, wherever it lies in memory."""

    number = 0

    def __hash__(self) -> int:
        return self.number


MAX_TURNS_WITHOUT_TIME = 10_000


class _Timers:
    """In place of a selector: instead of waiting it moves the clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._num_turns = 0

    def select(self, timeout_s: float | None) -> tuple[()]:
        if timeout_s is None:
            raise RuntimeError("nothing will ever happen again")
        before_s = self.now_s
        self.now_s += timeout_s
        self._num_turns = 0 if self.now_s > before_s else self._num_turns + 1
        if self._num_turns > MAX_TURNS_WITHOUT_TIME:
            raise RuntimeError(f"for ever busy at {self.now_s:.4f} s")
        return ()


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one simulation."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Timers()
        self._num_tasks = 0
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Virtual seconds since it was made."""
        return self._selector.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Runs the function here and now."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _make_task(self, loop: Any, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> Task:
        task = Task(coroutine, loop=loop, context=context)
        self._num_tasks += 1
        task.number = self._num_tasks
        tasks = TASKS.get() if context is None else context.get(TASKS)
        if tasks is not None:
            tasks.append(task)
        return task

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
