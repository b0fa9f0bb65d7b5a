"""An edge's drafter: the real core and handles on a task in place of its thread, its tries watched at every turn."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from edge_agent.command_inbox import Command, CommandInbox
from edge_agent.draft_source import OnNodes
from edge_agent.drafter import DraftHandle, _deliver
from protocol_simulation.engine import Histories
from protocol_simulation.models import Draft
from protocol_simulation.tries import History
from protocol_simulation.world import Bridge, World
from specedge.drafting.core import DraftCore
from specedge.drafting.draft_session import DraftingSettings, DraftRequest, SessionDrafting
from specedge.wire.messages import DraftNodes


class Epoch:
    """What one session has sent on one stream, and what it dropped of that by itself."""

    def __init__(self, history: History) -> None:
        self.sent = history
        self.trimmed: set[int] = set()  # by number in the stream


class WatchedDrafts(DraftCore["WatchedHandle"]):
    """Checks each session's live nodes against what it has sent."""

    def watch(self, world: World, histories: Histories) -> None:
        """Before the first session."""
        self._world, self._histories = world, histories
        self._epochs: dict[WatchedHandle, Epoch] = {}

    def open(self, key: "WatchedHandle", request: DraftRequest) -> None:
        super().open(key, request)
        session = self._sessions[key]
        self._epochs[key] = Epoch(History(self._histories.answers[request.session_id]))
        lose = session._lose

        def watched_lose(numbers: Sequence[int], reason: str) -> None:
            if reason == "trimmed":
                found = (session._stream_numbers.get(number) for number in numbers)
                self._epochs[key].trimmed.update(number for number in found if number is not None)
            lose(numbers, reason)

        session._lose = watched_lose  # type: ignore[method-assign]

    def verdict(self, key: "WatchedHandle", token_ids: Sequence[int]) -> None:
        super().verdict(key, token_ids)
        self._check(key)

    def restart(self, key: "WatchedHandle", epoch: int) -> None:
        super().restart(key, epoch)
        self._epochs[key] = Epoch(History(self._epochs[key].sent.answer))

    def take_messages(self) -> list[tuple["WatchedHandle", int, DraftNodes]]:
        messages = super().take_messages()
        for key, _, nodes in messages:
            self._epochs[key].sent.add(nodes.token_ids, nodes.parents)
            self._check(key)
        return messages

    def close(self, key: "WatchedHandle") -> None:
        super().close(key)
        del self._epochs[key]

    def _check(self, key: "WatchedHandle") -> None:
        session, epoch, world = self._sessions[key], self._epochs[key], self._world
        sent, trie = epoch.sent, session.tree.trie
        num_committed, name = len(trie.committed), f"the edge's trie of {sent.answer.name}"
        world.check(tuple(trie.committed) == sent.answer.text[:num_committed], f"{name} has committed another text")
        live = sent.live(num_committed, len(sent))
        known: set[int] = set()
        for number, stream_number in session._stream_numbers.items():
            if stream_number >= len(sent):
                continue  # of the message that is being made
            known.add(sent.paths[stream_number])
            world.check(
                trie.is_live(number)
                and sent.paths[stream_number] in live
                and trie.token(number) == sent.tokens[stream_number]
                and trie.position(number) == sent.lengths[stream_number] - 1,
                f"{name} has node {stream_number} live after {num_committed} tokens",
            )
        dropped = {sent.paths[number] for number in epoch.trimmed}
        if session.settings.mode == "streamed" and not self.stats.num_starved:
            missing = live.keys() - known - dropped
            world.check(not missing, f"{name} has lost {len(missing)} of {len(live)} live nodes")
        self._check_written(key, session, sent)

    def _check_written(self, key: "WatchedHandle", session: SessionDrafting, sent: History) -> None:
        """What left on the stream is what this epoch numbered, node by node."""
        call = key.streams.get(session.epoch)
        written = None if call is None else self._histories.calls.get(call)
        if written is not None:
            count = len(written)
            self._world.check(
                written.tokens == sent.tokens[:count] and written.parents == sent.parents[:count],
                f"{sent.answer.name}: a stream carries other nodes than its epoch has numbered",
            )


class WatchedHandle(DraftHandle):
    """Knows which stream each epoch belongs to, and checks what the edge commits when it does."""

    def __init__(self, drafter: "SimulatedDrafter", request: DraftRequest, on_nodes: OnNodes) -> None:
        super().__init__(drafter, drafter.core, on_nodes)  # type: ignore[arg-type]
        self.streams: dict[int, Any] = {}
        self._histories = drafter.histories
        self._world = drafter.world
        self._request_id = request.session_id
        self._num_committed = len(request.committed)

    def verdict(self, token_ids: Sequence[int]) -> None:
        text = self._histories.answers[self._request_id].text
        end = self._num_committed + len(token_ids)
        self._world.check(
            tuple(token_ids) == text[self._num_committed : end], f"the edge committed {token_ids} in {self._request_id}"
        )
        self._num_committed = end
        if not self._epoch:
            self.streams.setdefault(0, self._histories.latest.get(self._request_id))
        super().verdict(token_ids)

    def restart(self) -> int:
        if not self._epoch:
            self.streams.setdefault(0, None)
        epoch = super().restart()
        self.streams[epoch] = self._histories.latest[self._request_id]
        return epoch


class SimulatedDrafter:
    """Implements `edge_agent.draft_source.DraftSource` as `edge_agent.drafter.Drafter` does."""

    drafter_id = "simulated"

    def __init__(
        self,
        world: World,
        histories: Histories,
        model: Draft,
        settings: DraftingSettings,
        num_slots: int,
        step_s: float,
    ) -> None:
        self.world = world
        self.histories = histories
        self.core = WatchedDrafts(model, settings, num_slots)
        self.core.watch(world, histories)
        self._model = model
        self._step_s = step_s
        self._inbox = CommandInbox()
        self._arrived = asyncio.Event()
        self._bridge = Bridge(world)

    def start(self) -> None:
        """Begins with its steps."""
        self._task = asyncio.create_task(self._work())

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> WatchedHandle:
        handle = WatchedHandle(self, request, on_nodes)
        self.post(partial(self.core.open, handle, request))
        return handle

    def post(self, command: Command) -> None:
        self._inbox.post(command)
        self._arrived.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be done."""
        return not self._arrived.is_set()

    async def _work(self) -> None:
        try:
            while True:
                self._arrived.clear()
                self._inbox.run_all()
                self._hand_over()
                step = self.core.schedule()
                if step is None:
                    await self._arrived.wait()
                    continue
                children = self._model.children(step)
                await asyncio.sleep(self._step_s)
                self._inbox.run_all()
                self.core.settle(step, children)
                self._hand_over()
        except Exception as error:
            self.world.fail(f"the drafter raised {error!r}")

    def _hand_over(self) -> None:
        if messages := self.core.take_messages():
            self._bridge.post(partial(_deliver, messages))
