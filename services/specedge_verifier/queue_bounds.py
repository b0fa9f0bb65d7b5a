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
        from_tokens: prompts of so many tokens or more find no room either.
    """

    reason: str
    message: str
    retry_after_s: float
    from_tokens: int


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
        return found or self._by_ttft(newcomer, picture)

    def predicted_ttft_s(self, message: OpenSession, account: TenantAccount) -> float:
        """Until a session that comes now has its first token."""
        return self._predict(_newcomer(message, account))[1]

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
        return NoRoom("queue", message, bounded(picture.end_s(num_sessions - most)), from_tokens=1)

    def _by_tokens(
        self, picture: Forecast, newcomer: Waiting, waiting: list[Waiting], behind: list[Waiting], fair_part: float
    ) -> NoRoom | None:
        limit = self.limits.max_queued_tokens
        num_computing = sum(each.num_tokens for each in picture.running)
        num_queued = num_computing + sum(each.num_tokens for each in waiting)
        fair_room = 0
        if fair_part < 1.0:
            num_own = sum(each.num_tokens for each in waiting if each.account is newcomer.account)
            fair_room = int(fair_part * limit) - num_own
        if newcomer.num_tokens <= fair_room:
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
        return NoRoom("tokens", message, bounded(wait_s), from_tokens=max(fair_room, room - num_queued, 0) + 1)

    def _by_ttft(self, newcomer: Waiting, picture: Forecast) -> NoRoom | None:
        if (excess := self._ttft_excess(newcomer, picture)) is None:
            return None
        predicted_s, limit = excess
        text = f"the first token would come in {predicted_s:.1f} s, and max_predicted_ttft_s is {limit:g}"
        is_any = self._ttft_excess(newcomer._replace(num_tokens=1), picture) is not None
        return NoRoom("ttft", text, bounded(predicted_s - limit), 1 if is_any else newcomer.num_tokens)

    def _ttft_excess(self, newcomer: Waiting, picture: Forecast) -> tuple[float, float] | None:
        """Its TTFT and the limit that this exceeds; None where it does not."""
        wait_s, predicted_s = self._predict(newcomer)
        limit = max(self.limits.max_predicted_ttft_s, _PATIENCE * picture.prefill_s(newcomer.num_tokens))
        return (predicted_s, limit) if wait_s and predicted_s > limit else None

    def _predict(self, newcomer: Waiting) -> tuple[float, float]:
        """What others add to its TTFT, and this."""
        (picture, later), now_s = self._now(), self._clock()
        wait_s = picture.wait_s(newcomer, later, now_s)
        return wait_s, picture.ttft_s(newcomer, wait_s, now_s)


def _newcomer(message: OpenSession, account: TenantAccount) -> Waiting:
    return Waiting(message.priority, len(message.prompt_ids) + len(message.committed_ids), account)
