"""Whether there is room for one more session: by sessions, by tokens waiting to be computed, by its predicted TTFT.

Rule 1  What waits behind a newcomer, because its priority is lower, takes none of its room; but in all there is never
        more than twice the queue.
Rule 2  A session that goes on with an answer was admitted before: only the number of sessions bounds it.
Rule 3  A prompt is taken, however long, where nothing is before it; one that takes long by itself may wait as long.
Rule 4  Who is refused is told when there will be room if nobody else comes: predicted from what is measured.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from specedge.wire.messages import OpenSession
from specedge_verifier.forecast import Forecast, Waiting
from specedge_verifier.tenant_account import TenantAccount

MIN_RETRY_AFTER_S = 0.25
MAX_RETRY_AFTER_S = 60.0
_MARGIN = 1.2
"""Of a predicted time: one that comes back a moment too early is refused once more."""

_PATIENCE = 2.0  # Rule 3


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the queue.

    Attributes:
        max_sessions: running and waiting.
        max_queued_tokens: of prompts, waiting and not computed yet.
        max_predicted_ttft_s: with which a session is still taken.
    """

    max_sessions: int
    max_queued_tokens: int = 2**18
    max_predicted_ttft_s: float = 20.0


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why a session is refused.

    Attributes:
        reason: "queue" (sessions), "tokens" or "ttft".
        message: names value and limit.
        retry_after_s: until there is room.
    """

    reason: str
    message: str
    retry_after_s: float


def bounded(seconds: float) -> float:
    """A predicted time as it is told."""
    return min(max(_MARGIN * seconds, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


class QueueBounds:
    """Keeps the bounds. Used by the thread that opens sessions.

    Args:
        limits: the bounds.
        picture: the engine's latest.
        clock: the engine's.
    """

    def __init__(self, limits: QueueLimits, picture: Callable[[], Forecast], clock: Callable[[], float]) -> None:
        self.limits = limits
        self._picture = picture
        self._clock = clock
        self._later: deque[Waiting] = deque()  # opened, and not yet in the picture
        self._num_opened = 0

    def opened(self, message: OpenSession, account: TenantAccount) -> None:
        """Count a session that will be in a later picture."""
        self._num_opened += 1
        self._later.append(_newcomer(message, account))

    def find(self, message: OpenSession, account: TenantAccount, num_sessions: int, fair_part: float) -> NoRoom | None:
        """What keeps a session out; None: nothing.

        Args:
            message: its opening.
            account: its tenant's.
            num_sessions: running and waiting, all tenants together.
            fair_part: of the queue that is the tenant's, whatever the others have: 1 where it is alone.
        """
        picture, later = self._now()
        newcomer, waiting = _newcomer(message, account), [*picture.waiting, *later]
        behind = [each for each in waiting if each.account is account and each.priority < newcomer.priority]
        if found := self._by_sessions(picture, num_sessions, len(behind)):
            return found
        if message.committed_ids:
            return None
        found = self._by_tokens(picture, newcomer, waiting, behind, fair_part)
        return found or self._by_ttft(message, account, picture)

    def predicted_ttft_s(self, message: OpenSession, account: TenantAccount) -> float:
        """Until a session that comes now has its first token."""
        return self._predict(message, account)[1]

    def end_s(self, account: TenantAccount) -> float:
        """Until a tenant's next session has ended, as it is told."""
        picture, _ = self._now()
        return bounded(picture.end_s(0, account))

    def _now(self) -> tuple[Forecast, list[Waiting]]:
        picture = self._picture()
        while len(self._later) > self._num_opened - picture.num_opened:
            self._later.popleft()
        return picture, [*self._later]

    def _by_sessions(self, picture: Forecast, num_sessions: int, num_behind: int) -> NoRoom | None:
        limit = self.limits.max_sessions
        most = limit + min(num_behind, max(0, limit - picture.max_running))  # Rule 1
        if num_sessions < most:
            return None
        message = f"{num_sessions} sessions are running or waiting, the limit is {limit}"
        return NoRoom("queue", message, bounded(picture.end_s(num_sessions - most)))

    def _by_tokens(
        self, picture: Forecast, newcomer: Waiting, waiting: list[Waiting], behind: list[Waiting], fair_part: float
    ) -> NoRoom | None:
        limit = self.limits.max_queued_tokens
        num_computing = sum(each.num_tokens for each in picture.running)
        num_queued = num_computing + sum(each.num_tokens for each in waiting)
        own = [each for each in waiting if each.account is newcomer.account]
        if fair_part < 1.0 and sum(each.num_tokens for each in own) + newcomer.num_tokens <= fair_part * limit:
            return None
        room = limit + min(sum(each.num_tokens for each in behind), limit)  # Rule 1
        excess = num_queued + newcomer.num_tokens - room
        if excess <= 0 or not num_queued:
            return None
        message = (
            f"{num_queued} tokens of prompts wait to be computed, and {newcomer.num_tokens} more would exceed "
            f"max_queued_tokens, {limit}"
        )
        wait_s, num_left = picture.prefill_s(min(excess, num_queued)), excess - num_computing
        for index, each in enumerate(waiting):  # who waits for a place is computed when it has one
            if num_left <= 0:
                break
            num_left -= each.num_tokens
            wait_s = max(wait_s, picture.end_s(index))
        return NoRoom("tokens", message, bounded(wait_s))

    def _by_ttft(self, message: OpenSession, account: TenantAccount, picture: Forecast) -> NoRoom | None:
        wait_s, predicted_s = self._predict(message, account)
        limit = max(self.limits.max_predicted_ttft_s, _PATIENCE * picture.prefill_s(len(message.prompt_ids)))
        if not wait_s or predicted_s <= limit:
            return None
        text = f"the first token would come in {predicted_s:.1f} s, and max_predicted_ttft_s is {limit:g}"
        return NoRoom("ttft", text, bounded(predicted_s - limit))

    def _predict(self, message: OpenSession, account: TenantAccount) -> tuple[float, float]:
        """What others add to its TTFT, and this."""
        (picture, later), newcomer, now_s = self._now(), _newcomer(message, account), self._clock()
        wait_s = picture.wait_s(newcomer, later, now_s)
        return wait_s, picture.ttft_s(newcomer, wait_s, now_s)


def _newcomer(message: OpenSession, account: TenantAccount) -> Waiting:
    return Waiting(message.priority, len(message.prompt_ids) + len(message.committed_ids), account)
