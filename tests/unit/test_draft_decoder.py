"""The draft model alone decodes as the reference sampler says, in any company, and gives back what it took."""

import asyncio

import numpy as np
import pytest
from fake_draft import VOCAB_SIZE, FakeDraft, fake_logits

from edge_agent.decoding_session import Decoded, DecodingSession
from edge_agent.draft_decoder import DraftDecoder
from edge_agent.drafter import Drafter
from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.errors import CapacityExceeded, VerifierUnavailable
from specedge.reference_sampler import reference_scores
from specedge.sampling import SamplingParams

PROMPT = (3, 1, 4, 1, 5)


def session_of(
    prompt: tuple[int, ...], sampling: SamplingParams, told: list[Decoded], begun: int = 0
) -> DecodingSession:
    request = DraftRequest("session", prompt, sampling, (0,), 0)
    return DecodingSession(request, told.append, len(prompt) - begun)


def expected(prompt: tuple[int, ...], sampling: SamplingParams) -> list[int]:
    """Token by token, by the reference."""
    answer: list[int] = []
    while len(answer) < sampling.max_tokens:
        logits = fake_logits((*prompt, *answer)).numpy()
        scores = reference_scores(logits, sampling, prompt_ids=prompt, generated_ids=answer, eos_ids=(0,))
        answer.append(int(np.argmax(scores)))
        if answer[-1] == 0 and not sampling.ignore_eos:
            break
    return answer


def run(decoder: DraftDecoder, num_steps: int = 200) -> None:
    for _ in range(num_steps):
        for session, decoded in decoder.step():
            session.on_decoded(decoded)


SAMPLINGS = [
    SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=3, max_tokens=30),
    SamplingParams(temperature=0.8, top_k=4, top_p=0.9, seed=4, max_tokens=25, ignore_eos=True),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.5, seed=5, max_tokens=25),
    SamplingParams(temperature=1.0, min_tokens=10, bad_words=((2,), (3, 4)), seed=6, max_tokens=25),
]


def test_all_sessions_get_what_the_reference_says() -> None:
    runner, pool = FakeDraft(600), BlockPool(600, 1)
    decoder = DraftDecoder(runner, pool, VOCAB_SIZE)
    told: list[list[Decoded]] = [[] for _ in SAMPLINGS]
    prompts = [(index, *PROMPT) for index in range(len(SAMPLINGS))]
    for prompt, sampling, results in zip(prompts, SAMPLINGS, told, strict=True):
        decoder.open(session_of(prompt, sampling, results))
    run(decoder)
    for prompt, sampling, results in zip(prompts, SAMPLINGS, told, strict=True):
        answer = expected(prompt, sampling)
        assert [decoded.token_id for decoded in results] == answer
        assert results[-1].finish_reason == ("length" if answer[-1] != 0 or sampling.ignore_eos else "stop")
    assert pool.num_held == 0 and not decoder.has_work
    assert max(runner.computed.values()) == 1


@pytest.mark.parametrize("num_told", [1, 7, 19])
def test_an_answer_goes_on_after_any_of_its_tokens(num_told: int) -> None:
    sampling = SAMPLINGS[3]
    answer = expected(PROMPT, sampling)
    told: list[Decoded] = []
    decoder = DraftDecoder(FakeDraft(600), BlockPool(600, 1), VOCAB_SIZE)
    num_told = min(num_told, len(answer) - 1)
    decoder.open(session_of((*PROMPT, *answer[:num_told]), sampling, told, num_told))
    run(decoder)
    assert [decoded.token_id for decoded in told] == answer[num_told:]


def test_a_long_prompt_takes_several_steps_of_bounded_size() -> None:
    runner, told = FakeDraft(600), list[Decoded]()
    decoder = DraftDecoder(runner, BlockPool(600, 1), VOCAB_SIZE)
    prompt = tuple(index % VOCAB_SIZE for index in range(300))
    decoder.open(session_of(prompt, SAMPLINGS[0], told))
    run(decoder)
    assert runner.num_rows[:4] == [128, 128, 44, 1]
    assert len(told) == 20


def test_who_finds_no_slots_is_told_and_others_go_on() -> None:
    pool = BlockPool(30, 1)
    decoder = DraftDecoder(FakeDraft(30), pool, VOCAB_SIZE)
    first, second = list[Decoded](), list[Decoded]()
    decoder.open(session_of(PROMPT, SAMPLINGS[0], first))
    decoder.open(session_of(PROMPT * 4, SAMPLINGS[0], second))
    run(decoder)
    assert isinstance(second[-1].error, CapacityExceeded) and second[-1].error.retry_after_s > 0
    assert first[-1].finish_reason == "length" and pool.num_held == 0


def test_a_paused_session_waits_and_an_ended_one_holds_nothing() -> None:
    pool, told = BlockPool(600, 1), list[Decoded]()
    decoder = DraftDecoder(FakeDraft(600), pool, VOCAB_SIZE)
    session = session_of(PROMPT, SAMPLINGS[0], told)
    decoder.open(session)
    run(decoder, 3)
    session.is_paused = True
    assert not decoder.has_work and decoder.step() == []
    assert len(told) == 3 and pool.num_held > 0
    assert [type(decoded.error) for _, decoded in decoder.end(VerifierUnavailable("over"))] == [VerifierUnavailable]
    decoder.close(session)
    assert pool.num_held == 0


async def test_a_drafter_whose_thread_fails_tells_those_who_wait() -> None:
    runner = FakeDraft(600)

    def fail(_: object) -> None:
        raise RuntimeError("the device is gone")

    runner.during_forward = fail
    drafter = Drafter(runner, drafter_id="fake", settings=DraftingSettings(), decodes_alone=True)
    drafter.start()
    told: asyncio.Queue[Decoded] = asyncio.Queue()
    request = DraftRequest("session", PROMPT, SAMPLINGS[0], (0,), 0)
    drafter.decode(DecodingSession(request, told.put_nowait, len(PROMPT)))
    async with asyncio.timeout(10):
        assert isinstance((await told.get()).error, VerifierUnavailable)
    drafter.stop()
