"""Log-probabilities and masked tokens over real gRPC: drafts, preemption and broken streams change nothing in them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from benchmarks.cut_proxy import CutSettings
from benchmarks.exactness.deployment import Deployment, deployed
from benchmarks.exactness.draft_sources import ScriptedDrafts, grow_at_random
from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.generation import GenerationRequest
from specedge.model.embedded import resolve_model
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.wire.messages import TokenLogprob
from specedge_verifier.settings import VerifierSettings

NUM_TOKENS = 40
VOCAB_SIZE = 4096
TEXTS = (
    "Once upon a time there was a little rabbit who lived at the very end of the lane",
    "The old gentleman opened the door",
    "A tale of two hens and a windmill, please.",
    "Tell me a tale about a fox who wanted to see the sea.",
)
CUTS = CutSettings(min_bytes=3_000, max_bytes=12_000, max_s=0.3)


@dataclass
class Told:
    """One answer."""

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: tuple[TokenLogprob, ...]
    num_accepted: int = 0


pytestmark = pytest.mark.usefixtures("one_thread")


def requests(**values: object) -> list[GenerationRequest]:
    """Greedy and sampled answers, each asking for other numbers of log-probabilities."""
    tokenizer = load_tokenizer(resolve_model("demo", "target"))
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    return [
        GenerationRequest(
            f"r{index}",
            tuple(tokenizer(text).input_ids),
            replace(
                sampling,
                temperature=0.0 if index == 1 else 0.9,
                seed=index,
                num_logprobs=(2, 0, 5, 1)[index],
                num_prompt_logprobs=(None, 3, 0, None)[index],
                **values,  # type: ignore[arg-type]
            ),
        )
        for index, text in enumerate(TEXTS)
    ]


async def answer(deployment: Deployment, request: GenerationRequest) -> Told:
    told = Told([], [], ())
    async with deployment.service.generate(request) as bursts:
        async for burst in bursts:
            assert not (told.token_ids and burst.prompt_logprobs), "told once"
            told.token_ids += burst.token_ids
            told.logprobs += burst.logprobs
            told.num_accepted += burst.num_accepted
            told.prompt_logprobs = told.prompt_logprobs or burst.prompt_logprobs
    return told


async def answers(
    asked: list[GenerationRequest], source: DraftSource, num_blocks: int, cuts: CutSettings | None = None
) -> tuple[list[Told], Deployment]:
    settings = VerifierSettings(
        device="cpu",
        num_threads=1,
        max_len=128,
        block_size=4,
        num_kv_blocks=num_blocks,
        max_batch_size=8,
        max_num_batched_tokens=48,
        max_live_nodes=64,
        max_tree_nodes=16,
    )
    async with deployed(settings, source, cuts, seed=5) as deployment:
        if cuts is None and isinstance(source, NullDraftSource):
            return [await answer(deployment, request) for request in asked], deployment
        return list(await asyncio.gather(*(answer(deployment, request) for request in asked))), deployment


def drafts(plain: Mapping[str, Told]) -> ScriptedDrafts:
    known = {name: told.token_ids for name, told in plain.items()}
    return ScriptedDrafts("random", grow_at_random, known, VOCAB_SIZE, seed=1)


def assert_close(told: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert len(told) == len(expected)
    for own, other in zip(told, expected, strict=True):
        assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert list(own.top_logprobs) == pytest.approx(list(other.top_logprobs), abs=1e-4)


async def test_drafts_preemption_and_broken_streams_change_no_log_probability() -> None:
    asked = requests()
    plain, _ = await answers(asked, NullDraftSource(), num_blocks=128)
    source = drafts({request.request_id: told for request, told in zip(asked, plain, strict=True)})
    hurried, deployment = await answers(asked, source, num_blocks=36, cuts=CUTS)
    assert deployment.streams.num_resumed_tokens > 0
    assert deployment.verifier.core.scheduler.num_preemptions > 0
    for request, told, expected in zip(asked, hurried, plain, strict=True):
        assert told.token_ids == expected.token_ids
        assert len(told.logprobs) == NUM_TOKENS
        assert_close(told.logprobs, expected.logprobs)
        assert_close(list(told.prompt_logprobs), list(expected.prompt_logprobs))
        wants_prompt = request.sampling.num_prompt_logprobs is not None
        assert len(told.prompt_logprobs) == (len(request.prompt_ids) - 1 if wants_prompt else 0)


async def test_bad_words_and_allowed_tokens_are_obeyed_on_every_path_of_a_tree() -> None:
    free, _ = await answers(requests(), NullDraftSource(), num_blocks=128)
    tokens = [told.token_ids for told in free]
    pairs = {pair for text in tokens for pair in zip(text[::3], text[1::3], strict=False)}
    triples = {triple for text in tokens for triple in zip(text[2::5], text[3::5], text[4::5], strict=False)}
    words = (*sorted(pairs), *sorted(triples), (tokens[0][0],))
    allowed = tuple(range(0, VOCAB_SIZE - 1, 2)) + tuple(sorted({t for text in tokens for t in text if t % 2}))
    asked = requests(bad_words=words, allowed_token_ids=allowed)
    plain, _ = await answers(asked, NullDraftSource(), num_blocks=128)
    for told, before in zip(plain, tokens, strict=True):
        text = told.token_ids
        assert text != before
        assert set(text) <= set(allowed)
        for word in words:
            assert all(tuple(text[at : at + len(word)]) != word for at in range(len(text)))
    source = drafts({request.request_id: told for request, told in zip(asked, plain, strict=True)})
    drafted, _ = await answers(asked, source, num_blocks=128)
    assert sum(told.num_accepted for told in drafted) > NUM_TOKENS
    assert [told.token_ids for told in drafted] == [told.token_ids for told in plain]
    for told, expected in zip(drafted, plain, strict=True):
        assert_close(told.logprobs, expected.logprobs)
