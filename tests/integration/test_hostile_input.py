"""Bad input to the real pair: a clear error that names value and limit, and not one token of a neighbour changed."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx
import pytest
from http_support import tokenizer
from processes import Ask, Edge, Service, Verifier, nothing_held, running

from specedge.sampling import SamplingParams
from specedge.tokenizer import tokenizer_fingerprint
from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge.wire import codec
from specedge.wire.messages import OpenSession, Verdict
from specedge_cli.probe import probe

TARGET = Path(__file__).parents[2] / "models" / "target"
VOCAB_SIZE, MAX_LEN = 4096, 1024
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
METHOD = "/specedge.verification.v1.VerificationService/Generate"
PROMPT = (5, 17, 400, 31, 1200)
NEIGHBOUR = Ask("Once upon a time there was a little rabbit", seed=41, max_tokens=48)
MAX_GROWTH_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Pair:
    """Both processes, and what the neighbour's answer is when nobody disturbs it."""

    verifier: Verifier
    edge: Edge
    undisturbed: str
    rss_bytes: dict[str, int]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("logs")
    verifier = Verifier(folder, "--num-kv-blocks", "256", "--open-timeout-s", "1")
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "4096")
    with running(verifier, edge):
        answer = httpx.post(f"{edge.url}{TEXT}", json=NEIGHBOUR.body(), timeout=60, trust_env=False).json()
        sizes = {service.address: service.rss_bytes for service in (verifier, edge)}
        yield Pair(verifier, edge, answer["choices"][0]["text"], sizes)
    for service in (verifier, edge):
        assert "Traceback" not in service.log(), service.log()


@asynccontextmanager
async def neighbour(pair: Pair) -> AsyncIterator[None]:
    """Streams the neighbour's answer over the time of the block and beyond; it must be the undisturbed one."""
    async with pair.edge.client() as client:
        pieces = NEIGHBOUR.pieces(client)
        text = await anext(pieces)

        async def read_on() -> str:
            return text + "".join([piece async for piece in pieces])

        reading = asyncio.create_task(read_on())
        try:
            yield
        finally:
            rest = await reading
        assert rest == pair.undisturbed


@asynccontextmanager
async def channel_to(pair: Pair) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(pair.verifier.address, options=options) as channel:
        yield channel


def opening(**changes: Any) -> OpenSession:
    message = OpenSession("r1", PROMPT, (), SamplingParams(max_tokens=20), tokenizer_fingerprint(tokenizer()), "test")
    return replace(message, **changes)


def drafts(token_ids: list[int], deltas: list[int], seen: int = 0, anchor: int = len(PROMPT) - 1) -> pb.GenerateRequest:
    scores = bytes(len(token_ids))
    nodes = pb.DraftNodes(
        token_ids=token_ids, parent_deltas=deltas, scores=scores, anchor=anchor, num_verdicts_seen=seen
    )
    return pb.GenerateRequest(draft_nodes=nodes)


async def tokens_of(call: Any) -> list[int]:
    """Reads a stream to its end, closing the client's side after the last verdict."""
    token_ids: list[int] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        message = codec.decode_response(response, VOCAB_SIZE)
        if isinstance(message, Verdict):
            token_ids += message.token_ids
            if message.finish_reason:
                await call.done_writing()
    return token_ids


async def error_of(call: Any, *requests: Any) -> tuple[grpc.StatusCode, str]:
    """Sends requests and returns how the stream fails."""
    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        for request in requests:
            await call.write(request)
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code(), await call.details()


