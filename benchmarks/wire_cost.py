"""What coding a message costs, and how much of a round trip over gRPC that is.

    python -m benchmarks.wire_cost

Encoding goes from the values that a process holds to bytes, decoding from bytes to checked values. Times are CPU time
of the coding thread per message, the least of some repeats. A round is a draft message up and a verdict down on one
stream between the real client and the real server on loopback, in one process and with an engine that answers at once;
its CPU time is of the whole process, so that gRPC's own threads count, and its wall time is a median.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time

from edge_agent.verifier_client import VerifierClient
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.draft_codec import DraftDecoder, DraftEncoder
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.bridge import SessionSink
from specedge_verifier.grpc_server import ServerOptions, VerifierServer

VOCAB_SIZE = 151_936
FINGERPRINT = "f" * 32
NUM_VERDICT_TOKENS = 4
NODE_COUNTS = (8, 32, 64)
PROMPT_LENGTHS = (512, 4096)
NUM_REPEATS = 7
REPEAT_S = 0.05

INFO = ServerInfo("instant", FINGERPRINT, VOCAB_SIZE, 2**20, 512, (2,), 64, "0")


def draft_of(num_nodes: int) -> DraftNodes:
    """A tree as a drafter sends it: parents a few numbers back, scores in nats."""
    draw = random.Random(num_nodes)
    parents = [~700, *(max(0, number - draw.randrange(1, 6)) for number in range(1, num_nodes))]
    token_ids = [draw.randrange(VOCAB_SIZE) for _ in parents]
    return DraftNodes(token_ids, parents, [-6.0 * draw.random() for _ in parents], num_verdicts_seen=3)


def opening_of(num_tokens: int) -> OpenSession:
    draw = random.Random(num_tokens)
    prompt = tuple(draw.randrange(VOCAB_SIZE) for _ in range(num_tokens))
    return OpenSession("0123456789abcdef" * 2, prompt, (), SamplingParams(), FINGERPRINT, "demo/streamed")


def verdict_of(num_tokens: int) -> Verdict:
    draw = random.Random(num_tokens)
    token_ids = tuple(draw.randrange(VOCAB_SIZE) for _ in range(num_tokens))
    return Verdict(700, token_ids, "", 1_234, 20_345, 16, num_tokens - 1, 12)


def encode_draft(nodes: DraftNodes) -> bytes:
    return DraftEncoder().encode(nodes)[0].SerializeToString()


def decode_draft(data: bytes) -> DraftNodes:
    return DraftDecoder(VOCAB_SIZE).decode(pb.GenerateRequest.FromString(data), num_verdicts_sent=3)


def cpu_us(call: Callable[[], object]) -> float:
    """Microseconds of this thread per call."""
    num_calls, spent_s = 1, 0.0
    while spent_s < REPEAT_S:
        num_calls *= 2
        spent_s = _spent_s(call, num_calls)
    return 1e6 * min(_spent_s(call, num_calls) for _ in range(NUM_REPEATS)) / num_calls


def _spent_s(call: Callable[[], object], num_calls: int) -> float:
    began_s = thread_time()
    for _ in range(num_calls):
        call()
    return thread_time() - began_s


def measure_coding() -> dict[str, dict[str, float]]:
    """Bytes and microseconds of every kind of message."""
    cases: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {}
    verdict = verdict_of(NUM_VERDICT_TOKENS)
    cases[f"verdict of {NUM_VERDICT_TOKENS} tokens"] = (
        lambda: codec.encode_response(verdict).SerializeToString(),
        lambda data: codec.decode_response(pb.GenerateResponse.FromString(data), VOCAB_SIZE),
    )
    for num_nodes in NODE_COUNTS:
        nodes = draft_of(num_nodes)
        cases[f"draft message of {num_nodes} nodes"] = (lambda nodes=nodes: encode_draft(nodes), decode_draft)  # type: ignore[misc]
    for num_tokens in PROMPT_LENGTHS:
        opening = opening_of(num_tokens)
        cases[f"opening with {num_tokens} tokens"] = (
            lambda opening=opening: codec.encode_open(opening).SerializeToString(),  # type: ignore[misc]
            lambda data: codec.decode_open(pb.GenerateRequest.FromString(data), VOCAB_SIZE),
        )
    costs = {}
    for name, (encode, decode) in cases.items():
        data = encode()
        costs[name] = {
            "bytes": len(data),
            "encode_us": cpu_us(encode),
            "decode_us": cpu_us(lambda decode=decode, data=data: decode(data)),  # type: ignore[misc]
        }
    return costs


class InstantEngine:
    """Implements `specedge_verifier.bridge.Engine`: admits at once, and answers every draft message with a verdict."""

    is_healthy = True

    def __init__(self) -> None:
        self._sinks: dict[int, SessionSink] = {}
        self._verdict = verdict_of(NUM_VERDICT_TOKENS)

    @property
    def num_sessions(self) -> int:
        return len(self._sinks)

    def info(self) -> ServerInfo:
        return INFO

    def open(
        self,
        message: OpenSession,
        sink: SessionSink,
        grammar: object | None = None,
        account: object | None = None,
    ) -> int:
        handle = len(self._sinks)
        self._sinks[handle] = sink
        sink.opened(SessionOpened(0, INFO.max_live_nodes))
        return handle

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        self._sinks[handle].verdict(self._verdict)

    def close(self, handle: int) -> None:
        """Nothing is held."""

    def drain(self) -> None:
        """Nothing runs."""


async def measure_rounds(num_nodes: int, num_rounds: int) -> dict[str, float]:
    """Microseconds of a round: draft message up, verdict down."""
    server = VerifierServer(InstantEngine(), ServerOptions())
    client = VerifierClient(f"127.0.0.1:{await server.start()}")
    nodes, walls_us = draft_of(num_nodes), []
    async with client.open_stream(opening_of(PROMPT_LENGTHS[0]), INFO) as stream:
        await stream.read(timeout_s=10)
        cpu_s = 0.0
        for number in range(-num_rounds // 10, num_rounds):
            if number == 0:
                cpu_s = process_time()
            began_s = perf_counter()
            stream.send(nodes)
            await stream.read(timeout_s=10)
            if number >= 0:
                walls_us.append(1e6 * (perf_counter() - began_s))
        cpu_s = process_time() - cpu_s
    await client.close()
    await server.stop()
    return {"wall_us": median(walls_us), "cpu_us": 1e6 * cpu_s / num_rounds}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire_cost", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here as well")
    options = parser.parse_args(arguments)
    coding = measure_coding()
    print(f"{'message':28}{'bytes':>8}{'encode us':>11}{'decode us':>11}")
    for name, cost in coding.items():
        print(f"{name:28}{cost['bytes']:8.0f}{cost['encode_us']:11.1f}{cost['decode_us']:11.1f}")
    print(f"\n{'round over gRPC':28}{'wall us':>8}{'CPU us':>11}{'coding us':>11}{'of the CPU':>12}")
    rounds = {}
    for num_nodes in NODE_COUNTS:
        cost = asyncio.run(measure_rounds(num_nodes, options.rounds))
        parts = (coding[f"draft message of {num_nodes} nodes"], coding[f"verdict of {NUM_VERDICT_TOKENS} tokens"])
        cost["coding_us"] = sum(part["encode_us"] + part["decode_us"] for part in parts)
        rounds[f"{num_nodes} nodes"] = cost
        share = cost["coding_us"] / cost["cpu_us"]
        print(
            f"{f'{num_nodes} nodes up, verdict down':28}{cost['wall_us']:8.0f}{cost['cpu_us']:11.0f}"
            f"{cost['coding_us']:11.1f}{share:12.1%}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"coding": coding, "rounds": rounds}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
