"""Hostile streams and bodies against live processes: `make fuzz` in small, and `tests/fuzz/corpus`, sent again.

The corpus has what once broke something, and what lies beside a bound on which something depends.
"""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.attacks import METHOD, Tally, channel_to, replay, send_stream, told
from fuzz.inputs import Case, Stream, read_cases
from fuzz.run import Options, attack, logged, send_again, services
from fuzz.strategies import streams
from http_support import tokenizer
from hypothesis import HealthCheck, given, settings
from processes import Edge, Verifier, nothing_held, running

from specedge.tokenizer import tokenizer_fingerprint

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
NUM_MADE = 150
Site = tuple[Verifier, Edge]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    verifier, edge = services(tmp_path_factory.mktemp("logs"))
    with running(verifier, edge):
        yield verifier, edge


async def test_hostile_messages_and_bodies_break_nothing(site: Site) -> None:
    result = await attack(*site, Options(num_messages=400, num_bodies=300, seed=1))
    assert result.problems == []
    assert {"OK", "left", "INVALID_ARGUMENT", "FAILED_PRECONDITION"} <= result.verifier.outcomes.keys()
    assert {"200", "400"} <= result.edge.outcomes.keys()
    assert result.num_answers
    assert logged(*site) == []


async def test_every_input_of_the_corpus_ends_as_it_should(site: Site) -> None:
    cases = read_cases(CORPUS)
    assert all(case.name and case.outcome for case in cases)
    assert len({(type(case.sent), case.name) for case in cases}) == len(cases)
    result = await send_again(*site, cases)
    assert result.problems == []
    assert result.verifier.num_sent and result.edge.num_sent and result.num_answers
    assert logged(*site) == []


def test_streams_that_hypothesis_makes_break_nothing(site: Site) -> None:
    verifier, _ = site
    tally = Tally()

    async def send(made: Stream) -> None:
        async with channel_to(verifier) as channel:
            await send_stream(channel.stream_stream(METHOD), made, tally)

    with asyncio.Runner() as runner:

        @settings(max_examples=NUM_MADE, deadline=None, suppress_health_check=list(HealthCheck))
        @given(streams(tokenizer_fingerprint(tokenizer())))
        def send_each(made: Stream) -> None:
            tally.broken.clear()
            runner.run(send(made))
            assert told(tally.broken) == []

        send_each()
        runner.run(nothing_held(*site))
    assert {"OK", "INVALID_ARGUMENT"} <= tally.outcomes.keys(), "some are refused, and some are not"
    assert logged(*site) == []


async def test_a_wrong_outcome_is_told(site: Site) -> None:
    cases = read_cases(CORPUS)
    wrong = [Case(case.sent, case.name, "UNIMPLEMENTED") for case in (cases[0], cases[-1])]
    of_verifier, of_edge = await replay(*site, wrong)
    assert of_edge.broken == [(f"{wrong[0].name}: 400 in place of UNIMPLEMENTED", wrong[0].sent)]
    assert of_verifier.broken == [(f"{wrong[1].name}: OK in place of UNIMPLEMENTED", wrong[1].sent)]


async def test_an_attack_ends_with_a_process_that_dies(site: Site) -> None:
    verifier, edge = site

    def kill(num_sent: int) -> None:
        if edge.is_running:
            edge.signal(signal.SIGKILL)

    result = await attack(verifier, edge, Options(), kill)
    assert f"{edge.address} has ended with exit code {-signal.SIGKILL}" in result.problems
    assert result.verifier.latest and result.edge.latest