WORDS = "word " * 1200
BAD_FIELDS: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "long ids": (TEXT, {"prompt": [5] * 1500}, "prompt", ["1500", "1024"]),
    "long text": (TEXT, {"prompt": WORDS}, "prompt", ["1202", "1024"]),
    "very long text": (TEXT, {"prompt": "x" * 20_000}, "prompt", ["20000 characters", "16384", "1024"]),
    "long chat": (CHAT, {"messages": [{"role": "user", "content": WORDS}]}, "messages", ["1024"]),
    "long answer": (TEXT, {"max_tokens": 1500}, "max_tokens", ["1500", "1024"]),
    "temperature": (TEXT, {"temperature": -0.5}, "temperature", ["-0.5", "between 0 and 2"]),
    "temperature as NaN text": (TEXT, {"temperature": "NaN"}, "temperature", ["'NaN'", "number"]),
    "top_p above": (TEXT, {"top_p": 1.5}, "top_p", ["1.5", "at most 1"]),
    "top_p zero": (TEXT, {"top_p": 0}, "top_p", ["0.0", "greater than 0 and at most 1"]),
    "prompt id": (TEXT, {"prompt": [5, 4096]}, "prompt", ["token 1", "4096", "4095"]),
    "negative id": (TEXT, {"prompt": [-1]}, "prompt", ["token 0", "-1", "4095"]),
    "stop id": (TEXT, {"stop_token_ids": [7, 9999]}, "stop_token_ids", ["9999", "4095"]),
    "bias id": (TEXT, {"logit_bias": {"5000": 1}}, "logit_bias", ["5000", "4095"]),
    "no messages": (CHAT, {"messages": []}, "messages", ["at least 1 message"]),
    "no prompt": (TEXT, {"prompt": ""}, "prompt", ["empty", "at least 1 token"]),
    "text for a number": (TEXT, {"max_tokens": "ten"}, "max_tokens", ["'ten'", "integer"]),
    "text for messages": (CHAT, {"messages": "hello"}, "messages", ["'hello'", "list"]),
    "object for a prompt": (TEXT, {"prompt": {"a": 1}}, "prompt", ["an object of 1", "a string"]),
    "number for a flag": (TEXT, {"stream": 2}, "stream", ["2", "boolean"]),
    "17 stop strings": (TEXT, {"stop": ["x"] * 17}, "stop", ["17", "at most 16"]),
}


async def post(pair: Pair, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """Status and error object of an answer that must be an error."""
    async with httpx.AsyncClient(base_url=pair.edge.url, trust_env=False, timeout=60) as client:
        return await post_with(client, path, **options)


async def post_with(client: httpx.AsyncClient, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    response = await client.post(path, **options)
    assert response.is_error, f"accepted: {response.text}"
    return response.status_code, response.json()["error"]


async def test_bad_fields_are_named_with_their_limit(pair: Pair) -> None:
    wrong: dict[str, str] = {}
    own = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "The fox"}}
    async with httpx.AsyncClient(base_url=pair.edge.url, trust_env=False, timeout=60) as client, neighbour(pair):
        for is_stream in (False, True):
            answers = await asyncio.gather(
                *(
                    post_with(client, path, json={"model": "specedge-demo", "stream": is_stream, **own[path], **fields})
                    for path, fields, _, _ in BAD_FIELDS.values()
                )
            )
            for (name, (_, _, param, expected)), (status, error) in zip(BAD_FIELDS.items(), answers, strict=True):
                assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error"), name
                if not all(part in error["message"] for part in expected):
                    wrong[name] = error["message"]
    assert not wrong


