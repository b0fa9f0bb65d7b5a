"""Answers go on at another verifier, over real sockets: whatever becomes of the first one, the same tokens come."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from edge_harness import QUICK, answer_of, wanted
from fakes import INFO, FakeEngine, TreeDrafts, expected_answer, serving, until
from pool_harness import NUM_TOKENS, PROMPTS, TIMES, edge_of
from tcp_proxy import TcpProxy

from edge_agent.draft_source import DraftSource
from edge_agent.verifier_addresses import FileAddresses
from specedge.errors import CapacityExceeded, InvalidRequest, ModelLoadError, VerifierUnavailable
from specedge.grammar.spec import GrammarSpec
from specedge.sampling import SamplingParams
from specedge.wire.messages import LOGPROBS, OpenSession, ServerInfo
from specedge_verifier.grpc_server import VerifierServer


@dataclass(slots=True)
class Site:
    """A verifier behind a proxy."""

    engine: FakeEngine
    server: VerifierServer
    proxy: TcpProxy

    @property
    def port(self) -> int:
        return self.proxy.port


@asynccontextmanager
async def sites(*infos: ServerInfo, step_s: float = 0.004) -> AsyncIterator[list[Site]]:
    async with AsyncExitStack() as stack:
        found = []
        for info in infos or (INFO, INFO):
            engine = FakeEngine(info, step_s=step_s)
            server = await stack.enter_async_context(serving(engine))
            proxy = TcpProxy(server.port)
            await proxy.start()
            stack.push_async_callback(proxy.close)
            found.append(Site(engine, server, proxy))
        yield found


def by_sessions(*of: Site) -> list[Site]:
    """The busiest first: a fault where no session is would test nothing."""
    return sorted(of, key=lambda site: -site.engine.num_sessions)


async def abort(site: Site) -> None:
    """As a killed process: connections are reset, and nobody listens."""
    await site.proxy.close()


async def drain(site: Site) -> None:
    """As after SIGTERM with a grace that is longer than the answers."""
    await site.server.drain(10.0)


async def stop(site: Site) -> None:
    await site.server.stop()


async def cut(site: Site) -> None:
    """The connection breaks; the verifier is there again at once."""
    site.proxy.cut()


async def silence(site: Site) -> None:
    """Half-open TCP: connections stand, and nothing passes."""
    site.proxy.freeze()


@pytest.mark.parametrize("drafts", [None, TreeDrafts(12, 2)], ids=["plain", "drafted"])
@pytest.mark.parametrize("fault", [abort, drain, stop, cut, silence])
async def test_answers_in_the_making_go_on_elsewhere(fault: Callable[..., object], drafts: DraftSource | None) -> None:
    async with sites() as (first, second), edge_of([first.port, second.port], drafts) as edge:
        faults: list[asyncio.Task[None]] = []
        found: list[Site] = []

        def strike() -> None:
            found.extend(by_sessions(first, second))
            faults.append(asyncio.create_task(fault(found[0])))  # type: ignore[arg-type]

        answers = await edge.answers(strike)
        struck, other = found
        assert answers == [expected_answer(prompt, NUM_TOKENS) for prompt in PROMPTS]
        assert edge.counters.num_given_up == 0
        resumed = [opening for opening in (*struck.engine.opened, *other.engine.opened) if opening.committed_ids]
        assert resumed, "a fault that nobody noticed tests nothing"
        if fault is not cut:
            assert edge.counters.num_failed_over == len(resumed)
            assert {*resumed} <= {*other.engine.opened}
        async with asyncio.timeout(5):
            await asyncio.gather(*faults)
        await until(lambda: not other.engine.num_sessions)


@pytest.mark.parametrize("way", ["told", "pinged"])
async def test_sessions_of_a_draining_verifier_leave_it_long_before_its_grace_is_over(way: str) -> None:
    never = replace(TIMES, ping_every_s=60.0, idle_ping_every_s=60.0)
    async with (
        sites(step_s=0.02) as (first, second),
        edge_of([first.port, second.port], times=never if way == "told" else TIMES) as edge,
    ):
        await until(lambda: edge.state(first.port) == edge.state(second.port) == "good")
        asking = [asyncio.create_task(answer_of(edge.service, wanted(200, prompt))) for prompt in PROMPTS]
        await until(lambda: edge.counters.num_opened == len(PROMPTS))  # one not yet opened has nothing to move from
        first, second = by_sessions(first, second)
        num_moving = first.engine.num_sessions
        assert 0 < num_moving < len(PROMPTS), "two random choices use both"
        if way == "pinged":
            first.server.service._movable.clear()  # as if they were of edges that do not know the word
        async with asyncio.timeout(5):
            await first.server.drain(60.0)
        await until(lambda: second.engine.num_sessions == len(PROMPTS))
        await until(lambda: edge.counters.num_failed_over == num_moving)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*asking) == [expected_answer(prompt, 200) for prompt in PROMPTS]


async def test_a_session_that_still_waits_for_a_place_is_told_too() -> None:
    never = replace(TIMES, ping_every_s=60.0, idle_ping_every_s=60.0)
    async with sites() as (first, second), edge_of([first.port, second.port], times=never) as edge:
        await until(lambda: edge.state(first.port) == edge.state(second.port) == "good")
        waiting: list[OpenSession] = []

        def queue(message: OpenSession, *_: object) -> int:
            waiting.append(message)
            return len(waiting)

        first.engine.open = queue  # type: ignore[method-assign]
        asking = [asyncio.create_task(answer_of(edge.service, wanted(20, prompt))) for prompt in PROMPTS]
        await until(lambda: waiting)
        async with asyncio.timeout(5):
            await first.server.drain(60.0)
            assert await asyncio.gather(*asking) == [expected_answer(prompt, 20) for prompt in PROMPTS]


async def test_sessions_stay_on_a_draining_verifier_that_is_the_only_one_with_what_they_need() -> None:
    poor = replace(INFO, capabilities=())
    async with sites(INFO, poor, step_s=0.01) as (first, second), edge_of([first.port, second.port]) as edge:
        request = wanted(60, sampling=SamplingParams(max_tokens=60, allowed_token_ids=(5, 6)))
        asking = asyncio.create_task(answer_of(edge.service, request))
        await until(lambda: first.engine.num_sessions == 1)
        async with asyncio.timeout(10):
            await first.server.drain(10.0)
        assert await asking == expected_answer(request.prompt_ids, 60)
        assert second.engine.opened == []


async def test_each_session_is_opened_where_its_capabilities_are() -> None:
    poor, short = replace(INFO, capabilities=()), replace(INFO, capabilities=(LOGPROBS,), max_len=100)
    async with (
        sites(poor, INFO, short) as (first, second, third),
        edge_of([first.port, second.port, third.port]) as edge,
    ):
        assert edge.service.info is not None
        assert {*edge.service.info.capabilities} == {*INFO.capabilities} and edge.service.info.max_len == 100
        sampling = SamplingParams(max_tokens=5, bad_words=((1,),))
        for _ in range(8):
            assert len(await answer_of(edge.service, wanted(5, sampling=sampling))) == 5
        assert len(second.engine.opened) == 8
        with pytest.raises(InvalidRequest, match="cannot make answers follow a grammar"):
            grammar = GrammarSpec("regex", "a+", "guided_regex")
            await answer_of(edge.service, wanted(5, sampling=SamplingParams(max_tokens=5, grammar=grammar)))


async def test_a_verifier_with_another_model_is_left_out_until_it_serves_the_same() -> None:
    other = replace(INFO, target_model="another")
    async with (
        sites(INFO, INFO, other) as (first, second, third),
        edge_of([first.port, second.port, third.port]) as edge,
    ):
        assert edge.service.info == INFO
        assert edge.state(third.port) == "left_out"
        assert "another" in str(edge.pool.failure)
        answers = await edge.answers(lambda: None, 40)
        assert answers == [expected_answer(prompt, 40) for prompt in PROMPTS]
        assert third.engine.opened == [] and first.engine.opened and second.engine.opened
        third.engine._info = INFO
        await until(lambda: edge.state(third.port) == "good")


async def test_verifiers_with_another_tokenizer_are_no_verifiers() -> None:
    other = replace(INFO, tokenizer_fingerprint="tokenizer-9")
    async with sites(other, INFO) as (first, second), edge_of([first.port, second.port]) as edge:
        assert edge.state(first.port) == "left_out"
        assert await answer_of(edge.service, wanted(20)) == expected_answer(wanted(1).prompt_ids, 20)
    async with sites(other, other) as (first, second):
        with pytest.raises(ModelLoadError, match="tokenizer-9"):
            async with edge_of([first.port, second.port]):
                pass


async def test_a_full_verifier_is_passed_by_and_only_when_all_are_full_the_user_is_told() -> None:
    async with sites() as (first, second), edge_of([first.port, second.port]) as edge:
        first.engine.max_sessions = 0
        for _ in range(8):
            assert await answer_of(edge.service, wanted(10)) == expected_answer(wanted(1).prompt_ids, 10)
        assert edge.counters.num_broken <= 1, "who was full is not asked again at once"
        second.engine.max_sessions = 0
        with pytest.raises(CapacityExceeded, match="no more fit"):
            await answer_of(edge.service, wanted(10))


async def test_new_answers_begin_while_a_verifier_is_gone_and_it_is_used_again_when_it_is_back() -> None:
    async with sites() as (first, second), edge_of([first.port, second.port]) as edge:
        port = first.server.port
        await first.server.stop()
        for prompt in PROMPTS:
            assert await answer_of(edge.service, wanted(10, prompt)) == expected_answer(prompt, 10)
        await until(lambda: edge.state(first.port) in ("lost", "doubted", "away"))
        assert edge.service.is_ready
        again = FakeEngine()
        async with serving(again, port=port):
            await until(lambda: edge.state(first.port) == "good", 10)
            while not again.opened:
                await answer_of(edge.service, wanted(10))


async def test_the_file_of_verifiers_may_change_under_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "verifiers"
    async with sites(step_s=0.01) as (first, second):
        path.write_text(f"127.0.0.1:{first.port}  # the old one\n")
        async with edge_of(FileAddresses(path, allows_plaintext=False)) as edge:
            asking = asyncio.create_task(answer_of(edge.service, wanted(400)))
            await until(lambda: first.engine.num_sessions == 1)
            path.write_text(f"127.0.0.1:{second.port}\n")
            await until(lambda: second.engine.num_sessions == 1, 8)
            async with asyncio.timeout(20):
                assert await asking == expected_answer(wanted(1).prompt_ids, 400)
            assert [address for address, *_ in edge.pool.states] == [f"127.0.0.1:{second.port}"]
            assert edge.counters.num_failed_over == 1


async def test_when_every_verifier_is_gone_the_answer_fails_at_the_deadline_and_names_them() -> None:
    options = replace(QUICK, verifier_deadline_s=0.8)
    async with sites() as (first, second), edge_of([first.port, second.port], options=options) as edge:
        with pytest.raises(
            VerifierUnavailable, match=f"no verifier at 127.0.0.1:{first.port}, 127.0.0.1:{second.port}"
        ):
            async with edge.service.generate(wanted(2000)) as bursts, aclosing(bursts):
                await anext(bursts)
                await asyncio.gather(first.proxy.close(), second.proxy.close())
                async for _ in bursts:
                    pass
        assert edge.counters.num_given_up == 1
        assert not edge.service.is_ready
