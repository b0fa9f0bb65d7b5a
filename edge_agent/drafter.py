"""The drafter: one thread with the draft model serves all local sessions.

Life of a draft step:
1. Commands from the event loop (open, verdict, restart, pause, close) are applied.
2. `schedule`: every session says what it would compute; rows are shared among all of them, slots are taken.
3. `children`: one batch through the draft model, children ranked on the device.
4. Verdicts that came meanwhile are applied first, so that results for dead nodes are dropped.
5. `settle`: children join the tries; messages with what is new go to the event loop in one call.
When nothing is worth drafting the thread sleeps until a command arrives.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Thread
from time import perf_counter

import torch

from edge_agent.command_inbox import Command, CommandInbox
from edge_agent.decoding_session import Decoded, DecodingSession
from edge_agent.draft_decoder import DraftDecoder
from edge_agent.draft_grammars import DraftGrammars, MakeGrammars
from edge_agent.draft_source import OnNodes
from specedge.background import call_on_loop
from specedge.block_pool import BlockPool
from specedge.drafting.core import DraftCore
from specedge.drafting.draft_model import DraftRunner, RankedDraftModel
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.drafting.draft_stats import DrafterStats, StepReport
from specedge.drafting.ranking import ChildRanking
from specedge.errors import DrafterDead, VerifierUnavailable
from specedge.watchdog import Heartbeat
from specedge.wire.messages import DraftNodes

logger = logging.getLogger(__name__)

_GIVE_WAY_S = 0.1
"""For so long at most no step begins while the event loop has not taken the last one's drafts: it has answers to
stream, and both take turns in one interpreter."""


class Drafter:
    """Drafts for all sessions of this process; implements `edge_agent.draft_source.DraftSource`.

    Args:
        runner: the draft model; used by this object's thread alone from now on.
        drafter_id: names the model and its settings.
        settings: how sessions draft.
        vocab_size: token ids both models know; ids from here on are not drafted.
        coupled: rank children with the target's noise.
        on_step: told about every draft step, on the drafter's thread.
        make_grammars: from the target's end-of-sequence tokens; None: drafts do not follow grammars.
        decodes_alone: the draft model can also answer without a verifier.

    Attributes:
        heartbeat: beats with every step.
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
        make_grammars: MakeGrammars | None = None,
        decodes_alone: bool = False,
    ) -> None:
        self.drafter_id = drafter_id
        self._grammars = DraftGrammars(make_grammars)
        self.ranking = ChildRanking.of(runner, settings, vocab_size=vocab_size, coupled=coupled)
        self._model = RankedDraftModel(runner, self.ranking)
        self._core: DraftCore[DraftHandle] = DraftCore(self._model, settings, runner.num_slots)
        self._decoder: DraftDecoder | None = None
        if decodes_alone:
            self._decoder = DraftDecoder(runner, self._core.pool, vocab_size or runner.vocab_size)
        self._on_step = on_step
        self._inbox = CommandInbox()
        self._delivered = Event()  # the event loop has taken what was drafted last
        self._delivered.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._is_alive = False
        self.heartbeat = Heartbeat()
        self._failure: str | None = None
        self._failed = asyncio.Event()
        self._thread = Thread(target=self._run, name="drafter", daemon=True)

    @property
    def stats(self) -> DrafterStats:
        return self._core.stats

    @property
    def pool(self) -> BlockPool:
        return self._core.pool

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. Without it sessions simply have no drafts."""
        return self._is_alive

    @property
    def num_sessions(self) -> int:
        return self._core.num_sessions

    def start(self) -> None:
        """Starts the thread."""
        self._is_alive = True
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step it is in and frees all slots; to be called before the event loop ends."""
        self.post(self._end)
        if self._failure is None:
            self._thread.join()
        self._grammars.close()

    def fail(self, reason: str) -> None:
        """Gives the thread up, on the event loop: answers go on without drafts, and it does no further step."""
        self._is_stopping, self._is_alive = True, False
        self._inbox.close()
        self._failure = self._failure or reason
        self._failed.set()

    async def failure(self) -> DrafterDead:
        """Returns once the thread has died or was given up, with the reason."""
        await self._failed.wait()
        return DrafterDead(f"the drafter has stopped: {self._failure}")

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> "DraftHandle":
        """Starts drafting after the committed tokens; to be called on the event loop thread."""
        self._loop = asyncio.get_running_loop()
        handle = DraftHandle(self, self._core, on_nodes)
        self.post(partial(self._core.open, handle, request))
        # Before the grammar is compiled drafts are plain guesses.
        self._grammars.begin(request, lambda state: self.post(partial(self._core.bind, handle, state, 0)))
        return handle

    def decode(self, session: DecodingSession) -> None:
        """Answers with the draft model alone; to be called on the event loop thread."""
        assert self._decoder is not None, "only a drafter that decodes alone is asked to"
        self._loop = asyncio.get_running_loop()
        self.post(partial(self._decoder.open, session))

    def pause_decoding(self, session: DecodingSession, is_paused: bool) -> None:
        """Keeps a session waiting, or no longer."""
        self.post(lambda: setattr(session, "is_paused", is_paused))

    def end_decoding(self, session: DecodingSession) -> None:
        """Ends a session; nothing happens to one that has ended."""
        if self._decoder is not None:
            self.post(partial(self._decoder.close, session))

    def post(self, command: Command) -> None:
        """Has the thread run a command between two forwards."""
        self._inbox.post(command)

    def check_integrity(self) -> None:
        """Asserts that slots add up, and that all are free without sessions; only while the thread is idle."""
        self._core.check_integrity()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._is_stopping:
                    self.heartbeat.beat()
                    self._delivered.wait(_GIVE_WAY_S)
                    has_drafted = self.step()
                    if not self.decode_step() and not has_drafted and not self._is_stopping:
                        self.heartbeat.rest()
                        self._inbox.wait()
        except Exception as error:
            logger.exception("the drafter's thread failed; answers go on without drafts")
            self._failure = str(error) or type(error).__name__
        finally:
            self.heartbeat.rest()
            self._is_alive = False
            if self._decoder is not None:
                self._tell_decoded(
                    self._decoder.end(VerifierUnavailable("the draft model, which answered alone, has ended"))
                )
            self._inbox.close()
            if self._failure is not None:
                self._tell(self._failed.set)

    def decode_step(self) -> bool:
        """One step of the answers without a verifier, on the thread; False if there is none."""
        if self._decoder is None or not self._decoder.has_work:
            return False
        self._tell_decoded(self._decoder.step())
        return True

    def step(self) -> bool:
        """One draft step, on the thread; False if nothing is worth drafting until the next command."""
        started = perf_counter()
        self._inbox.run_all()
        self._hand_over()
        step = self._core.schedule()
        if step is None:
            return False
        scheduled = perf_counter()
        try:
            children = self._model.children(step)
        except MemoryError as error:
            self._inbox.run_all()
            can_shrink = self._core.abandon(step)
            logger.warning(
                "no memory for a draft step of %d rows, %s: %s",
                step.num_rows,
                "the next are smaller" if can_shrink else "its answer goes on without drafts",
                error,
            )
            return True
        computed = perf_counter()
        self._inbox.run_all()
        self._core.settle(step, children)
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

    def _hand_over(self) -> None:
        messages = self._core.take_messages()
        if messages:
            if self._loop is not None:
                self._delivered.clear()
            self._tell(partial(self._take, messages))

    def _take(self, messages: "Sequence[tuple[DraftHandle, int, DraftNodes]]") -> None:
        self._delivered.set()
        _deliver(messages)

    def _tell(self, call: Callable[[], None]) -> None:
        """Has the event loop call something, if there still is one."""
        if self._loop is not None:
            call_on_loop(self._loop, call)

    def _tell_decoded(self, decoded: Sequence[tuple[DecodingSession, Decoded]]) -> None:
        if decoded:
            self._tell(partial(_deliver_decoded, decoded))

    def _end(self) -> None:
        self._is_stopping = True
        for handle in self._core.keys:
            self._core.close(handle)


