"""A real verifier with stream processes, one without, and an edge of both: the text, and how each part may end."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from failover_site import SESSIONS
from processes import Ask, Edge, Verifier, nothing_held, running

from specedge.watchdog import LOST_THREAD
from specedge_cli.drain import drain_verifier

ASKS = [
    Ask(f"The {animal} went to the market and", seed=100 + number, max_tokens=200)
    for number, animal in enumerate(("fox", "owl", "hare", "crow"))
]
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "hen"]}, "age": {"type": "integer", "minimum": 1, "maximum": 20}},
    "required": ["animal", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
NUM_PROCESSES = 2
GONE_S = 10.0


@dataclass(frozen=True)
class Site:
    many: Verifier
    plain: Verifier
    edge: Edge
    undisturbed: list[str] = field(default_factory=list)

    async def answers(self, on_begun: Callable[[], object] = lambda: None) -> list[str]:
        """The texts; `on_begun` is called once the first has begun."""
        async with asyncio.timeout(100):
            return await self.edge.answers(ASKS, on_begun, num_pieces=1)

    async def make_undisturbed(self) -> list[str]:
        """The texts that come when nothing happens, made once."""
        if not self.undisturbed:
            self.undisturbed.extend(await self.answers())
        return self.undisturbed

    def stream_processes(self) -> list[psutil.Process]:
        found = [child for child in self.many.children() if "specedge_verifier.stream_process" in child.cmdline()]
        assert len(found) == NUM_PROCESSES
        return found

    async def start_again(self) -> None:
        """The verifier with stream processes serves, and nobody else."""
        if self.plain.is_running:
            await asyncio.to_thread(self.plain.wait_ready)
            self.plain.signal(signal.SIGTERM)
            assert await asyncio.to_thread(self.plain.exit_code) == 0
        if not self.many.is_running:
            self.many.start()
        await asyncio.to_thread(self.many.wait_ready)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folders = [tmp_path_factory.mktemp(name) for name in ("many", "plain", "edge")]
    many = Verifier(folders[0], "--num-kv-blocks", "256", "--stream-processes", str(NUM_PROCESSES))
    plain = Verifier(folders[1], "--num-kv-blocks", "256")
    both = f"{many.address},{plain.address}"
    flags = ("--num-draft-slots", "4096", "--verifier-address", both, "--verifier-deadline-s", "90")
    edge = Edge(folders[2], "edge", many, *flags)
    try:
        with running(many, edge):
            yield Site(many, plain, edge)
    finally:
        plain.destroy()


async def test_answers_are_served_and_what_passes_is_counted_in_one_place(site: Site) -> None:
    await site.make_undisturbed()
    async with site.edge.client() as client:
        answer = await client.chat.completions.create(
            model="specedge-demo",
            messages=[{"role": "user", "content": "An animal, please."}],
            response_format=FORMAT,
            seed=7,
            max_tokens=100,
        )
    assert json.loads(answer.choices[0].message.content)["animal"] in ("fox", "hen")
    await nothing_held(site.many, site.edge)
    assert await site.many.sample("specedge_verifier_committed_tokens_total") >= len(ASKS) * 200
    assert await site.many.sample("specedge_verifier_wire_bytes_total", direction="up") > 0
    for number in range(NUM_PROCESSES):
        assert await site.many.sample("specedge_verifier_stream_process_cpu_seconds_total", process=str(number)) > 0


@pytest.mark.timeout(200)
@pytest.mark.slow  # test_stream_processes.py has it without a model
async def test_a_stream_process_that_is_killed_ends_the_verifier_and_answers_go_on_without(site: Site) -> None:
    undisturbed = await site.make_undisturbed()

    def kill_one() -> None:
        site.stream_processes()[0].kill()
        site.plain.start()

    assert await site.answers(kill_one) == undisturbed
    assert await asyncio.to_thread(site.many.exit_code) == LOST_THREAD
    assert "is lost: it" in site.many.log()
    assert await site.answers() == undisturbed, "the text is that of a verifier without stream processes"
    await nothing_held(site.plain, site.edge)


@pytest.mark.timeout(200)
@pytest.mark.slow  # test_stream_processes.py has it without a model
async def test_it_drains_in_good_order(site: Site) -> None:
    await site.start_again()
    undisturbed = await site.make_undisturbed()
    processes = site.stream_processes()
    port = site.many.address.rpartition(":")[2]
    draining: list[asyncio.Task[int]] = []

    def drain() -> None:
        site.plain.start()  # sessions that have not begun, and those that had better move, go there
        draining.append(asyncio.create_task(asyncio.to_thread(drain_verifier, ["--port", port])))

    assert await site.answers(drain) == undisturbed
    assert await draining[0] == 0
    assert await asyncio.to_thread(site.many.exit_code) == 0
    assert not any(process.is_running() for process in processes)


@pytest.mark.timeout(200)
@pytest.mark.slow  # test_stream_processes.py has it without a model
async def test_stream_processes_do_not_outlive_the_engines(site: Site) -> None:
    await site.start_again()
    undisturbed = await site.make_undisturbed()
    processes = site.stream_processes()
    for process in processes:  # as a terminal's Ctrl-C and a supervisor reach them
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    assert await site.answers() == undisturbed
    assert await site.many.sample(SESSIONS) == 0
    site.many.signal(signal.SIGKILL)
    await asyncio.to_thread(site.many.exit_code)
    gone, left = await asyncio.to_thread(psutil.wait_procs, processes, GONE_S)
    assert len(gone) == NUM_PROCESSES and not left
