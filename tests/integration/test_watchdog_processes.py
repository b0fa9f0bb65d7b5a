"""Real processes whose models hang, fail or run out of memory under the answers they make."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http_support import tokenizer
from processes import Ask, Edge, Service, Verifier, nothing_held, running

from specedge.sampling import SamplingParams
from specedge.tokenizer import tokenizer_fingerprint
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.watchdog import LOST_THREAD
from specedge.wire import codec
from specedge.wire.messages import OpenSession

ASKS = [
    Ask(f"The {animal} went to the market and", seed=100 + number, max_tokens=300)
    for number, animal in enumerate(("fox", "owl", "hare", "crow"))
]
LIMIT_S = "2.5"
FAULTY_SERVICE = Path(__file__).parents[1] / "faulty_service.py"


def faulty(service: Service, fault: Path) -> None:
    """Makes the process one whose model fails as the file says."""

    def command(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, str(FAULTY_SERVICE), str(fault), str(os.getpid()), *arguments]

    service.command = command  # type: ignore[method-assign]


async def start_again(service: Service) -> None:
    """Starts what has ended, and waits until it serves."""
    service.start()
    await asyncio.to_thread(service.wait_ready)


async def end_of(call: Any) -> grpc.StatusCode:
    """The status with which a stream ends."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    status: grpc.StatusCode = await call.code()
    return status


@dataclass(frozen=True)
class Site:
    faulty: Verifier
    fault: Path
    sound: Verifier
    edge: Edge
    edge_fault: Path
    undisturbed: list[str] = field(default_factory=list)

    async def answers(self, on_started: Callable[[], object] = lambda: None) -> list[str]:
        """The texts; `on_started` is called when the first has begun."""
        async with asyncio.timeout(60):
            return await self.edge.answers(ASKS, on_started, num_pieces=1)

    async def answers_until_end(self, service: Service, fault: Path, word: str) -> list[str]:
        """The texts under which `service` has failed; whichever of them it has a part in."""
        texts = await self.answers(lambda: fault.write_text(word))
        while service.is_running and texts == (again := await self.answers()):
            texts = again
            await asyncio.sleep(0.1)
        return texts

    async def drafted(self, ask: Ask, on_drafted: Callable[[], object]) -> tuple[str, list[int]]:
        """The text of an answer, and how many draft nodes were verified in each of its rounds.

        `on_drafted` is called after the first round that had any.
        """
        texts: list[str] = []
        nums: list[int] = []
        async with self.edge.client() as client:
            async for chunk in await ask.send(client, stream=True, speculation={"trace": True}):
                texts.append(chunk.choices[0].text)
                if (trace := chunk.model_extra.get("specedge")) is not None:
                    nums.append(trace["round"]["num_nodes"])
                    if nums[-1] and not any(nums[:-1]):
                        on_drafted()
        return "".join(texts), nums

    async def until_both_are_good(self) -> None:
        async with asyncio.timeout(60):
            while await self.edge.verifier_states() != ["good", "good"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folders = [tmp_path_factory.mktemp(name) for name in ("faulty", "sound", "edge")]
    faults = [tmp_path_factory.mktemp(name) / "fault" for name in ("verifier-fault", "edge-fault")]
    failing = Verifier(folders[0], "--num-kv-blocks", "128", "--step-timeout-s", LIMIT_S)
    sound = Verifier(folders[1], "--num-kv-blocks", "128", "--step-timeout-s", LIMIT_S)
    edge = Edge(
        folders[2],
        "edge",
        failing,
        *("--num-draft-slots", "4096", "--verifier-address", f"{failing.address},{sound.address}"),
        *("--drafter-timeout-s", LIMIT_S),
    )
    faulty(failing, faults[0])
    faulty(sound, folders[1] / "no-fault")
    faulty(edge, faults[1])
    with running(failing, sound, edge):
        yield Site(failing, faults[0], sound, edge, faults[1])


@pytest.fixture
async def undisturbed(site: Site) -> list[str]:
    """The texts when nothing is wrong."""
    if site.faulty.is_running:
        await site.until_both_are_good()
    if not site.undisturbed:
        site.undisturbed.extend(await site.answers())
    return site.undisturbed


async def test_a_verifier_short_of_memory_takes_smaller_steps(site: Site, undisturbed: list[str]) -> None:
    name = "specedge_verifier_memory_shortages_total"
    before = await site.faulty.sample(name)
    site.fault.write_text("memory 3")
    assert await site.answers() == undisturbed
    assert await site.faulty.sample(name) > before
    assert await site.faulty.sample("specedge_verifier_step_rows_limit") < 1024
    await nothing_held(site.faulty, site.sound, site.edge)
    site.fault.write_text("memory 0")
    assert await site.answers() == undisturbed, "sessions end there, and go on at the other verifier"
    await nothing_held(site.faulty, site.sound, site.edge)
    site.fault.unlink()


async def test_an_edge_short_of_memory_drafts_less_or_not_at_all(site: Site, undisturbed: list[str]) -> None:
    name = "specedge_edge_draft_memory_shortages_total"
    before = await site.edge.sample(name)
    for most in (5, 0):
        site.edge_fault.write_text(f"memory {most}")
        assert await site.answers() == undisturbed
        await nothing_held(site.edge)
    assert await site.edge.sample(name) > before
    site.edge_fault.unlink()


async def test_a_process_that_was_stopped_for_longer_than_a_step_may_take_goes_on(
    site: Site, undisturbed: list[str]
) -> None:
    site.faulty.signal(signal.SIGSTOP)
    await asyncio.sleep(float(LIMIT_S) + 1)
    site.faulty.signal(signal.SIGCONT)
    await site.until_both_are_good()
    assert await site.answers() == undisturbed
    assert site.faulty.is_running


async def test_a_jump_of_the_wall_clock_changes_nothing(site: Site, undisturbed: list[str]) -> None:
    def jump() -> None:
        for service in (site.faulty, site.edge):
            service.signal(signal.SIGUSR2)

    assert await site.answers(jump) == undisturbed
    await site.until_both_are_good()
    assert await site.answers() == undisturbed
    assert site.faulty.is_running and site.edge.is_running


# Each of the following ends a process; the first two start it again.


async def test_a_verifier_whose_engine_fails_says_so_and_ends_and_its_answers_go_on(
    site: Site, undisturbed: list[str]
) -> None:
    opening = OpenSession("waits", (5, 17, 400), (), SamplingParams(max_tokens=900), tokenizer_fingerprint(tokenizer()))
    options = [("grpc.enable_http_proxy", 0)]
    async with asyncio.timeout(60), grpc.aio.insecure_channel(site.faulty.address, options=options) as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening))
        await call.read()
        waiting = asyncio.create_task(end_of(call))
        assert await site.answers(lambda: site.fault.write_text("raise")) == undisturbed, "answers go on elsewhere"
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await waiting == grpc.StatusCode.UNAVAILABLE
    assert await asyncio.to_thread(site.faulty.exit_code) == LOST_THREAD == 70
    assert "the engine thread has died" in site.faulty.log()
    assert "RuntimeError: the device was lost" in site.faulty.log(), "the traceback is in the log"
    await nothing_held(site.sound)
    site.fault.unlink()
    await start_again(site.faulty)


