"""What speculation breaks elsewhere: answers drafted for are those of plain decoding, over HTTP, and nothing is kept.

The drafts know the right answer and go on beyond its end, so that many tokens arrive together: ends, stops and
characters fall inside bursts all the time.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fakes import until
from grammar_support import compiler
from http_support import EOS_ID, ids, serving, tokenizer

from benchmarks.exactness.deployment import Deployment, deployed
from benchmarks.exactness.draft_sources import ScriptedDrafts, ScriptedSession
from benchmarks.exactness.kept_compiler import KeptCompiler
from edge_agent.draft_source import OnNodes
from edge_agent.generation import Burst, GenerationRequest, GenerationService
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import CapacityExceeded
from specedge.sampling import SamplingParams
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes, ServerInfo
from specedge_verifier.settings import VerifierSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "Once upon a time there was a little rabbit"
CHAIN = 9
BLOCK_SIZE = 8
MAX_SESSIONS = 6
VERIFIER = VerifierSettings(
    num_threads=1, max_len=1024, block_size=BLOCK_SIZE, num_kv_blocks=800, max_batch_size=MAX_SESSIONS,
    max_num_batched_tokens=64, max_waiting=512,
)  # fmt: skip
ENDS = {str(EOS_ID): 7.0}
BYTES = {str(token): 30.0 for token in ids("é🙂")}


def grow_right(session: ScriptedSession) -> DraftNodes:
    """The right text and, beyond its end, any; with a wrong token beside each right one."""
    first = len(session.tokens)
    parent = anchor_at(session.num_committed - 1)
    for _ in range(CHAIN):
        right = session.right_token(session.position_below(parent))
        session.add(parent, session.any_token(but=right))
        parent = session.add(parent, session.any_token() if right is None else right)
    nodes = slice(first, len(session.tokens))
    return DraftNodes(session.tokens[nodes], session.parents[nodes], [-2.0, -0.2] * CHAIN)


class Oracle(ScriptedDrafts):
    """Knows an answer as soon as it has been decoded plainly."""

    def __init__(self) -> None:
        super().__init__("oracle", grow_right, {}, 4096, seed=3)
        self.known: dict[tuple[Sequence[int], SamplingParams], list[int]] = {}

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> ScriptedSession:
        self._answers = {request.session_id: self.known.get((tuple(request.committed), request.sampling), [])}
        return super().open(request, on_nodes)


class Learning:
    """A generation service that tells the oracle what it has decoded plainly.

    Attributes:
        last_bursts: of the answers that were drafted for.
    """

    def __init__(self, service: GenerationService, oracle: Oracle) -> None:
        self.last_bursts: list[Burst] = []
        self._service = service
        self._oracle = oracle

    @property
    def refusal(self) -> CapacityExceeded | None:
        return self._service.refusal

    @property
    def info(self) -> ServerInfo | None:
        return self._service.info

    @property
    def is_ready(self) -> bool:
        return self._service.is_ready

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Burst]]:
        async with self._service.generate(request) as bursts:
            yield self._watched(bursts) if request.speculate else self._learnt(request, bursts)

    async def _watched(self, bursts: AsyncIterator[Burst]) -> AsyncIterator[Burst]:
        async for burst in bursts:
            if burst.finish_reason:
                self.last_bursts.append(burst)
            yield burst

    async def _learnt(self, request: GenerationRequest, bursts: AsyncIterator[Burst]) -> AsyncIterator[Burst]:
        tokens = self._oracle.known.setdefault((request.prompt_ids, request.sampling), [])
        tokens.clear()
        async for burst in bursts:
            tokens += burst.token_ids
            yield burst


class Pair:
    """Verifier, edge and a client."""

    def __init__(self, deployment: Deployment, service: Learning, client: httpx.AsyncClient) -> None:
        self.deployment = deployment
        self.service = service
        self.client = client

    @property
    def scheduler(self) -> Any:
        return self.deployment.verifier.core.scheduler

    async def whole(self, is_drafted: bool = True, **fields: Any) -> tuple[list[tuple[str, str]], int, int]:
        """Texts and finish reasons, tokens, and accepted draft nodes."""
        body = {"prompt": PROMPT, "seed": 11, "max_tokens": 40, "temperature": 0.9, "top_k": 0, **fields}
        response = await self.client.post("/v1/completions", json=body | {"speculation": {"enabled": is_drafted}})
        answer = response.raise_for_status().json()
        choices = [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
        accepted = int(response.headers["x-specedge-accepted-tokens"])
        return choices, answer["usage"]["completion_tokens"], accepted

    async def streamed(self, **fields: Any) -> tuple[list[tuple[str, str]], int]:
        """The same of a stream."""
        body = {"prompt": PROMPT, "seed": 11, "max_tokens": 40, "temperature": 0.9, "top_k": 0, **fields}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        num_tokens = 0
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk["choices"]:
                    assert choice["index"] not in reasons, "nothing comes after the end"
                    texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                    if choice["finish_reason"]:
                        reasons[choice["index"]] = choice["finish_reason"]
                if not chunk["choices"]:
                    num_tokens = chunk["usage"]["completion_tokens"]
        return [(texts[index], reasons[index]) for index in sorted(texts)], num_tokens

    async def nothing_held(self) -> None:
        pool = self.scheduler.pool
        await until(lambda: not (self.scheduler.running or self.scheduler.waiting or pool.num_held), timeout_s=30)
        assert pool.num_free == pool.num_blocks


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    oracle = Oracle()
    async with (
        deployed(VERIFIER, oracle, grammars=KeptCompiler(compiler()).for_a_service()) as deployment,
        serving(service := Learning(deployment.service, oracle)) as api,  # type: ignore[arg-type]
        httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=60) as client,
    ):
        yield Pair(deployment, service, client)


CASES: dict[str, dict[str, Any]] = {
    "1 token": {"max_tokens": 1},
    "2 tokens": {"max_tokens": 2},
    "3 tokens": {"max_tokens": 3},
    "greedy": {"temperature": 0},
    "end of sequence": {"logit_bias": ENDS, "max_tokens": 200},
    "end of sequence, ignored": {"logit_bias": ENDS, "ignore_eos": True},
    "min_tokens": {"logit_bias": ENDS, "min_tokens": 17, "max_tokens": 200},
    "presence_penalty": {"presence_penalty": 1.7},
    "frequency_penalty": {"frequency_penalty": 1.3},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "all penalties, greedy": {
        "presence_penalty": -0.5, "frequency_penalty": 1.1, "repetition_penalty": 1.2, "temperature": 0
    },
    "logit_bias": {"logit_bias": {str(token): 4.0 for token in ids(" fox said the")}},
    "filters": {"top_p": 0.8, "top_k": 30, "min_p": 0.02},
    "characters cut by tokens": {"logit_bias": BYTES},
    "characters cut by tokens, to the end": {"logit_bias": BYTES, "max_tokens": 13},
    "stop token": {"stop_token_ids": [ids(".")[0], ids(",")[0]]},
    "stop token, kept": {"stop_token_ids": [ids(".")[0], ids(",")[0]], "include_stop_str_in_output": True},
    "several answers": {"n": 3},
    "several answers and prompts": {"n": 2, "prompt": [PROMPT, "The old gentleman opened the door"]},
}  # fmt: skip


async def compare(pair: Pair, fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Plain, drafted and drafted in a stream: the same. Some draft is accepted, however late the first ones came."""
    choices, num_tokens, _ = await pair.whole(is_drafted=False, **fields)
    num_accepted = 0
    for _ in range(50):
        *drafted, accepted = await pair.whole(**fields)
        assert drafted == [choices, num_tokens]
        assert await pair.streamed(**fields) == (choices, num_tokens)
        num_accepted += accepted
        if num_accepted or num_tokens <= 2:  # the last token allowed is the target's own
            return choices
    raise AssertionError("no draft was accepted")


