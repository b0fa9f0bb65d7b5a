"""Peers that speak the verification protocol of an earlier or later version, written without our own codec."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from fakes import FINGERPRINT, INFO, VOCAB_SIZE, next_token
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from specedge.verification.v1 import verification_pb2 as pb

FOLDER = Path(__file__).parent / "golden" / "protocol"
PACKAGE = "specedge.verification.v1"
SERVICE = f"{PACKAGE}.VerificationService"
NEWS = "from_the_future"
NEWS_NUMBER = 1000


def present() -> FileDescriptorProto:
    """The protocol as it is."""
    protocol = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(protocol)
    return protocol


def frozen() -> dict[str, FileDescriptorProto]:
    """Every protocol that was written down, by its number."""
    paths = sorted(FOLDER.glob("*.txtpb"), key=lambda path: int(path.stem))
    return {path.stem: text_format.Parse(path.read_text(), FileDescriptorProto()) for path in paths}


def future() -> FileDescriptorProto:
    """The present protocol with a further field in every message."""
    protocol = present()
    for message in protocol.message_type:
        message.field.add(
            name=NEWS,
            number=NEWS_NUMBER,
            type=FieldDescriptorProto.TYPE_STRING,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
    return protocol


class Language:
    """The messages of one version, as classes of their own.

    Args:
        protocol: that version.
    """

    def __init__(self, protocol: FileDescriptorProto) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(protocol)  # type: ignore[no-untyped-call]
        self._classes = {
            message.name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}"))
            for message in protocol.message_type
        }

    def __getattr__(self, name: str) -> Any:
        """A message class."""
        return self._classes[name]

    def complete(self, message: Any) -> Any:
        """The same message with what is new in it, in all its parts."""
        names = message.DESCRIPTOR.fields_by_name
        for part, value in message.ListFields():
            if part.message_type is not None:
                for inner in value if part.is_repeated else [value]:
                    self.complete(inner)
        if NEWS in names:
            setattr(message, NEWS, "news")
        return message

    def multicallable(self, channel: grpc.aio.Channel) -> Any:
        """The stream of a session."""
        return channel.stream_stream(
            f"/{SERVICE}/Generate",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.GenerateResponse.FromString,
        )


def num_unknown(message: Any) -> int:
    """Fields of a message, and of its parts, that its language does not know."""
    number = len(UnknownFieldSet(message))  # type: ignore[no-untyped-call]
    for part, value in message.ListFields():
        if part.message_type is not None:
            number += sum(num_unknown(inner) for inner in (value if part.is_repeated else [value]))
    return number


@dataclass
class SpokenVerifier:
    """A verifier of another version: it commits the fake target's tokens, one a verdict, and ignores drafts."""

    language: Language
    step_s: float = 0.003
    opened: list[Any] = field(default_factory=list)
    num_drafts: int = 0
    num_unknown: int = 0
    num_streams: int = 0
    port: int = 0
    drain: Callable[[], Any] = field(init=False)
    _is_draining: bool = False

    async def generate(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """One session."""
        if self._is_draining:
            metadata = (("specedge-error", "draining"), ("retry-after-ms", "1000"))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining", metadata)
        speak, opening = self.language, (await context.read()).open
        self.num_unknown += num_unknown(opening)
        assert opening.protocol_version == 1 and opening.tokenizer_fingerprint == FINGERPRINT
        self.opened.append(opening)
        self.num_streams += 1
        reading = asyncio.create_task(self._read(context))
        try:
            opened = speak.SessionOpened(max_live_nodes=64, max_nodes_per_message=64)
            await context.write(speak.complete(speak.GenerateResponse(opened=opened)))
            tokens = [*opening.prompt_ids, *opening.committed_ids]
            end = len(opening.prompt_ids) + opening.sampling.max_tokens
            while len(tokens) < end:
                await asyncio.sleep(self.step_s)
                verdict = speak.Verdict(first_position=len(tokens), token_ids=[next_token(tokens)])
                tokens += verdict.token_ids
                verdict.finish_reason = 2 if len(tokens) == end else 0
                await context.write(speak.complete(speak.GenerateResponse(verdict=verdict)))
            await asyncio.wait({reading}, timeout=1.0)
        finally:
            self.num_streams -= 1
            reading.cancel()

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            self.num_drafts += len(request.draft_nodes.token_ids)

    def info(self) -> Any:
        """What is served."""
        message = self.language.GetServerInfoResponse(
            protocol_version=1,
            capabilities=["draft-tries", "something-new"],
            target_model=INFO.target_model,
            tokenizer_fingerprint=FINGERPRINT,
            vocab_size=VOCAB_SIZE,
            max_len=INFO.max_len,
            max_live_nodes=64,
            max_nodes_per_message=64,
            eos_ids=INFO.eos_ids,
        )
        return self.language.complete(message)


@asynccontextmanager
async def speaking(language: Language, step_s: float = 0.003) -> AsyncIterator[SpokenVerifier]:
    """A verifier of that version, on a free port."""
    verifier = SpokenVerifier(language, step_s)
    server, status = grpc.aio.server(), health.aio.HealthServicer()

    async def generate(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await verifier.generate(context)

    async def info(request: Any, _: Any) -> Any:
        assert request.protocol_version == 1
        return verifier.info()

    async def drain() -> None:
        verifier._is_draining = True
        await status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def write(message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        return data

    verifier.drain = drain
    handlers = {
        "Generate": grpc.stream_stream_rpc_method_handler(generate, language.GenerateRequest.FromString, write),
        "GetServerInfo": grpc.unary_unary_rpc_method_handler(info, language.GetServerInfoRequest.FromString, write),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    verifier.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield verifier
    finally:
        await server.stop(0.1)


def right_drafts(language: Language, tokens: Sequence[int], num_nodes: int) -> Any:
    """A chain of so many of the fake target's own tokens after `tokens`, the first nodes of its stream."""
    context = list(tokens)
    for _ in range(num_nodes):
        context.append(next_token(context))
    nodes = language.DraftNodes(
        token_ids=context[len(tokens) :],
        parent_deltas=[min(number, 1) for number in range(num_nodes)],
        scores=bytes(num_nodes),
        anchor=len(tokens) - 1,
    )
    return language.complete(language.GenerateRequest(draft_nodes=nodes))