async def test_an_edge_whose_drafter_fails_ends_its_answers_without_drafts_and_then_itself(
    site: Site, undisturbed: list[str]
) -> None:
    async with asyncio.timeout(60):
        text, nums_nodes = await site.drafted(ASKS[0], lambda: site.edge_fault.write_text("raise"))
    assert text == undisturbed[0]
    assert not any(nums_nodes[-100:]), "the last hundred rounds were plain decoding"
    assert await asyncio.to_thread(site.edge.exit_code) == LOST_THREAD
    assert "the drafter's thread failed; answers go on without drafts" in site.edge.log()
    assert "RuntimeError: the device was lost" in site.edge.log()
    await nothing_held(site.faulty, site.sound)
    site.edge_fault.unlink()
    await start_again(site.edge)


async def test_a_verifier_whose_engine_hangs_ends_and_its_answers_go_on(site: Site, undisturbed: list[str]) -> None:
    assert await site.answers_until_end(site.faulty, site.fault, "hang") == undisturbed
    assert site.faulty.exit_code() == LOST_THREAD
    assert "the engine thread has not moved" in site.faulty.log()
    assert "threading.Event().wait()" in site.faulty.log(), "the stack of the thread that hangs is in the log"
    await nothing_held(site.sound)


async def test_an_edge_whose_drafter_hangs_ends_its_answers_and_then_itself(site: Site, undisturbed: list[str]) -> None:
    assert await site.answers(lambda: site.edge_fault.write_text("hang")) == undisturbed
    assert await asyncio.to_thread(site.edge.exit_code) == LOST_THREAD
    assert "the drafter thread has not moved" in site.edge.log()


async def test_a_verifier_whose_event_loop_is_stuck_ends(site: Site) -> None:
    site.sound.signal(signal.SIGUSR1)
    assert await asyncio.to_thread(site.sound.exit_code) == LOST_THREAD
    assert "the event loop has not moved" in site.sound.log()
