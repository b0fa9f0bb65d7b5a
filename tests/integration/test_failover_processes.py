"""Real processes: an edge of two verifiers, which are killed, frozen, and drained under the answers they make."""

import asyncio
import signal
from collections.abc import Iterator

import pytest
from failover_site import ASKS, MOVED, Site
from processes import EXIT_TIMEOUT_S, Verifier, nothing_held, running

from specedge_cli.supervisor import specedge_command


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site.at(*(tmp_path_factory.mktemp(name) for name in ("first", "second", "edge")))
    with running(site.first, site.second, site.edge):
        yield site
    assert "Traceback" not in site.edge.log(), site.edge.log()


@pytest.mark.slow  # the short chaos kills one too, and test_failover has silence that is noticed, in one process
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_no_answer_notices_more_than_a_pause(site: Site, number: signal.Signals) -> None:
    await site.until_both_are_good()
    undisturbed = await site.make_undisturbed()
    num_moved = await site.edge.sample(MOVED)
    struck: list[Verifier] = []

    async def strike() -> None:
        struck.append(await site.busiest())
        struck[0].signal(number)

    try:
        async with asyncio.timeout(150):
            assert await site.edge.answers(ASKS, strike) == undisturbed
    finally:
        # A stopped process would not hear that it is to end.
        for verifier in struck:
            if number is signal.SIGSTOP:
                verifier.signal(signal.SIGCONT)
    assert await site.edge.sample(MOVED) > num_moved, "an answer must have moved"
    if number is signal.SIGKILL:
        assert struck[0].exit_code() == -signal.SIGKILL
        struck[0].start()
        await asyncio.to_thread(struck[0].wait_ready)
    await site.until_both_are_good()
    await nothing_held(site.first, site.second, site.edge)


async def drained(verifier: Verifier) -> str:
    """What `specedge verifier drain` prints."""
    command = specedge_command(["verifier", "drain", "--port", verifier.address.rpartition(":")[2]])
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(EXIT_TIMEOUT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.slow  # each step of it has a test in one process, and SIGTERM under load is in the short chaos
@pytest.mark.timeout(300)
async def test_verifiers_are_restarted_one_after_the_other_and_no_answer_fails(site: Site) -> None:
    await site.until_both_are_good()
    num_moved = await site.edge.sample(MOVED)
    async with asyncio.timeout(240), site.under_load(num_asks=3):
        for verifier in (site.first, site.second):
            await site.until_both_are_good()
            await site.until_it_has_sessions(verifier)
            assert "has ended" in await drained(verifier)
            assert verifier.exit_code() == 0
            verifier.start()
            await asyncio.to_thread(verifier.wait_ready)
        await site.until_both_are_good()
    assert await site.edge.sample(MOVED) > num_moved, "answers must have moved"
    await nothing_held(site.first, site.second, site.edge)
