"""`python -m benchmarks.host_limit.load PORT OPTIONS`: edges as far as a verifier sees them, at the least cost.

Each stream answers every verdict with the tree that a recorded pair drafts there, and opens a new session when an
answer has ended. Messages are bytes made beforehand as far as they can be. It ends with its input; its last line of
output is its own CPU seconds.
"""

import argparse
import asyncio
import random
import sys
import time
from typing import Any

import grpc

from benchmarks.host_limit.target import FINGERPRINT, VOCAB_SIZE, TreeMaker
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire import codec
from specedge.wire.channel import client_options
from specedge.wire.messages import OpenSession
from specedge_bench.simulation.acceptance_trace import load_trace

_GENERATE = f"/{pb.DESCRIPTOR.services_by_name['VerificationService'].full_name}/Generate"
_NUM_PROMPT_TOKENS = 64
_ANSWER_TOKENS = (256, 768)


async def stream_sessions(channel: grpc.aio.Channel, trees: TreeMaker, number: int) -> None:
    """One user: answer after answer, for ever."""
    draw = random.Random(number)
    await asyncio.sleep(draw.random())
    generate: Any = channel.stream_stream(_GENERATE)
    while True:
        seed, offset = draw.randrange(2**31), draw.randrange(2**31)
        prompt = tuple(draw.randrange(VOCAB_SIZE) for _ in range(_NUM_PROMPT_TOKENS))
        sampling = SamplingParams(
            temperature=0.0, seed=seed, max_tokens=draw.randrange(*_ANSWER_TOKENS), ignore_eos=True
        )
        opening = OpenSession(f"{number}", prompt, (), sampling, FINGERPRINT, f"edge {number // 8}")
        call = generate()
        await call.write(codec.encode_open(opening).SerializeToString())
        frontier = len(prompt) - 1
        while (data := await call.read()) is not grpc.aio.EOF:
            response = pb.GenerateResponse.FromString(data)
            if response.WhichOneof("message") == "verdict":
                if response.verdict.finish_reason:
                    break
                frontier += len(response.verdict.token_ids)
            for message in trees.messages(seed, offset, frontier):
                await call.write(message)
        await call.done_writing()
        await call.read()


async def run(options: argparse.Namespace) -> None:
    trees = TreeMaker(load_trace(options.trace), options.nodes, options.messages)
    address = f"127.0.0.1:{options.port}"
    own_connection = (*client_options(address), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.aio.insecure_channel(address, options=own_connection) for _ in range(options.edges)]
    numbers = range(options.first, options.first + options.sessions)
    users = [
        asyncio.create_task(stream_sessions(channels[number % len(channels)], trees, number)) for number in numbers
    ]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.wait([*users, ended], return_when=asyncio.FIRST_COMPLETED)
    for user in users:
        if user.done():
            user.result()
        user.cancel()
    await asyncio.wait(users)
    print(time.process_time(), flush=True)
    for channel in channels:
        await channel.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_limit.load", allow_abbrev=False)
    parser.add_argument("port", type=int)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--edges", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--trace", required=True)
    asyncio.run(run(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
