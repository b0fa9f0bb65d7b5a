"""A verifier of two ranks under torchrun, as its users run it: same answers, and it ends as a whole."""

import asyncio
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from processes import Ask, Edge, Verifier, nothing_held, running

ASKS = [
    Ask(f"The {animal} went to the market and", seed=200 + number, max_tokens=96, temperature=temperature)
    for number, (animal, temperature) in enumerate((("fox", 0.0), ("owl", 1.0), ("hare", 0.7), ("crow", 1.0)))
]
RANK_TIMEOUT_S = 60
"""For frozen ranks; one that has died must be noticed long before."""


def torchrun(arguments: Sequence[str]) -> list[str]:
    """The command of a verifier of two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "specedge_cli", *arguments]


class RankedVerifier(Verifier):
    """A verifier of two ranks; the process that is watched is torchrun."""

    command = staticmethod(torchrun)

    def ranks(self) -> list[psutil.Process]:
        """The ranks' processes, rank 0 first."""
        return sorted(self.process.children(), key=lambda child: int(child.environ()["RANK"]))

    def signal(self, number: signal.Signals) -> None:
        """To every rank, as a supervisor of ranks does; torchrun itself ends with 1 when it is the one to be told."""
        for rank in self.ranks():
            rank.send_signal(number)

    def destroy(self) -> None:
        if self.is_running:
            for process in [*self.children(), self.process]:
                process.kill()
            self.exit_code()


@dataclass(frozen=True)
class Site:
    """One edge that knows two verifiers; never are both running but while the first one ends."""

    ranked: RankedVerifier
    single: Verifier
    edge: Edge

    async def answers(self, on_started: Callable[[], None] = lambda: None) -> list[str]:
        """The texts; `on_started` is called when the first has begun."""
        async with asyncio.timeout(100):
            return await self.edge.answers(ASKS, on_started)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folders = [Path(tmp_path_factory.mktemp(name)) for name in ("ranked", "single", "edge")]
    sized = ("--tensor-parallel-size", "2", "--rank-timeout-s", str(RANK_TIMEOUT_S))
    ranked = RankedVerifier(folders[0], "--num-kv-blocks", "128", *sized)
    single = Verifier(folders[1], "--num-kv-blocks", "128")
    both = f"{ranked.address},{single.address}"
    edge = Edge(folders[2], "edge", ranked, "--num-draft-slots", "4096", "--verifier-address", both)
    try:
        with running(ranked, edge):
            yield Site(ranked, single, edge)
    finally:
        single.destroy()
    assert "Traceback" not in single.log() + edge.log()


async def test_two_ranks_answer_as_one_and_end_when_one_dies(site: Site) -> None:
    of_two = await site.answers()
    assert await site.ranked.sample("specedge_verifier_tensor_parallel_size") == 2
    assert await site.ranked.sample("specedge_verifier_accepted_draft_nodes_total") > 50, "drafts must be verified"
    assert await site.ranked.sample("specedge_verifier_kv_moved_tokens_total") > 0, "keys must be moved on both ranks"
    assert await site.ranked.sample("specedge_verifier_broadcast_bytes_total") > 0
    await nothing_held(site.ranked, site.edge)

    site.single.start()
    await asyncio.to_thread(site.single.wait_ready)
    ranks = site.ranked.ranks()
    async with asyncio.timeout(100):
        assert await site.answers(ranks[1].kill) == of_two, "answers go on at the other verifier"
        assert await asyncio.to_thread(site.ranked.exit_code) == 1
    assert not any(rank.is_running() for rank in ranks)
    assert re.search("rank 0 (has lost another rank|cannot reach all of the 2 ranks)", site.ranked.log())
    assert await site.answers() == of_two, "one rank alone says the same"
    await nothing_held(site.single, site.edge)
    site.single.signal(signal.SIGTERM)
    assert site.single.exit_code() == 0


@pytest.mark.slow
async def test_a_signal_drains_all_ranks(site: Site) -> None:
    if not site.ranked.is_running:
        site.ranked.start()
        await asyncio.to_thread(site.ranked.wait_ready)
    await asyncio.to_thread(site.edge.wait_ready)
    seen = len(site.ranked.log())
    answers = await site.answers(lambda: site.ranked.signal(signal.SIGTERM))
    assert [len(answer) > 60 for answer in answers] == [True] * len(ASKS)
    assert await asyncio.to_thread(site.ranked.exit_code) == 0, "torchrun has seen exit code 0 of all ranks"
    log = site.ranked.log()[seen:]
    assert "rank 1 stopped" in log and "Traceback" not in log
