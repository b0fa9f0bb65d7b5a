"""`python -m benchmarks.host_limit.verifier OPTIONS`: the verifier's process, with nothing left out but the model.

Its first line of output is its port; then every line of input is answered with its counters as a line of JSON. It ends
with its input.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from typing import Any

import grpc

from benchmarks.host_limit.clocks import PhaseClocks, process_cpu_s, thread_cpu_s
from benchmarks.host_limit.target import FINGERPRINT, VOCAB_SIZE, WaitingTarget
from specedge.block_pool import BlockPool
from specedge.garbage import spare_steps
from specedge.wire import codec
from specedge.wire.draft_codec import DraftDecoder
from specedge.wire.messages import DRAFT_TRIES, PADDING, DraftNodes, ServerInfo, Verdict
from specedge_verifier import core as core_module
from specedge_verifier.core import EngineCore, Event, StepInFlight, StepResult
from specedge_verifier.engine import EngineThread, monotonic_s
from specedge_verifier.frame_link import FrameLink
from specedge_verifier.grpc_server import ServerOptions, VerifierServer
from specedge_verifier.metrics import VerifierMetrics
from specedge_verifier.queue_bounds import QueueLimits
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.service import StreamOptions
from specedge_verifier.step_report import StepReport
from specedge_verifier.step_time import StepTime
from specedge_verifier.stream_child import StreamChild
from specedge_verifier.stream_plan import StreamPlan
from specedge_verifier.stream_processes import StreamProcesses

MAX_LEN = 2048
MAX_LIVE_NODES = 256
_MAX_TREE_NODES = 64
_BLOCK_SIZE = 16
_LONGEST_S = 2.0
_SILENCE_S = 60.0


class KnownStepTime(StepTime):
    """A wait takes as long as it takes: what neighbours on the machine do to it teaches nothing."""

    def observe(self, num_rows: int, seconds: float) -> None:
        """Nothing is learnt."""


class CountingCore(EngineCore):
    """The product's core; tells the target how many draft messages are on their way.

    Attributes:
        num_up: draft messages that have come.
    """

    num_up = 0

    def __init__(self, *args: Any, target: WaitingTarget, messages_each: int) -> None:
        super().__init__(args[0], target, *args[1:])
        self._target = target
        self._messages_each = messages_each

    def draft(self, handle: int, nodes: DraftNodes) -> list[Event]:
        self.num_up += 1
        self._target.num_missing -= 1
        return super().draft(handle, nodes)

    def finish(self, step: StepInFlight) -> StepResult:
        result = super().finish(step)
        going_on = sum(not (isinstance(event, Verdict) and event.finish_reason) for _, event in result.events)
        self._target.num_missing += self._messages_each * going_on
        return result


class CountingMetrics(VerifierMetrics):
    """The product's metrics, and the totals a measurement needs."""

    num_steps = num_verdicts = num_tokens = num_nodes = 0

    def step(self, report: StepReport) -> None:
        super().step(report)
        self.num_steps += 1
        self.num_verdicts += len(report.queue_s)
        self.num_tokens += report.num_committed
        self.num_nodes += report.num_nodes

    @property
    def totals(self) -> dict[str, float]:
        names = ("num_steps", "num_verdicts", "num_tokens", "num_nodes")
        return {name: getattr(self, name) for name in names}