async def test_an_unknown_model_is_named(pair: Pair) -> None:
    async with neighbour(pair):
        status, error = await post(pair, TEXT, json={"model": "gpt-9", "prompt": "The fox"})
    assert (status, error["code"]) == (404, "model_not_found")
    assert "'gpt-9'" in error["message"] and "'specedge-demo'" in error["message"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model": "specedge-demo", "prompt": }', "line 1 column 38"),
        (b'{"prompt": "The fox", "temperature": NaN}', "temperature is nan, and numbers must be finite"),
        (b"[1]", "must be a JSON object, not a list"),
        (b"\xff\x00\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["broken", "NaN", "list", "bytes", "deep"],
)
async def test_broken_json_is_refused_with_its_place(pair: Pair, content: bytes, expected: str) -> None:
    async with neighbour(pair):
        status, error = await post(pair, TEXT, content=content, headers={"content-type": "application/json"})
    assert status == 400
    assert expected in error["message"]


@pytest.mark.parametrize("is_announced", [True, False], ids=["with its length", "in chunks"])
async def test_a_body_of_20_megabytes_is_refused(pair: Pair, is_announced: bool) -> None:
    body = json.dumps({"prompt": "x" * 20 * 2**20}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    async with neighbour(pair):
        content = body if is_announced else chunks()
        status, error = await post(pair, TEXT, content=content, headers={"content-type": "application/json"})
    assert status == 413
    assert (str(len(body)) if is_announced else "more than") in error["message"]
    assert str(8 * 2**20) in error["message"]


SAMPLING = SamplingParams(max_tokens=20)
BAD_OPENINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "long prompt": ({"prompt_ids": (5,) * 1500}, ["1500 prompt tokens", "1024"]),
    "prompt id": ({"prompt_ids": (5, VOCAB_SIZE)}, ["prompt_ids[1] is 4096", "4096 tokens"]),
    "committed id": ({"committed_ids": (VOCAB_SIZE,)}, ["committed_ids[0] is 4096"]),
    "no prompt": ({"prompt_ids": ()}, ["prompt_ids is empty", "at least 1"]),
    "temperature": ({"sampling": replace(SAMPLING, temperature=-1.0)}, ["temperature", "-1", "between 0 and 2"]),
    "NaN": ({"sampling": replace(SAMPLING, temperature=float("nan"))}, ["temperature", "nan"]),
    "top_p": ({"sampling": replace(SAMPLING, top_p=1.5)}, ["top_p", "1.5"]),
    "stop id": ({"sampling": replace(SAMPLING, stop_token_ids=(9999,))}, ["9999", "4095"]),
    "nothing left": ({"committed_ids": (7,) * 20}, ["20 committed tokens", "max_tokens is 20"]),
    "long name": ({"request_id": "x" * 300}, ["request_id has 300 characters", "256"]),
}


async def test_bad_openings_are_refused_with_value_and_limit(pair: Pair) -> None:
    async with neighbour(pair), channel_to(pair) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        openings = [codec.encode_open(opening(**changes)) for changes, _ in BAD_OPENINGS.values()]
        errors = await asyncio.gather(*(error_of(stub.Generate(), request) for request in openings))
        for (name, (_, expected)), (code, details) in zip(BAD_OPENINGS.items(), errors, strict=True):
            assert code == grpc.StatusCode.INVALID_ARGUMENT, name
            assert not [part for part in expected if part not in details], f"{name}: {details}"


BAD_DRAFTS: dict[str, tuple[list[pb.GenerateRequest], str]] = {
    "unknown parent": ([drafts([5, 6], [0, 2])], "node 1 names a parent 2 numbers below it"),
    "position not committed": ([drafts([5], [0], anchor=900)], "900"),
    "future verdict": ([drafts([5], [0], seen=4_000_000)], "num_verdicts_seen is 4000000, but only "),
    "10,000 nodes": ([drafts([5] * 10_000, [0] * 10_000)], "10000 draft nodes in one message, at most 512"),
    "token outside": ([drafts([5, VOCAB_SIZE], [0, 0])], f"token_ids[1] is {VOCAB_SIZE}"),
    "array lengths": ([drafts([5, 6], [0])], "2 token_ids, 1 parent_deltas, 2 scores"),
    "opened twice": ([codec.encode_open(opening())], "only DraftNodes may follow, not open"),
}


async def test_malformed_drafts_end_their_own_session(pair: Pair) -> None:
    async with neighbour(pair), channel_to(pair) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        first = codec.encode_open(opening(sampling=SamplingParams(max_tokens=900)))
        errors = await asyncio.gather(
            *(error_of(stub.Generate(), first, *requests) for requests, _ in BAD_DRAFTS.values())
        )
        for (name, (_, expected)), (code, details) in zip(BAD_DRAFTS.items(), errors, strict=True):
            assert code == grpc.StatusCode.INVALID_ARGUMENT, name
            assert expected in details, name


async def test_any_number_of_legal_nodes_changes_no_token(pair: Pair) -> None:
    draw = Random(3)
    async with neighbour(pair), channel_to(pair) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        plain, flooded = stub.Generate(), stub.Generate()
        await plain.write(codec.encode_open(opening(system="autoregressive")))
        await flooded.write(codec.encode_open(opening()))
        for _ in range(20):
            tokens = [draw.randrange(VOCAB_SIZE) for _ in range(500)]
            await flooded.write(drafts(tokens, [draw.randrange(index + 1) for index in range(500)]))
        expected = await tokens_of(plain)
        assert len(expected) == 20
        assert await tokens_of(flooded) == expected


async def test_nodes_for_a_finished_session_are_ignored(pair: Pair) -> None:
    async with neighbour(pair), channel_to(pair) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        await call.write(codec.encode_open(opening(sampling=SamplingParams(max_tokens=1))))
        message = None
        while not isinstance(message, Verdict):
            message = codec.decode_response(await call.read(), VOCAB_SIZE)
        assert message.finish_reason == "length"
        await call.write(drafts([5, 6], [0, 1]))
        await call.done_writing()
        assert await tokens_of(call) == []
        assert await call.code() == grpc.StatusCode.OK


async def test_truncated_and_random_messages_end_their_own_stream(pair: Pair) -> None:
    draw = Random(11)
    good = codec.encode_open(opening(sampling=SamplingParams(max_tokens=900))).SerializeToString()
    nodes = drafts([5] * 40, [0] * 40).SerializeToString()
    noise = [draw.randbytes(draw.randrange(1, 400)) for _ in range(10)]
    first = [good[: draw.randrange(len(good))] for _ in range(10)] + noise
    later = [nodes[: draw.randrange(1, len(nodes))] for _ in range(10)] + noise
    async with neighbour(pair), channel_to(pair) as channel:
        generate = channel.stream_stream(METHOD)
        streams = [[raw] for raw in first] + [[good, raw] for raw in later]
        for code, details in await asyncio.gather(*(error_of(generate(), *requests) for requests in streams)):
            assert code == grpc.StatusCode.INVALID_ARGUMENT, details
            assert any(
                part in details
                for part in ("cannot be parsed as GenerateRequest", "must be OpenSession", "only DraftNodes may follow")
            ), details


async def test_another_tokenizer_is_refused_with_both_fingerprints(pair: Pair) -> None:
    async with neighbour(pair), channel_to(pair) as channel:
        call = pb_grpc.VerificationServiceStub(channel).Generate()
        code, details = await error_of(call, codec.encode_open(opening(tokenizer_fingerprint="another-one")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "another-one" in details and tokenizer_fingerprint(tokenizer()) in details


async def test_silent_streams_are_ended(pair: Pair) -> None:
    async with neighbour(pair), channel_to(pair) as channel:
        stub = pb_grpc.VerificationServiceStub(channel)
        for code, details in await asyncio.gather(*(error_of(stub.Generate()) for _ in range(20))):
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no OpenSession arrived within 1 s" in details


async def test_after_all_of_it_nothing_is_held_or_lost(pair: Pair) -> None:
    async with neighbour(pair):
        pass
    await nothing_held(pair.verifier, pair.edge)
    for service in (pair.verifier, pair.edge):
        assert await asyncio.to_thread(probe, service.address, 5.0) is None
        growth = service.rss_bytes - pair.rss_bytes[service.address]
        assert growth < MAX_GROWTH_BYTES, f"{service.address} has grown by {growth} bytes"


async def test_a_model_that_cannot_be_loaded_ends_the_process_with_path_and_reason(tmp_path: Path) -> None:
    corrupt, missing = tmp_path / "corrupt", tmp_path / "missing"
    shutil.copytree(TARGET, corrupt)
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    verifier = Verifier(tmp_path, "--num-kv-blocks", "256", "--target-model", str(corrupt))
    edge = Edge(tmp_path, "edge", verifier, "--draft-model", str(missing))
    services: dict[Service, list[str]] = {
        verifier: [str(weights), "incomplete"],
        edge: [str(missing), "no such folder"],
    }
    try:
        for service in services:
            service.start()
        for service, expected in services.items():
            assert await asyncio.to_thread(service.exit_code) == 1
            assert not [part for part in expected if part not in service.log()], service.log()
            assert "Traceback" not in service.log()
    finally:
        for service in services:
            service.destroy()
