"""Compiles the grammars of sessions beside the thread that serves them.

Neither xgrammar nor the vocabulary is loaded before a grammar is asked for or `start` is called: a process that
is never asked for one pays nothing.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from specedge.errors import InvalidRequest, ModelLoadError
from specedge.grammar.spec import GrammarSpec
from specedge.sampling import SamplingParams

if TYPE_CHECKING:
    from specedge.grammar.compiler import GrammarCompiler
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

PACKAGES: Final = ("xgrammar", "llguidance")
MAX_AT_ONCE: Final = 32
"""Sessions whose grammars are looked up or waited for; each holds a thread, which mostly waits."""


def has_grammars() -> bool:
    """Whether the packages that grammars need are installed."""
    return all(find_spec(package) is not None for package in PACKAGES)


class SessionGrammars:
    """Grammar states on request.

    Args:
        make_compiler: called once, on a thread of this object.
    """

    def __init__(self, make_compiler: "Callable[[], GrammarCompiler]") -> None:
        self._make_compiler = make_compiler
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="grammars")
        self._lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None
        self._failure = ""
        self._is_closed = False

    def start(self) -> None:
        """Load in the background what the first grammar needs, which would wait for it."""
        self._threads.submit(self._start)

    def begin(
        self, spec: GrammarSpec, sampling: SamplingParams, committed_ids: Sequence[int] = ()
    ) -> "Future[GrammarState]":
        """A session's state after `committed_ids`.

        The future raises InvalidRequest (the grammar is refused, or does not admit these tokens) or CapacityExceeded
        (the machine is too busy to compile it now).
        """
        return self._threads.submit(self._state, spec, sampling.stop_token_ids, committed_ids)

    def close(self) -> None:
        """End what runs, the compiling process too."""
        with self._lock:
            self._is_closed = True
            compiler = self._compiler
        if compiler is not None:
            compiler.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _state(self, spec: GrammarSpec, stop_token_ids: Iterable[int], committed_ids: Sequence[int]) -> "GrammarState":
        state = self._loaded(spec.param).compile(spec).start(stop_token_ids)
        if state.accept(committed_ids) < len(committed_ids) or (committed_ids and state.is_ended):
            message = f"{len(committed_ids)} committed tokens cannot be continued under the {spec.kind}"
            raise InvalidRequest(message, "committed_ids")
        return state

    def _start(self) -> None:
        try:
            self._loaded("").start()
        except Exception:
            logger.warning("grammars cannot be compiled yet", exc_info=True)

    def _loaded(self, param: str) -> "GrammarCompiler":
        with self._lock:
            if self._compiler is None and not self._failure and not self._is_closed:
                self._load()
            if self._compiler is None or self._is_closed:
                raise InvalidRequest(f"structured output is not served here: {self._failure or 'stopped'}", param)
            return self._compiler

    def _load(self) -> None:
        if not has_grammars():
            self._failure = f"it needs the packages {' and '.join(PACKAGES)}"
            return
        try:
            self._compiler = self._make_compiler()
        except ModelLoadError as error:
            self._failure = str(error)
