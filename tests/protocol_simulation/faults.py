"""What goes wrong, done to a running simulation."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from protocol_simulation.network import KEEPALIVE_S
from protocol_simulation.scenario import Fault
from protocol_simulation.world import MODELS

if TYPE_CHECKING:
    from protocol_simulation.calls import StreamCall
    from protocol_simulation.simulation import Simulation
    from protocol_simulation.verifier import Verifier

T = TypeVar("T")

_LOOK_S = 0.02
_NUM_LOOKS = 60


class Faults:
    """Carries out the faults of a scenario."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._acts: dict[str, Callable[[Fault], object]] = {
            "connection cut": self._cut,
            "short silence": self._silence,
            "half-open connection": self._half_open,
            "verifier unreachable": self._unreachable,
            "verifier killed": self._kill,
            "verifier drained": self._drain,
            "engine died": self._lose_device,
            "model replaced": self._replace_model,
            "edge killed": self._kill_edge,
            "verdict repeated": self._repeat,
            "verdict of an old stream": self._resurrect,
        }
        self._lasting: list[asyncio.Task[None]] = []

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, until the last is over."""
        for fault in faults:
            await asyncio.sleep(max(0.0, fault.at_s - self._world.now_s))
            self._acts[fault.kind](fault)
        if self._lasting:
            await asyncio.wait(self._lasting)

    def _last(self, lasting: object) -> None:
        self._lasting.append(asyncio.create_task(lasting))  # type: ignore[arg-type]

    def _cut(self, fault: Fault) -> None:
        if connection := _picked(self._simulation.network.between(None, None), fault):
            self._world.note(fault.kind, f"{connection.edge} to {connection.server.address}")
            connection.cut(fault.lasts_s / 5, connection.quality.delay_s)

    def _silence(self, fault: Fault) -> None:
        if connection := _picked(self._simulation.network.between(None, None), fault):
            silence_s = min(fault.lasts_s, KEEPALIVE_S)
            self._world.note(fault.kind, f"{connection.edge} to {connection.server.address}, {silence_s:.3f} s")
            connection.fall_silent(silence_s)

    def _half_open(self, fault: Fault) -> None:
        if connection := _picked(self._simulation.network.between(None, None), fault):
            self._world.note(fault.kind, f"{connection.edge} to {connection.server.address}")
            connection.fall_silent(2 * KEEPALIVE_S)

    def _unreachable(self, fault: Fault) -> None:
        address = _picked(self._simulation.scenario.addresses, fault)
        assert address is not None
        self._world.note(fault.kind, f"{address} for {fault.lasts_s:.3f} s")
        network, until_s = self._simulation.network, self._world.now_s + fault.lasts_s
        for edge in self._simulation.edges:
            network.unreachable_until_s[edge.name, address] = until_s
            for connection in network.between(edge.name, address):
                connection.fall_silent(fault.lasts_s)
        self._last(asyncio.sleep(fault.lasts_s))

    def _kill(self, fault: Fault) -> None:
        if verifier := self._running(fault):
            silently = fault.pick * 997 % 1 < 0.3
            self._world.note(fault.kind, f"{verifier.address}{', its machine too' if silently else ''}")
            verifier.kill(silently=silently)
            self._last(self._restart(verifier, fault.lasts_s))

    def _drain(self, fault: Fault) -> None:
        if verifier := self._running(fault):
            self._world.note(fault.kind, verifier.address)
            self._last(self._drain_and_restart(verifier, fault.lasts_s))

    async def _drain_and_restart(self, verifier: "Verifier", grace_s: float) -> None:
        await verifier.drain(grace_s)
        await self._restart(verifier, grace_s / 2)

    async def _restart(self, verifier: "Verifier", pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await verifier.start()

    def _lose_device(self, fault: Fault) -> None:
        if verifier := self._running(fault):
            self._world.note(fault.kind, verifier.address)
            verifier.is_up = False
            verifier.target.is_lost = True
            self._last(self._replace(verifier, fault.lasts_s))

    async def _replace(self, verifier: "Verifier", pause_s: float) -> None:
        """Its supervisor notices after a while."""
        await asyncio.sleep(1.0 + pause_s)
        verifier.kill(silently=False)
        await self._restart(verifier, pause_s / 2)

    def _replace_model(self, fault: Fault) -> None:
        if verifier := self._running(fault):
            self._world.note(fault.kind, verifier.address)
            verifier.kill(silently=False)
            self._last(self._serve_another(verifier, fault.lasts_s))

    async def _serve_another(self, verifier: "Verifier", lasts_s: float) -> None:
        """For a while, after which the right one is served again."""
        await asyncio.sleep(lasts_s / 10)
        await verifier.start(MODELS[1])
        verifier.is_up = False  # no further trouble for this one
        await asyncio.sleep(lasts_s)
        verifier.kill(silently=False)
        await self._restart(verifier, 0.05)

    def _kill_edge(self, fault: Fault) -> None:
        living = [edge for edge in self._simulation.edges if edge.is_up and not edge.done.is_set()]
        if edge := _picked(living, fault):
            self._world.note(fault.kind, edge.name)
            self._simulation.replace_edge(edge)

    def _repeat(self, fault: Fault) -> None:
        if call := _picked(self._streaming(), fault):
            assert call.server_call is not None
            self._world.note(fault.kind, call.channel.edge)
            self._tamper(call)
            call.server_call.tells_twice = True

    def _resurrect(self, fault: Fault) -> None:
        self._last(self._wait_for_a_second_stream(fault))

    async def _wait_for_a_second_stream(self, fault: Fault) -> None:
        """Once an answer is on its second stream, the last message of its first one comes on that."""
        histories = self._simulation.histories
        for _ in range(_NUM_LOOKS):
            for call in self._streaming():
                answer = histories.calls[call].answer
                old = [
                    other.server_call.told[-1]
                    for other, history in histories.calls.items()
                    if history.answer is answer and other is not call and other.server_call and other.server_call.told
                ]
                if old and call.server_call is not None:
                    self._world.note(fault.kind, answer.name)
                    self._tamper(call)
                    call.server_call.send(old[-1])
                    return
            await asyncio.sleep(_LOOK_S)

    def _tamper(self, call: "StreamCall") -> None:
        for edge in self._simulation.edges:
            edge.is_tampered |= edge.name == call.channel.edge

    def _streaming(self) -> "list[StreamCall]":
        return [
            call
            for connection in self._simulation.network.between(None, None)
            for call in connection.client_calls
            if call in self._simulation.histories.calls and call.server_call is not None
        ]

    def _running(self, fault: Fault) -> "Verifier | None":
        return _picked([verifier for verifier in self._simulation.verifiers if verifier.is_up], fault)


def _picked(candidates: Sequence[T], fault: Fault) -> T | None:
    return candidates[int(fault.pick * len(candidates))] if candidates else None
