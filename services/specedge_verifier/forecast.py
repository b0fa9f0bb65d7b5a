"""What becomes of a session that would come now: a picture of the engine between two steps, and what follows from it.

Rule 1  A session begins when it has a place and the prompts before it are computed, whichever is later.
Rule 2  Places become free as running answers end: their lengths and speed are learnt, and `max_tokens` bounds them.
Rule 3  Prompts are computed at the speed of the learnt step times, in what sessions that decode leave of a step.
Rule 4  A tenant among several waits for what its own share gives it, or for everybody, whichever is sooner.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from specedge_verifier.step_time import StepTime
from specedge_verifier.tenant_account import TenantAccount

if TYPE_CHECKING:
    from specedge_verifier.scheduler import Planned, Scheduler

_ANSWER_TOKENS = 256
"""Of an answer, before any has been seen."""


_by_end = attrgetter("ends_s")


class Waiting(NamedTuple):
    """A session that has no place yet."""

    priority: int
    num_tokens: int  # to be computed
    account: TenantAccount


class Running(NamedTuple):
    """A session that has a place."""

    ends_s: float  # from now
    num_tokens: int  # to be computed before it decodes
    account: TenantAccount


@dataclass(frozen=True, slots=True)
class Forecast:
    """The picture; plain data, read by any thread.

    Attributes:
        taken_s: when, by the engine's clock.
        num_opened: sessions that the engine had taken in.
        max_running: places.
        max_rows: of a step.
        step_time: the learnt curve.
        step_s: from step to step.
        answer_s: that a whole answer takes.
        running: sessions with a place, the first to end first.
        waiting: sessions without, in order.
        num_free_blocks: of the pool, 0 while a session waits for some.
        block_size: tokens of a block.
    """

    taken_s: float
    num_opened: int
    max_running: int
    max_rows: int
    step_time: StepTime
    step_s: float
    answer_s: float
    running: Sequence[Running] = ()
    waiting: Sequence[Waiting] = ()
    num_free_blocks: int = 0
    block_size: int = 16
    weights: dict[TenantAccount, float] = field(default_factory=dict)

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of prompts that wait to be computed."""
        return sum(each.num_tokens for each in self.running) + sum(each.num_tokens for each in self.waiting)

    @property
    def predicted_ttft_s(self) -> float:
        """Of a prompt of one token; 0 where nothing runs."""
        if not self.running:
            return 0.0
        newcomer = Waiting(0, 1, TenantAccount())
        num_missing = len(self.running) + len(self.waiting) + 1 - self.max_running
        wait_s = self._wait_s(newcomer, self.waiting, self.running, num_missing, self.max_running, 0.0)
        return wait_s + self.prefill_s(1)

    def prefill_s(self, num_tokens: float) -> float:
        """Until prompts of so many tokens are computed (Rule 3)."""
        num_decoding = sum(not session.num_tokens for session in self.running)
        per_step = max(1, self.max_rows - num_decoding)
        num_full, rest = divmod(num_tokens, per_step)
        last_s = self.step_time.seconds(num_decoding + rest) if rest else 0.0
        return num_full * self.step_time.seconds(self.max_rows) + last_s

    def end_s(self, index: int, account: TenantAccount | None = None) -> float:
        """Until so many sessions more have ended, from 0 for the next one; those of one tenant, or of all."""
        ends = [session.ends_s for session in self.running if account in (None, session.account)]
        if not ends:
            return self.answer_s * (1 + index / self.max_running)
        rounds, index = divmod(index, len(ends))
        return ends[index] + rounds * self.answer_s

    def wait_s(self, newcomer: Waiting, later: Sequence[Waiting], now_s: float) -> float:
        """What those before it add to the time until a session that comes now has its first token (Rules 1 and 4).

        Args:
            newcomer: the session.
            later: those that came after the picture was taken.
            now_s: by the engine's clock.
        """
        account, age_s = newcomer.account, now_s - self.taken_s
        ahead = [
            each
            for each in (*self.waiting, *later)
            if each.account is not account or each.priority >= newcomer.priority
        ]
        num_missing = len(self.running) + len(ahead) + 1 - self.max_running
        if self.running and -(-(newcomer.num_tokens + 1) // self.block_size) > self.num_free_blocks:
            num_missing = max(num_missing, len(ahead) + 1)
        wait_s = self._wait_s(newcomer, ahead, self.running, num_missing, self.max_running, age_s)
        total = sum(self.weights.values()) + (0.0 if account in self.weights else account.limits.weight)
        if (share := account.limits.weight / total) < 1.0:
            own = [each for each in ahead if each.account is account]
            running = [each for each in self.running if each.account is account]
            num_places = max(1, int(share * self.max_running))
            num_missing = len(running) + len(own) + 1 - num_places
            wait_s = min(wait_s, self._wait_s(newcomer, own, running, num_missing, num_places, age_s, share))
        return wait_s

    def ttft_s(self, newcomer: Waiting, wait_s: float, now_s: float) -> float:
        """Until it has its first token, if others add `wait_s`; in the present step nothing begins."""
        present_s = max(0.0, self.taken_s + self.step_s - now_s) if self.running else 0.0
        return max(wait_s, present_s) + self.prefill_s(newcomer.num_tokens)

    def _wait_s(
        self,
        newcomer: Waiting,
        ahead: Sequence[Waiting],
        running: Sequence[Running],
        num_missing: int,
        num_places: int,
        age_s: float,
        share: float = 1.0,
    ) -> float:
        place_s = 0.0
        if num_missing > 0:
            ends = [*(each.ends_s for each in running), *[self.answer_s] * (num_places - len(running))]
            rounds, index = divmod(num_missing - 1, len(ends))
            place_s = max(0.0, ends[index] + rounds * self.answer_s - age_s)
        num_ahead = sum(each.num_tokens for each in running) + sum(each.num_tokens for each in ahead)
        own_s, all_s = (self.prefill_s(num) for num in (newcomer.num_tokens, newcomer.num_tokens + num_ahead / share))
        return max(place_s, all_s - own_s)


def forecast(
    scheduler: "Scheduler",
    num_opened: int,
    now_s: float,
    planned: Sequence["Planned"] = (),
    before: Forecast | None = None,
) -> Forecast:
    """The picture of now.

    Args:
        scheduler: has decided.
        num_opened: sessions it was ever given.
        now_s: by the engine's clock.
        planned: what is computed at this moment: counts as done when its step has ended.
        before: the last picture; where nothing runs, an answer takes what it took then.
    """
    rate, limits, pool = scheduler.service_rate, scheduler.limits, scheduler.pool
    running, waiting = scheduler.running, scheduler.waiting
    step_s = rate.step_s or scheduler.step_time.seconds(1)
    token_s = step_s / rate.tokens_per_root
    answer_s, ends_s = _ANSWER_TOKENS * token_s if before is None else before.answer_s, []
    if running:
        generated = [session.num_generated for session in running]
        longest = [session.params.max_tokens for session in running]
        remaining = scheduler.answer_lengths.remaining([*generated, *[0] * len(running)], [*longest, *longest])
        ends_s = (token_s * remaining[: len(running)]).tolist()
        answer_s = token_s * float(remaining[len(running) :].mean())
    computing = {item.session: item.num_chunk for item in planned if item.num_chunk > 1}
    seen = [
        Running(
            end_s,
            uncomputed - computing.get(session, 0) if (uncomputed := session.num_uncomputed) > 1 else 0,
            session.account,
        )
        for end_s, session in zip(ends_s, running, strict=True)
    ]
    return Forecast(
        taken_s=now_s,
        num_opened=num_opened,
        max_running=limits.max_batch_size,
        max_rows=limits.max_num_batched_tokens,
        step_time=scheduler.step_time,
        step_s=step_s,
        answer_s=answer_s,
        running=sorted(seen, key=_by_end),
        waiting=[Waiting(session.priority, session.num_uncomputed, session.account) for session in waiting],
        num_free_blocks=0 if waiting else pool.num_free,
        block_size=pool.block_size,
        weights={session.account: session.account.limits.weight for session in (*running, *waiting)},
    )
