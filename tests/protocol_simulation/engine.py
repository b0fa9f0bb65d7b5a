"""A verifier's engine: the real one on a task in place of its thread, its core watched at every turn."""

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

from protocol_simulation.calls import CALL
from protocol_simulation.models import DeviceLost
from protocol_simulation.tries import Answer, History, check_trie
from protocol_simulation.world import Bridge, World
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.messages import DraftNodes, SessionOpened, Verdict
from specedge_verifier.core import EngineCore, Event, StepInFlight, StepResult
from specedge_verifier.engine import EngineThread

if TYPE_CHECKING:
    from protocol_simulation.calls import StreamCall

LONGEST_STEP = 1.5
"""Times `step_s`."""
_TICK_S = 1e-6
"""A clock that stands still between events must not be asked to wait for less than it can tell apart."""


class Histories:
    """What each call has sent, as its bytes say, and whose it is."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}  # by request id
        self.calls: dict[StreamCall, History] = {}
        self.latest: dict[str, StreamCall] = {}  # by request id

    def written(self, call: "StreamCall", data: bytes) -> None:
        """A call of a session sends a message."""
        message = pb.GenerateRequest.FromString(data)
        if message.HasField("open"):
            name = message.open.request_id
            self.calls[call] = History(self.answers[name])
            self.latest[name] = call
            return
        nodes, history = message.draft_nodes, self.calls[call]
        first, anchor = len(history), ~nodes.anchor
        parents = [number - delta if delta else anchor for number, delta in enumerate(nodes.parent_deltas, first)]
        history.add(nodes.token_ids, parents)


class WatchedCore(EngineCore):
    """Checks sessions against the target's own text and their tries against their history."""

    world: World
    histories: Histories

    def watch(self, world: World, histories: Histories) -> None:
        """Begins with it."""
        self.world, self.histories = world, histories
        self.calls: dict[int, StreamCall] = {}  # by handle
        self.num_told: dict[int, int] = {}  # tokens, by handle
        self._num_preemptions = 0

    def draft(self, handle: int, nodes: DraftNodes) -> list[Event]:
        events = super().draft(handle, nodes)
        session = self._sessions.get(handle)
        if session is not None and session.speculative:
            history = self.histories.calls[self.calls[handle]]
            history.num_arrived += len(nodes.token_ids)
            check_trie(self.world, "the verifier's trie", session.trie, history, history.num_arrived)
        return events

    def finish(self, step: StepInFlight) -> StepResult:
        num_closed = len(step.closed)
        result = super().finish(step)
        if num_closed:
            self.world.counts["session closed during a step"] += num_closed
        for handle, event in result.events:
            self._check_event(handle, event)
        for item in step.schedule.planned:
            session = item.session
            if self._sessions.get(session.handle) is session:
                history = self.histories.calls[self.calls[session.handle]]
                check_trie(self.world, "the verifier's trie", session.trie, history, history.num_arrived)
        self.check_blocks()
        return result

    def _check_event(self, handle: int, event: object) -> None:
        answer = self.histories.calls[self.calls[handle]].answer
        if isinstance(event, SessionOpened):
            self.world.check(handle not in self.num_told, f"{answer.name} was opened twice")
            self.num_told[handle] = 0
        elif isinstance(event, Verdict):
            self.world.check(handle in self.num_told, f"a verdict of {answer.name} came before it was opened")
            end = event.first_position + len(event.token_ids)
            self.world.check(
                event.token_ids == answer.text[event.first_position : end],
                f"{answer.name}: verdict {event.token_ids} at {event.first_position} is not the target's",
            )
            self.world.check(
                event.finish_reason == (answer.finish_reason if end == len(answer.text) else ""),
                f"{answer.name} ends with {event.finish_reason!r} at {end} of {len(answer.text)}",
            )
            self.world.counts["verdicts"] += 1
            self.world.counts["accepted draft tokens"] += event.num_accepted
            self.world.counts["rejected draft tokens"] += event.num_nodes_verified - event.num_accepted
        else:
            self.world.note("session failed", f"{answer.name}: {event!r}")

    def check_blocks(self) -> None:
        """Blocks are held by sessions that run, and by nobody else."""
        scheduler = self.scheduler
        if scheduler.num_preemptions > self._num_preemptions:
            self.world.note("preemption", scheduler.num_preemptions - self._num_preemptions)
            self._num_preemptions = scheduler.num_preemptions
        held = {block for session in scheduler.running for block in session.blocks._block_ids}
        self.world.check(scheduler.pool.num_held == len(held), "blocks are held by no running session")
        self.world.check(
            not any(session.blocks.num_blocks for session in scheduler.waiting), "a waiting session has blocks"
        )
        num_sessions = len(scheduler.running) + len(scheduler.waiting)
        self.world.check(
            num_sessions == len(self._sessions), f"{num_sessions} sessions scheduled of {len(self._sessions)}"
        )
        tries = [session.trie for session in (*scheduler.running, *scheduler.waiting)]
        num_places = sum(1 + trie.num_live for trie in tries)
        self.world.check(scheduler.store.num_taken == num_places, "places in the node store are held by no session")


class Engine(EngineThread):
    """Steps take virtual time; what arrives meanwhile is taken in as the thread would."""

    def watch(self, world: World, step_s: float) -> None:
        """Before it starts."""
        self._world = world
        self._step_s = step_s
        self._arrived = asyncio.Event()
        self._dice = world.fork()
        self._bridge = Bridge(world)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    def stop(self, timeout_s: float = 10.0) -> None:
        self._task.cancel()

    @property
    def is_healthy(self) -> bool:
        return self._error is None and not self._task.done()

    def open(self, *arguments: Any) -> int:
        handle = super().open(*arguments)
        call = CALL.get()
        assert call is not None and isinstance(self._core, WatchedCore)
        self._core.calls[handle] = call
        return handle

    def _pause(self, handle: int, is_paused: bool) -> None:
        self._world.counts["session paused: slow reader"] += is_paused
        super()._pause(handle, is_paused)

    def _call_on_loop(self, call: Any) -> None:
        self._bridge.post(call)

    def _post(self, command: Any) -> None:
        self._commands.append(command)
        self._arrived.set()

    async def _work(self) -> None:
        try:
            while True:
                self._obey()
                step = self._core.begin()
                if step.schedule.planned:
                    left_s = self._step_s * self._dice.uniform(0.5, LONGEST_STEP)
                    await asyncio.sleep(left_s / 2)
                    self._obey()
                    await asyncio.sleep(left_s / 2)
                result = self._core.finish(step)
                self._deliver(result.events)
                if result.report is None:
                    await self._wait(result.wait_s)
        except DeviceLost as error:
            self._die(error)
        except Exception as error:
            self._world.fail(f"the engine raised {error!r}")
            self._die(error)

    async def _wait(self, wait_s: float) -> None:
        if not self._commands:
            self._arrived.clear()
            try:
                async with asyncio.timeout(None if wait_s == inf else max(wait_s, _TICK_S)):
                    await self._arrived.wait()
            except TimeoutError:
                self._world.counts["scheduler waited for drafts"] += 1

    def _die(self, error: BaseException) -> None:
        self._error = error
        self._call_on_loop(self._fail_all)
