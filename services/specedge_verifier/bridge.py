"""The seam between the gRPC service (event loop) and the engine (one thread of its own)."""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from specedge.errors import SpecEdgeError
from specedge.wire.messages import DraftNodes, Draining, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState


MAX_UNSEEN: Final = 4
MAX_BEHIND_S: Final = 0.06
"""An edge that lacks more verdicts than this, and for so much longer than the line takes, has more to do than it can:
its session rests, so that it streams few answers fast and not many slowly. The time leaves room for TELL_WITHIN_S."""


class SessionSink(Protocol):
    """Where the engine puts what it has to say to one session; `opened`, `verdict` and `failed` on the loop thread."""

    on_congestion: Callable[[bool], None] | None
    """Called on the loop thread whenever `is_congested` changes; set by the engine."""

    @property
    def is_congested(self) -> bool:
        """The peer reads too slowly: nothing more should be computed for it yet."""

    def opened(self, message: SessionOpened) -> None:
        """The session has been admitted; comes first."""

    def verdict(self, message: Verdict) -> None:
        """Tokens were committed; the one with a finish reason is the last call."""

    def failed(self, error: SpecEdgeError) -> None:
        """The session has ended with an error; the last call."""


class Engine(Protocol):
    """What the gRPC service needs of an engine. Every method is thread-safe and never blocks."""

    @property
    def is_healthy(self) -> bool:
        """False once the engine thread has died."""

    @property
    def num_sessions(self) -> int:
        """Sessions waiting or running."""

    def info(self) -> ServerInfo:
        """What is served."""

    def open(
        self,
        message: OpenSession,
        sink: SessionSink,
        grammar: "GrammarState | None" = None,
        account: TenantAccount | None = None,
    ) -> int:
        """Queues a session and returns its handle; `grammar` is what it must follow, at its committed tokens.

        Without an account the session is no tenant's. Raises InvalidRequest (a bad value), TenantLimit (its tenant has
        all it may), CapacityExceeded (queue full), VerifierUnavailable (draining), EngineDead.
        """
        ...

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        """Hands over draft nodes; a session that has ended ignores them. Errors found later go to `failed`."""

    def close(self, handle: int) -> None:
        """Ends a session and frees what it holds; one that has ended already is left alone."""

    def drain(self) -> None:
        """Refuses new sessions from now on."""


class Outbox:
    """The SessionSink of one stream: a queue between the engine and the stream's writer.

    Args:
        max_unsent: messages waiting beyond which the session counts as congested, until half of them are gone.
        is_paced: any waiting message is congestion, and it lasts until `release`.
        clock: steady time in seconds; None: the event loop's.
    """

    def __init__(self, max_unsent: int, *, is_paced: bool = False, clock: Callable[[], float] | None = None) -> None:
        self.on_congestion: Callable[[bool], None] | None = None
        self.num_verdicts_taken = 0
        self._max_unsent = 0 if is_paced else max_unsent
        self._is_paced = is_paced
        self._messages: deque[SessionOpened | Verdict | Draining] = deque()
        self._error: SpecEdgeError | None = None
        self._is_closed = False
        self._is_congested = False
        self._waiter: asyncio.Future[None] | None = None
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._unseen: deque[float] | None = None  # when verdicts came that the peer lacks, where it tells
        self._num_seen = 0
        self._line_s = inf  # the least that a verdict took, and the word of it to come back, as far as is known

    @property
    def is_congested(self) -> bool:
        """The peer reads too slowly."""
        return self._is_congested

    def opened(self, message: SessionOpened) -> None:
        """Queues the first message."""
        self._put(message)

    def verdict(self, message: Verdict) -> None:
        """Queues a verdict; the one with a finish reason ends the stream."""
        self._put(message)
        if message.finish_reason:
            self.close()

    def draining(self) -> None:
        """Queues the word that the session had better go on elsewhere, before everything else."""
        if not self._is_closed:
            self._messages.appendleft(Draining())
            self._wake()

    def failed(self, error: SpecEdgeError) -> None:
        """Ends the stream with `error`, after what is queued; an end that is already settled stays."""
        if not self._is_closed:
            self._error = error
            self.close()

    def close(self) -> None:
        """Takes no more messages; those queued are still sent."""
        self._is_closed = True
        self._wake()

    def discard(self) -> None:
        """Drops what is queued and ends the stream: the peer has closed it."""
        self._messages.clear()
        self.close()

    @property
    def is_ready(self) -> bool:
        """`get` returns or raises at once."""
        return bool(self._messages) or self._is_closed

    async def wait(self) -> None:
        """Returns once `is_ready` holds."""
        while not self.is_ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def get(self) -> SessionOpened | Verdict | Draining | None:
        """Waits, then takes."""
        await self.wait()
        return self.take()

    def take(self) -> SessionOpened | Verdict | Draining | None:
        """The next message to send, once `is_ready`; None at a proper end. Raises the error the session failed with."""
        if not self._messages:
            if self._error is not None:
                raise self._error
            return None
        message = self._messages.popleft()
        if isinstance(message, Verdict):
            self.num_verdicts_taken += 1
        if not self._is_paced:
            self.release()
        return message

    def follow_progress(self, round_trip_s: float | None = None) -> None:
        """The peer says what it has processed: a session of one that is behind counts as congested, too.

        A backlog that was there before the session is in all of its verdicts: only one that knows how far away it is
        can be told from one that is far away.
        """
        if not self._is_paced:
            self._unseen = deque()
            self._line_s = inf if round_trip_s is None else round_trip_s

    def seen(self, num_verdicts: int) -> None:
        """The peer has processed so many verdicts."""
        if self._unseen is None or num_verdicts <= self._num_seen:
            return
        num_verdicts, self._num_seen = num_verdicts - self._num_seen, num_verdicts
        for _ in range(min(num_verdicts, len(self._unseen))):
            self._line_s = min(self._line_s, self._clock() - self._unseen.popleft())
        self.release()

    def release(self) -> None:
        """Ends the congestion if enough has been taken, and seen."""
        if self._is_congested and len(self._messages) <= self._max_unsent // 2 and not self._is_behind(0.5):
            self._set_congested(False)

    def _put(self, message: SessionOpened | Verdict) -> None:
        if self._is_closed:
            return
        self._messages.append(message)
        if self._unseen is not None and isinstance(message, Verdict):
            self._unseen.append(self._clock())
        if not self._is_congested and (len(self._messages) > self._max_unsent or self._is_behind()):
            self._set_congested(True)
        self._wake()

    def _is_behind(self, part: float = 1.0) -> bool:
        """Whether the peer lacks more than these parts of both bounds; never while its way is unknown."""
        if not self._unseen or len(self._unseen) <= part * MAX_UNSEEN:
            return False
        return self._clock() - self._unseen[0] > part * MAX_BEHIND_S + self._line_s

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_congested(self, is_congested: bool) -> None:
        self._is_congested = is_congested
        if self.on_congestion is not None:
            self.on_congestion(is_congested)