@pytest.mark.parametrize("name", CASES)
async def test_drafted_answers_are_those_of_plain_decoding(pair: Pair, name: str) -> None:
    choices = await compare(pair, CASES[name])
    text, reason = choices[0]
    if name.startswith("characters"):
        assert any(ord(character) > 127 and character != "\ufffd" for character in text)
    if name in ("end of sequence", "min_tokens", "stop token", "stop token, kept"):
        assert reason == "stop", "the end must be met"


ENDINGS: dict[str, dict[str, Any]] = {
    "end of sequence": {"logit_bias": ENDS, "max_tokens": 200},
    "end of sequence, greedy": {"logit_bias": ENDS, "max_tokens": 200, "temperature": 0},
    "stop token": CASES["stop token"],
    "stop token under penalties": CASES["stop token"] | {"frequency_penalty": 1.0, "repetition_penalty": 1.2},
    "end of a choice": {"structured_outputs": {"choice": ["Once upon a time.", "Nobody knows where the fox went."]}},
    "end of a regex": {"structured_outputs": {"regex": r"[A-Z][a-z]{3,8}( [a-z]{2,8}){2,5}\."}, "max_tokens": 60},
    "end of an object": {"guided_json": {"type": "object", "properties": {"age": {"type": "integer", "maximum": 20}},
        "required": ["age"], "additionalProperties": False}, "max_tokens": 60},
    "end of an object, greedy": {"guided_json": {"enum": [{"hero": "fox"}, {"hero": "hen"}]}, "temperature": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
async def test_an_end_inside_a_draft_ends_the_answer_there(pair: Pair, name: str) -> None:
    """The end itself is an accepted draft node, and drafts that go on behind it come to nothing."""
    bursts = pair.service.last_bursts
    for _ in range(30):
        bursts.clear()
        ((_, reason),) = await compare(pair, ENDINGS[name])
        assert reason == "stop"
        if any(burst.num_accepted == len(burst.token_ids) > 1 for burst in bursts):
            return
    raise AssertionError("no end was drafted")


@pytest.mark.parametrize("place", [0.3, 0.6])
@pytest.mark.parametrize("min_tokens", [0, 12])
async def test_stop_strings_across_bursts_and_tokens(pair: Pair, place: float, min_tokens: int) -> None:
    ((text, _),), _, _ = await pair.whole(is_drafted=False)
    start = int(place * len(text))
    stops = [text[start : start + 14], "never said"]
    assert len(ids(stops[0])) > 2
    ((cut, reason),) = await compare(pair, {"stop": stops, "min_tokens": min_tokens})
    assert reason in ("stop", "length")
    if not min_tokens:
        assert (cut, reason) == (text[: text.index(stops[0])], "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_to_one_prompt_compute_it_once(pair: Pair, stream: bool) -> None:
    """Each further answer computes at most the prompt's last block, whose end it wants the logits of."""
    num_answers, words = 4, Random(f"shared {stream}")
    text = " ".join(words.choice(("fox", "hen", "sea", "door", "old", "tale")) for _ in range(150))
    num_prompt = len(tokenizer()(text).input_ids)
    fields = {"prompt": text, "n": num_answers, "max_tokens": 6, "ignore_eos": True}
    registry = pair.deployment.verifier.metrics.registry
    before = registry.get_sample_value("specedge_verifier_rows_total", {"kind": "prefill"})
    choices = (await pair.streamed(**fields))[0] if stream else (await pair.whole(**fields))[0]
    after = registry.get_sample_value("specedge_verifier_rows_total", {"kind": "prefill"})
    assert len({text for text, _ in choices}) == num_answers
    assert num_prompt - 1 <= after - before <= num_prompt + (num_answers - 1) * BLOCK_SIZE
    again = (await pair.client.post("/v1/completions", json=fields)).json()["usage"]
    assert again["prompt_tokens"] == num_prompt
    assert num_prompt - 1 - BLOCK_SIZE < again["prompt_tokens_details"]["cached_tokens"] < num_prompt


PHASES: dict[str, Callable[[Pair], bool]] = {
    "waiting for a place": lambda pair: len(pair.scheduler.waiting) > 0,
    "computing its prompt": lambda pair: any(0 < s.num_computed < 200 for s in list(pair.scheduler.running)),
    "decoding": lambda pair: any(s.num_generated > 2 for s in list(pair.scheduler.running)),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_an_answer_that_is_cancelled_gives_everything_back(pair: Pair, phase: str) -> None:
    expected = await pair.whole(is_drafted=False)
    long = " ".join(["fox hen sea"] * 80)
    num = 2 * MAX_SESSIONS if phase == "waiting for a place" else 2
    work = [
        asyncio.create_task(pair.whole(prompt=f"{phase} {index} {long}", max_tokens=200, ignore_eos=True))
        for index in range(num)
    ]
    try:
        await until(lambda: PHASES[phase](pair), timeout_s=30)
    finally:
        for task in work:
            task.cancel()
        ended = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
    assert (await pair.whole())[:2] == expected[:2]
    await pair.nothing_held()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cancelled_while_its_grammar_compiles_gives_everything_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    compiling: list[Future[Any]] = []

    def begin(*arguments: object) -> "Future[Any]":
        compiling.append(Future())
        return compiling[-1]

    monkeypatch.setattr(pair.deployment.verifier.grammars, "begin", begin)
    ask = pair.streamed if stream else pair.whole
    work = [asyncio.create_task(ask(guided_regex="a+", n=2)) for _ in range(2)]
    try:
        await until(lambda: len(compiling) == 4, timeout_s=30)
    finally:
        for task in work:
            task.cancel()
        ended = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
    await until(lambda: all(future.cancelled() for future in compiling), timeout_s=30)
    monkeypatch.undo()
    await compare(pair, {"guided_regex": "(ab)+", "max_tokens": 12})
    await pair.nothing_held()


async def test_after_200_cancelled_requests_the_next_one_is_answered_and_all_blocks_are_back(pair: Pair) -> None:
    draw = Random(5)
    expected, num_tokens, _ = await pair.whole(is_drafted=False)

    async def cancelled(index: int) -> bool:
        fields: dict[str, Any] = {"seed": index, "n": draw.randint(1, 3), "max_tokens": 150, "ignore_eos": True}
        fields["prompt"] = PROMPT * draw.randint(1, 12)
        ask = pair.streamed(**fields) if index % 2 else pair.whole(**fields)
        task = asyncio.create_task(ask)
        await asyncio.sleep(draw.expovariate(8))
        task.cancel()
        return isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)

    places = asyncio.Semaphore(20)

    async def one(index: int) -> bool:
        async with places:
            return await cancelled(index)

    outcomes = await asyncio.gather(*(one(index) for index in range(200)))
    assert sum(outcomes) > 150, "most must be cancelled before their end"
    choices, num, _ = await pair.whole()
    assert (choices, num) == (expected, num_tokens)
    await pair.nothing_held()
