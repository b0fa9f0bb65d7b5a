"""The pair as its users run it: real processes, real sockets, the official client; nothing inside is replaced."""

import asyncio
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import grpc
import httpx
import openai
import pytest
from http_support import tokenizer
from processes import Ask, Edge, Service, Verifier, nothing_held, running

from specedge.sampling import SamplingParams
from specedge.tokenizer import tokenizer_fingerprint
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.messages import OpenSession
from specedge_cli.probe import probe

PROMPTS = (
    "Tell me a tale about a fox who wanted to see the sea.",
    "Once upon a time there was a little rabbit",
    "A tale of two hens and a windmill, please.",
    "The old gentleman opened the door",
)
TEMPERATURES = (1.0, 0.7, 0.0)
LONG = Ask(PROMPTS[1], seed=77, max_tokens=800)
DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A verifier with two edges: one drafts and is patient, the other drafts nothing and soon gives a verifier up."""

    verifier: Verifier
    edge: Edge
    impatient: Edge

    @property
    def services(self) -> tuple[Verifier, Edge, Edge]:
        return self.verifier, self.edge, self.impatient


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("logs")
    # Few blocks: 32 sessions hardly fit at once, so that some are preempted and prefilled again.
    verifier = Verifier(folder, "--num-kv-blocks", "72")
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "2048", "--verifier-deadline-s", "60")
    no_drafts = ("--draft-model", "none", "--lookup", "off")
    impatient = Edge(folder, "impatient", verifier, *no_drafts, "--verifier-deadline-s", str(DEADLINE_S))
    pair = Pair(verifier, edge, impatient)
    with running(*pair.services):
        yield pair
    for service in pair.services:
        assert "Traceback" not in service.log(), service.log()


async def ready(*services: Service) -> None:
    """Starts those again that an earlier test ended."""
    for service in services:
        if not service.is_running:
            service.start()
    for service in services:
        await asyncio.to_thread(service.wait_ready)


@pytest.fixture
async def pair(processes: Pair) -> Pair:
    """All three processes, ready."""
    await ready(*processes.services)
    return processes


def ask(index: int, max_tokens: int = 32) -> Ask:
    """One of many different requests."""
    return Ask(
        PROMPTS[index % len(PROMPTS)], 1000 + index, max_tokens, TEMPERATURES[index % len(TEMPERATURES)], index % 2 == 0
    )


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completion"])
async def test_whole_and_streamed_answers_are_the_same_and_counted_right(pair: Pair, is_chat: bool) -> None:
    wanted = Ask(PROMPTS[0], seed=5, max_tokens=24, is_chat=is_chat)
    async with pair.edge.client() as client:
        assert [model.id async for model in client.models.list()] == ["specedge-demo"]
        whole = await wanted.send(client)
        text = whole.choices[0].message.content if is_chat else whole.choices[0].text
        assert text and await wanted.streamed(client) == text
        async with await wanted.send(client, stream=True, stream_options={"include_usage": True}) as chunks:
            *rest, last = [chunk async for chunk in chunks]
    num_prompt = len(tokenizer()(PROMPTS[0]).input_ids)
    if is_chat:
        messages = [{"role": "user", "content": PROMPTS[0]}]
        num_prompt = len(tokenizer().apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    for usage in (whole.usage, last.usage):
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (num_prompt, 24, num_prompt + 24)
    assert last.choices == []
    assert all(chunk.usage is None for chunk in rest)


async def test_an_answer_may_end_by_itself_and_usage_counts_what_was_generated(pair: Pair) -> None:
    async with pair.edge.client() as client:
        answer = await Ask(PROMPTS[0], 3, 400, 0.7, is_chat=True).send(client, ignore_eos=False, stop=[".", "!", "?"])
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert not set(choice.message.content) & set(".!?")
    # The tokens of the text, and the one that completed the stop string (which may have had text before it).
    num_tokens = len(tokenizer()(choice.message.content).input_ids)
    assert 0 <= answer.usage.completion_tokens - num_tokens <= 1


async def test_several_choices_are_the_answers_to_successive_seeds(pair: Pair) -> None:
    wanted = replace(LONG, max_tokens=16)
    async with pair.edge.client() as client:
        both = await wanted.send(client, n=2)
        alone = [await replace(wanted, seed=wanted.seed + index).whole(client) for index in range(2)]
    assert [choice.text for choice in both.choices] == alone
    assert alone[0] != alone[1]
    assert both.usage.completion_tokens == 32


async def test_drafting_changes_how_soon_the_text_comes_and_nothing_else(pair: Pair) -> None:
    accepted = await pair.edge.sample("specedge_edge_accepted_draft_nodes_total")
    async with pair.edge.client() as drafting, pair.impatient.client() as plain:
        for temperature in TEMPERATURES:
            wanted = Ask(PROMPTS[3], 9, 40, temperature)
            text = await wanted.whole(drafting)
            assert await wanted.whole(drafting, speculation={"enabled": False}) == text
            assert await wanted.whole(plain) == text
        # Each answer equals the undrafted one whether or not a draft came in time; some drafts must have.
        for seed in range(100):
            if await pair.edge.sample("specedge_edge_accepted_draft_nodes_total") > accepted:
                return
            await Ask(PROMPTS[seed % len(PROMPTS)], seed, 40, 0.0).whole(drafting)
    pytest.fail("no draft was accepted in 100 answers")


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_log_probabilities_are_those_of_plain_decoding_and_of_a_rescore(pair: Pair, temperature: float) -> None:
    wanted = Ask(PROMPTS[1], 9, 40, temperature)
    asked = {"logprobs": 2, "return_token_ids": True}
    async with pair.edge.client() as client:
        (drafted,) = (await wanted.send(client, **asked)).choices
        (plain,) = (await wanted.send(client, **asked, speculation={"enabled": False})).choices
        async with await wanted.send(client, **asked, stream=True) as chunks:
            parts = [chunk.choices[0].logprobs async for chunk in chunks]
        text = drafted.prompt_token_ids + drafted.token_ids
        scoring = {"prompt": text, "max_tokens": 0, "echo": True, **asked}
        (rescored,) = (await wanted.send(client, **scoring)).choices
    assert drafted.text == plain.text
    own = drafted.logprobs
    assert own.tokens == plain.logprobs.tokens == rescored.logprobs.tokens[-40:]
    assert own.text_offset == plain.logprobs.text_offset
    assert own.token_logprobs == pytest.approx(plain.logprobs.token_logprobs, abs=1e-4)
    assert own.token_logprobs == pytest.approx(rescored.logprobs.token_logprobs[-40:], abs=1e-4)
    streamed = [value for part in parts if part is not None for value in part.token_logprobs]
    assert own.token_logprobs == pytest.approx(streamed, abs=1e-4)
    assert len(rescored.logprobs.tokens) == len(text)
    for best, token, value in zip(own.top_logprobs, own.tokens, own.token_logprobs, strict=True):
        assert best[token] == value and 2 <= len(best) <= 3
        assert temperature > 0 or max(best.values()) == value


async def test_32_clients_at_once_with_cancellations_get_the_text_they_get_alone(pair: Pair) -> None:
    draw = Random(20)
    wanted = [ask(index) for index in range(24)]
    left = [ask(index, max_tokens=300) for index in range(100, 108)]
    alone = wanted[:6]

    async def leave_after_pieces(client: object, wish: Ask, num_pieces: int) -> None:
        pieces = wish.pieces(client)
        for _ in range(num_pieces):
            assert await anext(pieces)
        await pieces.aclose()

    async def leave_after_time(client: object, wish: Ask, seconds: float) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wish.whole(client), seconds)

    async with pair.edge.client() as client:
        before = [await wish.whole(client) for wish in alone]
        plain = await asyncio.gather(*(wish.whole(client, speculation={"enabled": False}) for wish in wanted))
        work = [wish.streamed(client) if index % 4 else wish.whole(client) for index, wish in enumerate(wanted)]
        leaving = [
            leave_after_pieces(client, wish, draw.randrange(1, 9))
            if index % 2
            else leave_after_time(client, wish, draw.uniform(0.0, 0.2))
            for index, wish in enumerate(left)
        ]
        together, _ = await asyncio.gather(asyncio.gather(*work), asyncio.gather(*leaving))
        after = [await wish.whole(client) for wish in alone]
    assert together == plain
    assert before == after == together[: len(alone)]
    assert len(set(together)) > len(together) / 2, "equal texts would prove little"
    await nothing_held(*pair.services)


async def test_a_verifier_that_dies_pauses_patient_answers_and_ends_the_others(pair: Pair) -> None:
    async with pair.edge.client() as client, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        undisturbed = await LONG.whole(client)
        url = f"{pair.impatient.url}/v1/completions"
        async with http.stream("POST", url, json=LONG.body(stream=True)) as response:
            frames = response.aiter_lines()
            pieces = LONG.pieces(client)
            text = await anext(pieces) + await anext(pieces)
            broken = [await anext(frames) for _ in range(4)]
            pair.verifier.signal(signal.SIGKILL)
            assert await asyncio.to_thread(pair.verifier.exit_code) == -signal.SIGKILL
            broken += [line async for line in frames]
        *chunks, error, done = [line.removeprefix("data: ") for line in broken if line]
        assert done == "[DONE]"
        assert json.loads(error)["error"]["code"] == "verifier_unavailable"
        part = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)
        assert part and undisturbed.startswith(part) and part != undisturbed

        refused = await http.post(url, json=LONG.body())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert pair.verifier.address in refused.json()["error"]["message"]

        pair.verifier.start()
        assert text + "".join([piece async for piece in pieces]) == undisturbed
        assert await pair.edge.sample("specedge_edge_resumed_tokens_total") > 0
        assert (await http.get(f"{pair.edge.url}/ready")).status_code == 200
    await nothing_held(*pair.services)


async def test_a_terminated_edge_finishes_what_it_has_begun(pair: Pair) -> None:
    async with pair.edge.client() as client:
        undisturbed = await LONG.whole(client)
        whole = asyncio.create_task(LONG.whole(client))
        pieces = LONG.pieces(client)
        text = await anext(pieces)
        async with asyncio.timeout(20):
            while await pair.edge.sample("specedge_edge_requests_running") < 2:
                pass
        pair.edge.signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            with pytest.raises(openai.APIConnectionError):
                while True:
                    async with pair.edge.client() as late:
                        await late.models.list()
        assert pair.edge.is_running
        assert text + "".join([piece async for piece in pieces]) == undisturbed
        assert await whole == undisturbed
    assert await asyncio.to_thread(pair.edge.exit_code) == 0
    await nothing_held(pair.verifier, pair.impatient)


async def test_a_terminated_verifier_finishes_what_it_has_begun(processes: Pair) -> None:
    verifier, edge = processes.verifier, processes.impatient
    await ready(verifier, edge)
    async with (
        edge.client() as client,
        grpc.aio.insecure_channel(verifier.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        undisturbed = await LONG.whole(client)
        stub = pb_grpc.VerificationServiceStub(channel)
        silent = stub.Generate()
        await stub.GetServerInfo(pb.GetServerInfoRequest())  # once this is answered, the stream has arrived too
        pieces = LONG.pieces(client)
        text = await anext(pieces)
        verifier.signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(probe, verifier.address, 2.0) is None:
                pass
        opening = OpenSession("late", (1, 2), (), SamplingParams(), tokenizer_fingerprint(tokenizer()))
        await silent.write(codec.encode_open(opening))
        assert await silent.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (await silent.details() or "")
        assert text + "".join([piece async for piece in pieces]) == undisturbed
        assert await asyncio.to_thread(verifier.exit_code) == 0
        with pytest.raises(openai.InternalServerError) as caught:
            await LONG.whole(client)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
