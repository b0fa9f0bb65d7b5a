"""The sessions of one stream process, where the engine is: what arrives there is handed to the engine, and back."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from specedge.errors import InvalidRequest, ProtocolError, SpecEdgeError, VerifierDraining, VerifierUnavailable
from specedge.wire.messages import DraftNodes, OpenSession, SessionOpened, Verdict
from specedge_verifier.bridge import Engine
from specedge_verifier.engine import MAX_QUEUED_DRAFTS
from specedge_verifier.frame_link import Message
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.session_grammars import SessionGrammars
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

FindAccount = Callable[[str], TenantAccount | None]


class RemoteSessions:
    """Sessions by the numbers that their process has given them; everything on the event loop.

    Args:
        engine: runs them.
        grammars: compiles what they must follow; None: such sessions are refused.
        find_account: the account of a tenant; None: not known here, or not yet.
        put: sends a message to their process.

    Attributes:
        handlers: of the messages that come from there.
    """

    def __init__(
        self,
        engine: Engine,
        grammars: "SessionGrammars | None",
        find_account: FindAccount,
        put: Callable[[Message], None],
    ) -> None:
        self._engine = engine
        self._grammars = grammars
        self._find_account = find_account
        self._put = put
        self._sessions: dict[int, _RemoteSession] = {}
        self.handlers: Mapping[str, Callable[..., object]] = {
            "open": self._open,
            "draft": self._draft,
            "close": self._close,
            "pause": self._pause,
        }

    def __len__(self) -> int:
        return len(self._sessions)

    def close_all(self) -> None:
        """Frees what they hold: their process is gone."""
        for number in [*self._sessions]:
            self._close(number)

    def _open(self, number: int, opening: OpenSession, tenant: str | None, is_congested: bool) -> None:
        session = _RemoteSession(number, self._put, self._sessions, is_congested)
        self._sessions[number] = session
        with self._failing(session, opening):
            account = None if tenant is None else self._account(tenant)
            if opening.sampling.grammar is None:
                self._begin(session, opening, account, None)
            else:
                self._follow(session, opening, account)

    @contextmanager
    def _failing(self, session: "_RemoteSession", opening: OpenSession) -> Iterator[None]:
        """What goes wrong inside ends this session alone."""
        try:
            yield
        except SpecEdgeError as error:
            self._fail(session, error)
        except (CancelledError, asyncio.CancelledError):
            self._fail(session, VerifierDraining("the verifier is shutting down", retry_after_s=1.0))
        except Exception:
            logger.exception("session %s: it could not be opened", opening.request_id)
            self._fail(session, SpecEdgeError("the verifier failed to open the session"))

    def _fail(self, session: "_RemoteSession", error: SpecEdgeError) -> None:
        if session.handle is not None:
            self._engine.close(session.handle)
        session.failed(error)

    def _account(self, tenant: str) -> TenantAccount:
        account = self._find_account(tenant)
        if account is None:  # the file has changed, and this process has not looked at it yet
            raise VerifierUnavailable(f"the tenant {tenant} is not known yet; retry", retry_after_s=1.0)
        return account

    def _begin(
        self,
        session: "_RemoteSession",
        opening: OpenSession,
        account: TenantAccount | None,
        grammar: "GrammarState | None",
    ) -> None:
        session.handle = self._engine.open(opening, session, grammar, account)
        for nodes in session.waiting:
            self._engine.draft(session.handle, nodes)
        session.waiting.clear()

    def _follow(self, session: "_RemoteSession", opening: OpenSession, account: TenantAccount | None) -> None:
        spec = opening.sampling.grammar
        assert spec is not None
        if self._grammars is None:
            raise InvalidRequest("structured output is not served here", spec.param)
        following = asyncio.wrap_future(self._grammars.begin(spec, opening.sampling, opening.committed_ids))
        following.add_done_callback(partial(self._followed, session, opening, account))

    def _followed(
        self,
        session: "_RemoteSession",
        opening: OpenSession,
        account: TenantAccount | None,
        following: "asyncio.Future[GrammarState]",
    ) -> None:
        with self._failing(session, opening):
            grammar = following.result()
            if session.number in self._sessions:
                self._begin(session, opening, account, grammar)

    def _draft(
        self,
        number: int,
        token_ids: Sequence[int],
        parents: Sequence[int],
        scores: Sequence[float],
        num_verdicts_seen: int,
    ) -> None:
        session = self._sessions.get(number)
        if session is None:
            return
        nodes = DraftNodes(token_ids, parents, scores, num_verdicts_seen)
        if session.handle is None:
            session.wait(nodes)
            return
        try:
            self._engine.draft(session.handle, nodes)
        except SpecEdgeError as error:
            self._fail(session, error)

    def _close(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is not None and session.handle is not None:
            self._engine.close(session.handle)

    def _pause(self, number: int, is_paused: bool) -> None:
        if (session := self._sessions.get(number)) is not None:
            session.is_congested = is_paused
            if session.on_congestion is not None:
                session.on_congestion(is_paused)


class _RemoteSession:
    """Implements `SessionSink`; `handle` is the engine's, None until it has the session."""

    __slots__ = ("_put", "_sessions", "handle", "is_congested", "number", "on_congestion", "waiting")

    def __init__(
        self,
        number: int,
        put: Callable[[Message], None],
        sessions: "dict[int, _RemoteSession]",
        is_congested: bool,
    ) -> None:
        self.number = number
        self.is_congested = is_congested
        self.on_congestion: Callable[[bool], None] | None = None
        self.handle: int | None = None
        self.waiting: list[DraftNodes] = []
        self._put = put
        self._sessions = sessions

    def wait(self, nodes: DraftNodes) -> None:
        """Keeps nodes for when the engine has the session."""
        if len(self.waiting) < MAX_QUEUED_DRAFTS:
            self.waiting.append(nodes)
        else:
            self.failed(
                ProtocolError(f"{len(self.waiting)} draft messages of this session are unread, the limit is reached")
            )

    def opened(self, message: SessionOpened) -> None:
        self._put(("opened", self.number, message))

    def verdict(self, message: Verdict) -> None:
        if message.finish_reason:
            self._sessions.pop(self.number, None)
        self._put(("verdict", self.number, *message))

    def failed(self, error: SpecEdgeError) -> None:
        """Tells the process, unless it has closed the session meanwhile."""
        if self._sessions.pop(self.number, None) is not None:
            self._put(("failed", self.number, error))
