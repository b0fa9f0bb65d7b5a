"""The engine as a stream process sees it: the same `Engine`, at the other end of a link.

What `open` would refuse at once arrives as the session's failure instead, with the same error.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from specedge.errors import SpecEdgeError, VerifierDraining
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.bridge import SessionSink
from specedge_verifier.frame_link import Message
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.spec import GrammarSpec
    from specedge.grammar.state import GrammarState
    from specedge.sampling import SamplingParams


class RemoteEngine:
    """Implements `specedge_verifier.bridge.Engine` for one stream process, on its event loop.

    Args:
        info: what is served.
        put: sends a message to the engine's process.

    Attributes:
        handlers: of the messages that come from there.
    """

    def __init__(self, info: ServerInfo, put: Callable[[Message], None]) -> None:
        self._info = info
        self._put = put
        self._sinks: dict[int, SessionSink] = {}
        self._next_handle = 0
        self._is_draining = False
        self.is_healthy = True
        self.num_sessions = 0
        self.handlers: Mapping[str, Callable[..., object]] = {
            "opened": self._opened,
            "verdict": self._verdict,
            "failed": self._failed,
            "state": self._state,
        }

    def info(self) -> ServerInfo:
        return self._info

    def drain(self) -> None:
        self._is_draining = True

    def open(
        self,
        message: OpenSession,
        sink: SessionSink,
        grammar: "GrammarState | None" = None,
        account: TenantAccount | None = None,
    ) -> int:
        """See `Engine.open`; the grammar is compiled and the tenant's account kept where the engine is."""
        if self._is_draining:
            raise VerifierDraining("the verifier is shutting down", retry_after_s=1.0)
        handle = self._next_handle
        self._next_handle += 1
        self._sinks[handle] = sink
        sink.on_congestion = partial(self._pause, handle)
        self._put(("open", handle, message, None if account is None else account.name, sink.is_congested))
        return handle

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        """See `Engine.draft`."""
        if handle in self._sinks:
            self._put(("draft", handle, nodes.token_ids, nodes.parents, nodes.scores, nodes.num_verdicts_seen))

    def close(self, handle: int) -> None:
        """See `Engine.close`."""
        if self._sinks.pop(handle, None) is not None:
            self._put(("close", handle))

    def _pause(self, handle: int, is_paused: bool) -> None:
        if handle in self._sinks:
            self._put(("pause", handle, is_paused))

    def _opened(self, handle: int, message: SessionOpened) -> None:
        if (sink := self._sinks.get(handle)) is not None:
            sink.opened(message)

    def _verdict(self, handle: int, *fields: Any) -> None:
        sink = self._sinks.get(handle)
        if sink is None:
            return
        verdict = Verdict(*fields)
        if verdict.finish_reason:
            del self._sinks[handle]
        sink.verdict(verdict)

    def _failed(self, handle: int, error: SpecEdgeError) -> None:
        if (sink := self._sinks.pop(handle, None)) is not None:
            sink.failed(error)

    def _state(self, is_healthy: bool, num_sessions: int) -> None:
        self.is_healthy, self.num_sessions = is_healthy, num_sessions


class RemoteGrammars:
    """Implements `Grammars` by leaving it to the engine's process, which has the grammar in the opening message."""

    def begin(
        self, spec: "GrammarSpec", sampling: "SamplingParams", committed_ids: Sequence[int] = ()
    ) -> "Future[GrammarState | None]":
        """Nothing, at once."""
        future: Future[GrammarState | None] = Future()
        future.set_result(None)
        return future
