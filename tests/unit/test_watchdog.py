"""What the watchdog takes for stuck, and what it does not."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from engine_thread import PROMPT, TIMEOUT_S, Sink, Target, opening, running
from fake_draft import FakeDraft, TrieKeeper, make_drafter
from fakes import serving, until
from grpc import StatusCode
from grpc.aio import AioRpcError, insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc

from specedge.errors import EngineDead
from specedge.model.batch import PackedBatch
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.watchdog import LOST_THREAD, Heartbeat, Watchdog
from specedge.wire import codec

LIMIT_S = 0.3


class Watch(Watchdog):
    """Keeps the reasons that it gives, and the exit codes with which it would end the process."""

    def __init__(self, heartbeat: Heartbeat | None, grace_s: float = 60.0) -> None:
        self.reasons: list[str] = []
        self.codes: list[int] = []
        super().__init__(
            asyncio.get_running_loop(),
            name="worker",
            heartbeat=heartbeat,
            limit_s=LIMIT_S,
            grace_s=grace_s,
            on_stuck=self.reasons.append,
            end=self.codes.append,
        )


@contextmanager
def watching(heartbeat: Heartbeat | None, grace_s: float = 60.0) -> Iterator[Watch]:
    watch = Watch(heartbeat, grace_s)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


async def test_a_thread_that_works_or_waits_is_left_alone() -> None:
    heartbeat = Heartbeat()
    watch = Watch(heartbeat)

    async def looks(*passed_s: float) -> bool:
        """Whether the process may go on after looks at these distances; the event loop moves between them."""
        may_go_on = True
        for seconds in passed_s:
            may_go_on = watch._look(seconds)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return may_go_on

    for _ in range(5):
        heartbeat.beat()
        assert await looks(0.5 * LIMIT_S, 0.5 * LIMIT_S)
    heartbeat.rest()
    assert await looks(*[LIMIT_S / 2] * 20)
    assert watch.reasons == []
    heartbeat.beat()
    assert await looks(*[LIMIT_S / 2] * 3)
    assert len(watch.reasons) == 1, "now it is stuck"


async def test_a_stuck_thread_is_told_of_once_with_its_stack_and_has_a_grace(caplog: pytest.LogCaptureFixture) -> None:
    heartbeat, released = Heartbeat(), threading.Event()

    def work_that_never_ends() -> None:
        heartbeat.beat()
        released.wait(TIMEOUT_S)

    worker = threading.Thread(target=work_that_never_ends, name="the worker")
    worker.start()
    try:
        with watching(heartbeat) as watch:
            await until(lambda: watch.reasons, TIMEOUT_S)
            await asyncio.sleep(2 * LIMIT_S)
            assert len(watch.reasons) == 1 and "the worker thread has not moved" in watch.reasons[0]
            assert "limit is 0.3 s" in watch.reasons[0] and watch.codes == []
        assert "thread the worker:" in caplog.text and "in work_that_never_ends" in caplog.text
        with watching(heartbeat, grace_s=0.2) as watch:
            await until(lambda: watch.codes, TIMEOUT_S)
            assert watch.codes == [LOST_THREAD]
    finally:
        released.set()
        worker.join()


async def test_a_process_that_should_have_ended_is_ended() -> None:
    with watching(None, grace_s=0.1) as watch:
        watch.end_soon()
        await until(lambda: watch.codes, TIMEOUT_S)
    assert watch.codes == [LOST_THREAD]


async def test_an_event_loop_that_is_stuck_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    with watching(None) as watch:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not watch.codes and time.monotonic() < deadline_s:
            time.sleep(0.01)  # on the event loop  # noqa: ASYNC251
    assert watch.codes == [LOST_THREAD] and "the event loop has not moved" in caplog.text


async def test_a_stuck_engine_leaves_service_and_its_sessions_may_go_elsewhere() -> None:
    target = Target(holds_at=3)
    async with (
        running(target) as engine,
        serving(engine) as server,  # type: ignore[arg-type]
        insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub, health = pb_grpc.VerificationServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        call = stub.Generate()
        await call.write(codec.encode_open(opening(200)))
        await target.held()
        watchdog = Watchdog(
            asyncio.get_running_loop(),
            name="engine",
            heartbeat=engine.heartbeat,
            limit_s=LIMIT_S,
            grace_s=60.0,
            on_stuck=lambda reason: engine.fail(EngineDead(reason)),
        )
        watchdog.start()
        try:
            with pytest.raises(AioRpcError) as caught:
                while await call.read() is not None:
                    pass
            assert caught.value.code() is StatusCode.UNAVAILABLE
            assert "has not moved" in (caught.value.details() or "")
            assert "has not moved" in str(await engine.failure())
            with pytest.raises(EngineDead):
                engine.open(opening(5), Sink())
            async with asyncio.timeout(TIMEOUT_S):
                while (await health.Check(health_pb2.HealthCheckRequest())).status == 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            watchdog.stop()


async def test_an_engine_given_up_does_no_further_step() -> None:
    target = Target(holds_at=2)
    async with running(target) as engine:
        sink = Sink()
        engine.open(opening(100, PROMPT), sink)
        await target.held()
        engine.fail(EngineDead("stuck"))
        assert isinstance(await sink.end(), EngineDead) and not engine.is_healthy
        num_events = len(sink.events)
        target.release()
        await until(lambda: not engine._thread.is_alive(), TIMEOUT_S)
        assert target.num_forwards == 2 and len(sink.events) == num_events


async def test_a_drafter_that_fails_says_so_and_takes_no_more() -> None:
    runner = FakeDraft(400)

    def lose(batch: PackedBatch) -> None:
        raise RuntimeError("the device was lost")

    runner.during_forward = lose
    drafter = make_drafter(runner)
    drafter.start()
    keeper = TrieKeeper(drafter, (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=50))
    async with asyncio.timeout(TIMEOUT_S):
        assert "the device was lost" in str(await drafter.failure())
    assert not drafter.is_alive and not drafter.heartbeat.is_busy
    keeper.commit([4])
    drafter.stop()


async def test_a_drafter_given_up_is_not_waited_for() -> None:
    runner, released, is_held = FakeDraft(400), threading.Event(), threading.Event()

    def hold(batch: PackedBatch) -> None:
        is_held.set()
        released.wait(TIMEOUT_S)

    runner.during_forward = hold
    drafter = make_drafter(runner)
    drafter.start()
    keeper = TrieKeeper(drafter, (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=50))
    await until(is_held.is_set, TIMEOUT_S)
    assert drafter.heartbeat.is_busy
    drafter.fail("stuck")
    assert "stuck" in str(await drafter.failure())
    drafter.stop()
    keeper.commit([4])
    released.set()
    await until(lambda: not drafter._thread.is_alive(), TIMEOUT_S)
    assert len(runner.num_rows) == 1, "it does no further step"
