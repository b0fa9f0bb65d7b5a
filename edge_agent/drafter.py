"""The drafter: one thread with the draft model serves all local sessions.

Life of a draft step:
1. Commands from the event loop (open, verdict, restart, pause, close) are applied.
2. `schedule`: every session says what it would compute; rows are shared among all of them, slots are taken.
3. `forward` and `rank`: one batch through the draft model, children ranked on the device.
4. Verdicts that came meanwhile are applied first, so that results for dead nodes are dropped.
5. `settle`: children join the tries; messages with what is new go to the event loop in one call.
When nothing is worth drafting the thread sleeps until a command arrives.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from time import perf_counter
from typing import Protocol

import torch

from edge_agent.command_inbox import Command, CommandInbox
from edge_agent.draft_session import DraftingSettings, DraftRequest, SessionDrafting
from edge_agent.draft_source import OnNodes
from edge_agent.draft_stats import DrafterStats, StepReport
from edge_agent.draft_step import DraftStep, Share, share_rows
from edge_agent.growth import Candidates
from edge_agent.ranking import ChildRanking
from edge_agent.rounds import RoundDrafting
from specedge.block_pool import BlockPool
from specedge.model.batch import PackedBatch
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes

logger = logging.getLogger(__name__)

_MAX_EXPANSION_ROWS = 128
_MAX_CATCH_UP_ROWS = 128


class DraftRunner(Protocol):
    """The draft model: `specedge.model.runner.ModelRunner`, or a fake."""

    @property
    def num_slots(self) -> int:
        """KV slots, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def device(self) -> torch.device:
        """Where the logits are."""

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of the wanted rows, float32 [num_wanted, vocab_size]."""


class Drafter:
    """Drafts for all sessions of this process; implements `edge_agent.draft_source.DraftSource`.

    Args:
        runner: the draft model; used by this object's thread alone from now on.
        drafter_id: names the model and its settings.
        settings: how sessions draft.
        vocab_size: token ids both models know; ids from here on are not drafted.
        coupled: rank children with the target's noise.
        on_step: told about every draft step, on the drafter's thread.
    """

    def __init__(
        self,
        runner: DraftRunner,
        *,
        drafter_id: str,
        settings: DraftingSettings,
        vocab_size: int | None = None,
        coupled: bool = True,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.drafter_id = drafter_id
        self.stats = DrafterStats()
        self.pool = BlockPool(runner.num_slots, block_size=1)
        width = max(settings.growth.max_branch_width, settings.proactive.max_branch_width)
        vocab_size = min(vocab_size or runner.vocab_size, runner.vocab_size)
        self.ranking = ChildRanking(vocab_size, runner.device, width=width, coupled=coupled)
        self._runner = runner
        self._settings = settings
        self._on_step = on_step
        self._sessions: dict[DraftHandle, SessionDrafting] = {}  # in order of opening
        self._inbox = CommandInbox()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._is_alive = False
        self._thread = Thread(target=self._run, name="drafter", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. Without it sessions simply have no drafts."""
        return self._is_alive

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def start(self) -> None:
        """Starts the thread."""
        self._is_alive = True
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step it is in and frees all slots; to be called before the event loop ends."""
        self.post(self._end)
        self._thread.join()

    def open(
        self,
        session_id: str,
        committed: Sequence[int],
        sampling: SamplingParams,
        eos_ids: Sequence[int],
        max_live_nodes: int,
        on_nodes: OnNodes,
    ) -> "DraftHandle":
        """Starts drafting after `committed`; to be called on the event loop thread."""
        self._loop = asyncio.get_running_loop()
        request = DraftRequest(session_id, tuple(committed), sampling, tuple(eos_ids), max_live_nodes)
        kind = SessionDrafting if self._settings.mode == "streamed" else RoundDrafting
        handle = DraftHandle(self, on_nodes)
        self.post(partial(self._sessions.__setitem__, handle, kind(request, self._settings, self.pool, self.stats)))
        return handle

    def post(self, command: Command) -> None:
        """Has the thread run a command between two forwards."""
        self._inbox.post(command)

    def verdict(self, handle: "DraftHandle", token_ids: tuple[int, ...]) -> None:
        """Runs on the thread, like the three below."""
        self.ranking.observe(self._sessions[handle].verdict(token_ids))

    def restart(self, handle: "DraftHandle", epoch: int) -> None:
        self._sessions[handle].restart(epoch)

    def pause(self, handle: "DraftHandle", is_paused: bool) -> None:
        self._sessions[handle].is_paused = is_paused

    def close(self, handle: "DraftHandle") -> None:
        self._sessions.pop(handle).release()

    def check_integrity(self) -> None:
        """Asserts that slots add up, and that all are free without sessions; only while the thread is idle."""
        self.pool.check_integrity()
        assert self._sessions or self.pool.num_held == 0, f"{self.pool.num_held} draft slots held by no session"

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._is_stopping:
                    if not self.step() and not self._is_stopping:
                        self._inbox.wait()
        except Exception:
            logger.exception("the drafter's thread failed; answers go on without drafts")
        finally:
            self._is_alive = False
            self._inbox.close()

    def step(self) -> bool:
        """One draft step, on the thread; False if nothing is worth drafting until the next command."""
        started = perf_counter()
        self._inbox.run_all()
        self._hand_over()
        step = self._schedule()
        if step is None:
            return False
        scheduled = perf_counter()
        children = self._compute(step)
        computed = perf_counter()
        self._inbox.run_all()
        self._settle(step, children)
        self._hand_over()
        report = StepReport(
            schedule_s=scheduled - started,
            forward_s=computed - scheduled,
            settle_s=perf_counter() - computed,
            num_rows=step.num_rows,
            num_sessions=len(step.parts),
        )
        self.stats.step(report)
        if self._on_step is not None:
            self._on_step(report)
        return True

    def _schedule(self) -> DraftStep | None:
        self._revive()
        demands = [(session, demand) for session in self._sessions.values() if (demand := session.demand()) is not None]
        shares = share_rows(demands, max_expansion_rows=_MAX_EXPANSION_ROWS, max_catch_up_rows=_MAX_CATCH_UP_ROWS)
        shares = self._make_room(shares)
        if not shares:
            return None
        self.stats.num_computed += sum(share.num_committed for share in shares)
        return DraftStep([(share.session, share.tree, share.take_rows()) for share in shares])

    def _make_room(self, shares: list[Share]) -> list[Share]:
        """While slots are too few, the newest session gives up all it has."""
        while sum(share.num_rows for share in shares) > self.pool.num_free:
            newest = next(session for session in reversed(self._sessions.values()) if not session.is_starved)
            logger.info("session %s: draft KV is full, drafting stops for now", newest.request.session_id)
            newest.release()
            newest.is_starved = True
            self.stats.num_starved += 1
            shares = [share for share in shares if share.session is not newest]
        return shares

    def _revive(self) -> None:
        """Sessions that gave up their slots go on, oldest first, once their text and trees fit again."""
        num_free = self.pool.num_free
        for session in self._sessions.values():
            if session.is_starved:
                num_free -= session.num_slots_wanted
                if num_free < 0:
                    return
                session.is_starved = False

    def _compute(self, step: DraftStep) -> list[Candidates]:
        logits = self._runner.forward(step.batch())
        groups = step.groups()
        return self.ranking.rank(logits, groups) if groups else []

    def _settle(self, step: DraftStep, children: list[Candidates]) -> None:
        remaining = iter(children)
        for session, tree, rows in step.parts:
            session.settle(tree, list(zip(rows.references, remaining, strict=False)))

    def _hand_over(self) -> None:
        messages = [
            (handle, session.epoch, nodes)
            for handle, session in self._sessions.items()
            if (nodes := session.take_nodes()) is not None
        ]
        if messages and self._loop is not None:
            self._loop.call_soon_threadsafe(_deliver, messages)

    def _end(self) -> None:
        self._is_stopping = True
        for handle in list(self._sessions):
            self.close(handle)


class DraftHandle:
    """The event loop's side of a session; implements `edge_agent.draft_source.DraftSession`."""

    def __init__(self, drafter: Drafter, on_nodes: OnNodes) -> None:
        self._drafter = drafter
        self._on_nodes = on_nodes
        self._epoch = 0
        self._is_closed = False

    def verdict(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens were committed next."""
        self._post(self._drafter.verdict, tuple(token_ids))

    def restart(self) -> int:
        """Begins a new epoch: what is live is sent again, numbered from 0."""
        self._epoch += 1
        self._post(self._drafter.restart, self._epoch)
        return self._epoch

    def pause(self) -> None:
        """Stops drafting until `resume`."""
        self._post(self._drafter.pause, True)

    def resume(self) -> None:
        """Goes on drafting."""
        self._post(self._drafter.pause, False)

    def close(self) -> None:
        """Ends the session; further calls do nothing, and no more nodes come."""
        self._post(self._drafter.close)
        self._is_closed = True

    def deliver(self, epoch: int, nodes: DraftNodes) -> None:
        """Passes a message on, unless the session has been closed or restarted since."""
        if not self._is_closed and epoch == self._epoch:
            self._on_nodes(epoch, nodes)

    def _post(self, command: Callable[..., None], *arguments: object) -> None:
        if not self._is_closed:
            self._drafter.post(partial(command, self, *arguments))


def _deliver(messages: Sequence[tuple[DraftHandle, int, DraftNodes]]) -> None:
    for handle, epoch, nodes in messages:
        handle.deliver(epoch, nodes)