class DraftHandle:
    """The event loop's side of a session; implements `edge_agent.draft_source.DraftSession`."""

    def __init__(self, drafter: Drafter, core: "DraftCore[DraftHandle]", on_nodes: OnNodes) -> None:
        self._drafter = drafter
        self._core = core  # for the drafter's thread only
        self._on_nodes = on_nodes
        self._epoch = 0
        self._is_closed = False

    def verdict(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens were committed next."""
        self._post(self._core.verdict, tuple(token_ids))

    def restart(self) -> int:
        """Begins a new epoch: what is live is sent again, numbered from 0."""
        self._epoch += 1
        self._post(self._core.restart, self._epoch)
        return self._epoch

    def pause(self) -> None:
        """Stops drafting until `resume`."""
        self._post(self._core.pause, True)

    def resume(self) -> None:
        """Goes on drafting."""
        self._post(self._core.pause, False)

    def close(self) -> None:
        """Ends the session; further calls do nothing, and no more nodes come."""
        self._post(self._core.close)
        self._is_closed = True

    def deliver(self, epoch: int, nodes: DraftNodes) -> None:
        """Passes a message on, unless the session has been closed or restarted since."""
        if not self._is_closed and epoch == self._epoch:
            self._on_nodes(epoch, nodes)

    def _post(self, command: Callable[..., None], *arguments: object) -> None:
        if not self._is_closed:
            self._drafter.post(partial(command, self, *arguments))


def _deliver_decoded(results: Sequence[tuple[DecodingSession, Decoded]]) -> None:
    for session, decoded in results:
        session.on_decoded(decoded)


def _deliver(messages: Sequence[tuple[DraftHandle, int, DraftNodes]]) -> None:
    for handle, epoch, nodes in messages:
        handle.deliver(epoch, nodes)