def time_phases(clocks: PhaseClocks) -> None:
    """Counts the phases of the engine thread and of the event loop's thread."""
    for owner, name, phase in (
        (EngineThread, "_obey", "intake"),
        (Scheduler, "schedule", "schedule"),
        (WaitingTarget, "launch", "pack"),
        (EngineCore, "finish", "accept"),
        (core_module, "accept", "accept"),
        (Scheduler, "settle", "settle"),
        (Scheduler, "learn", "learn"),
        (EngineThread, "_observe", "metrics"),
        (EngineThread, "_deliver", "deliver"),
        (EngineThread, "draft", "loop: hand over"),
        (EngineThread, "open", "loop: hand over"),
        (EngineThread, "_dispatch", "loop: dispatch"),
        (DraftDecoder, "decode", "loop: decode"),
        (codec, "decode_open", "loop: decode"),
        (codec, "encode_response", "loop: encode"),
        (VerifierMetrics, "wire_bytes", "loop: metrics"),
        (FrameLink, "_read", "loop: frames in"),
        (FrameLink, "_flush", "loop: frames out"),
    ):
        clocks.time(owner, name, phase)
    make_handler = grpc.stream_stream_rpc_method_handler

    def timed_handler(behavior: Any, request_deserializer: Any = None, response_serializer: Any = None) -> Any:
        return make_handler(
            behavior,
            request_deserializer and clocks.timed(request_deserializer, "loop: protobuf in"),
            response_serializer and clocks.timed(response_serializer, "loop: protobuf out"),
        )

    grpc.stream_stream_rpc_method_handler = timed_handler


async def serve(options: argparse.Namespace) -> None:
    clocks = PhaseClocks()
    if options.phases:
        time_phases(clocks)
    loop = asyncio.get_running_loop()
    num_sessions, forward_s = options.sessions, options.forward_ms / 1e3
    max_rows = num_sessions * (1 + options.rows_each)
    limits = SchedulerLimits(num_sessions, max_rows, _MAX_TREE_NODES)
    longest_s = forward_s + _LONGEST_S
    step_time = KnownStepTime(max_rows, [(1, longest_s), (max_rows, longest_s)])
    blocks_each = -(-(MAX_LEN + _MAX_TREE_NODES) // _BLOCK_SIZE)
    scheduler = Scheduler(BlockPool(num_sessions * blocks_each, _BLOCK_SIZE), limits, step_time)
    info = ServerInfo(
        target_model="waiting",
        tokenizer_fingerprint=FINGERPRINT,
        vocab_size=VOCAB_SIZE,
        max_len=MAX_LEN,
        max_live_nodes=MAX_LIVE_NODES,
        eos_ids=(2,),
        max_batch_size=num_sessions,
        server_version="0",
        capabilities=(DRAFT_TRIES, PADDING),
    )
    metrics = CountingMetrics(info.target_model, scheduler)
    target = WaitingTarget(forward_s, _LONGEST_S)
    core = CountingCore(scheduler, info, monotonic_s, target=target, messages_each=options.messages)
    engine = EngineThread(core, info, QueueLimits(2 * num_sessions, max_predicted_ttft_s=600.0), loop, metrics)
    spare_steps()
    engine.start()
    server: VerifierServer | StreamProcesses = VerifierServer(engine, ServerOptions(), None, metrics)
    processes: list[StreamChild] = []
    if options.stream_processes:
        plan = StreamPlan("", "127.0.0.1", 0, StreamOptions(), info, log_level="warning")
        server = StreamProcesses(
            engine,
            plan,
            options.stream_processes,
            observer=metrics,
            registry=metrics.registry,
            on_lost=engine.fail,
            silence_s=_SILENCE_S,
        )
        processes = server.processes
    print(await server.start(), flush=True)
    await server.set_ready()
    engine_thread = next(thread for thread in threading.enumerate() if thread.name == "engine")
    while await loop.run_in_executor(None, sys.stdin.readline):
        counters = metrics.totals | {
            "wall_s": time.perf_counter(),
            "process_s": time.process_time(),
            "loop_s": time.thread_time(),
            "engine_s": thread_cpu_s(engine_thread),
            "streams_s": sum(process_cpu_s(process.pid) for process in processes),
            "num_up": core.num_up,
            "phases": dict(clocks.seconds),
            "running": engine.num_sessions,
        }
        print(json.dumps(counters), flush=True)
    await server.stop()
    engine.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_limit.verifier", allow_abbrev=False)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--forward-ms", type=float, required=True)
    parser.add_argument("--rows-each", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--stream-processes", type=int, required=True)
    parser.add_argument("--phases", action="store_true")
    asyncio.run(serve(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
