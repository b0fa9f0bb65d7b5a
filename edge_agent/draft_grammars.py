"""Compiles the grammars that drafts follow, once a request has one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from specedge.drafting.draft_session import DraftRequest
from specedge.grammar.session_grammars import SessionGrammars

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

MakeGrammars = Callable[[Sequence[int]], SessionGrammars]
"""From the target's end-of-sequence tokens."""


class DraftGrammars:
    """The grammars of one draft source.

    Args:
        make: called for the first request with a grammar; None: drafts do not follow grammars.
    """

    def __init__(self, make: MakeGrammars | None) -> None:
        self._make = make
        self._grammars: SessionGrammars | None = None

    def begin(self, request: DraftRequest, bind: "Callable[[GrammarState], object]") -> None:
        """Compiles the request's grammar, if it has one; to be called on the event loop thread.

        Args:
            request: a session that is being opened.
            bind: takes the state at the beginning of the answer, on another thread; not called if there is none.
        """
        spec = request.sampling.grammar
        if spec is None or self._make is None:
            return
        if self._grammars is None:
            self._grammars = self._make(request.eos_ids)

        def compiled(state: "Future[GrammarState]") -> None:
            if not state.cancelled() and state.exception() is None:
                bind(state.result())

        self._grammars.begin(spec, request.sampling).add_done_callback(compiled)

    def close(self) -> None:
        """Ends what is being compiled."""
        if self._grammars is not None:
            self._grammars.close()
