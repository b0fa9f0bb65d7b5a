"""Stand-ins with behaviour for tests of the wire: a target, an engine, a draft source, and a server around them."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import numpy as np

from edge_agent.draft_source import OnNodes
from specedge.drafting.draft_session import DraftRequest
from specedge.errors import CapacityExceeded, EngineDead, InvalidRequest, ProtocolError, VerifierUnavailable
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.authentication import Authentication
from specedge_verifier.bridge import Engine, SessionSink
from specedge_verifier.grpc_server import ServerOptions, ServerTls, VerifierServer
from specedge_verifier.service import StreamOptions
from specedge_verifier.stream_observer import StreamObserver
from specedge_verifier.tenant_account import TenantAccount

VOCAB_SIZE = 151_936
FINGERPRINT = "tokenizer-1"

INFO = ServerInfo(
    target_model="fake-target",
    tokenizer_fingerprint=FINGERPRINT,
    vocab_size=VOCAB_SIZE,
    max_len=4096,
    max_live_nodes=256,
    eos_ids=(2,),
    max_batch_size=8,
    server_version="0",
)


def next_token(context: Sequence[int]) -> int:
    """The fake target's only token after `context`; most ids take three bytes on the wire."""
    return 3 + zlib.crc32(np.asarray(context, dtype=np.uint32).tobytes()) % (VOCAB_SIZE - 3)


def expected_answer(prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """What plain decoding with the fake target gives."""
    context = list(prompt_ids)
    for _ in range(num_tokens):
        context.append(next_token(context))
    return context[len(prompt_ids) :]


async def until(condition: Callable[[], object], timeout_s: float = 2.0) -> None:
    """Waits until condition() holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class FakeEngine:
    """Verifies against `next_token`, one task per session, on the event loop.

    Args:
        info: what it claims to serve.
        max_sessions: one more is refused.
        patience_s: how long a speculative session waits for drafts before it decodes plainly.
        step_s: how long a step takes.
    """

    def __init__(
        self, info: ServerInfo = INFO, max_sessions: int = 64, patience_s: float = 0.005, step_s: float = 0.0
    ) -> None:
        self.patience_s = patience_s
        self.step_s = step_s
        self.tamper: Callable[[int, Verdict], Verdict | None] = lambda handle, verdict: verdict
        self.is_healthy = True
        self.max_sessions = max_sessions
        self.opened: list[OpenSession] = []
        self.closed: list[int] = []
        self.num_nodes_received = 0
        self.num_nodes_verified = 0
        self._info = info
        self._is_draining = False
        self._sessions: dict[int, _FakeSession] = {}

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def info(self) -> ServerInfo:
        return self._info

    def open(
        self,
        message: OpenSession,
        sink: SessionSink,
        grammar: object | None = None,
        account: TenantAccount | None = None,
    ) -> int:
        if self._is_draining:
            raise VerifierUnavailable("draining")
        num_prompt = len(message.prompt_ids)
        if num_prompt + message.sampling.max_tokens > self._info.max_len:
            raise InvalidRequest(f"{num_prompt} prompt tokens do not fit into {self._info.max_len}", "prompt_ids")
        if len(self._sessions) >= self.max_sessions:
            raise CapacityExceeded(f"{self.max_sessions} sessions are open, no more fit", retry_after_s=2.5)
        handle = len(self.opened)
        self.opened.append(message)
        self._sessions[handle] = _FakeSession(self, handle, message, sink)
        return handle

    def draft(self, handle: int, nodes: DraftNodes) -> None:
        self.num_nodes_received += len(nodes.token_ids)
        if handle in self._sessions:
            self._sessions[handle].draft(nodes)

    def close(self, handle: int) -> None:
        session = self._sessions.pop(handle, None)
        if session is not None:
            self.closed.append(handle)
            session.task.cancel()

    def drain(self) -> None:
        self._is_draining = True

    def die(self, tells_sessions: bool = True) -> None:
        """Ends as after a fatal error."""
        self.is_healthy = False
        for handle, session in list(self._sessions.items()):
            self.close(handle)
            if tells_sessions:
                session.sink.failed(EngineDead("the engine has died"))


class _FakeSession:
    def __init__(self, engine: FakeEngine, handle: int, opening: OpenSession, sink: SessionSink) -> None:
        self.sink = sink
        self._engine = engine
        self._handle = handle
        self._opening = opening
        self._trie = DraftTrie([*opening.prompt_ids, *opening.committed_ids], max_live_nodes=256)
        self._news = asyncio.Event()
        sink.on_congestion = lambda _: self._news.set()
        self.task = asyncio.create_task(self._run())

    def draft(self, nodes: DraftNodes) -> None:
        try:
            for parent, token, score in zip(nodes.parents, nodes.token_ids, nodes.scores, strict=True):
                self._trie.add(parent, token, score)
        except ProtocolError as error:
            self._engine.close(self._handle)
            self.sink.failed(error)
        self._trie.trim()
        self._news.set()

    async def _run(self) -> None:
        engine, trie = self._engine, self._trie
        num_prompt, max_tokens = len(self._opening.prompt_ids), self._opening.sampling.max_tokens
        await asyncio.sleep(0)
        self.sink.opened(SessionOpened(num_prompt - 1, engine.info().max_live_nodes))
        while len(trie.committed) < num_prompt + max_tokens:
            await self._wait_for_drafts()
            await asyncio.sleep(engine.step_s)
            nodes = trie.select(64)
            tokens = self._walk(set(nodes))[: num_prompt + max_tokens - len(trie.committed)]
            first_position = len(trie.committed)
            num_accepted = len(trie.commit(tokens).accepted)
            engine.num_nodes_verified += len(nodes)
            finish = "length" if len(trie.committed) == num_prompt + max_tokens else ""
            verdict = Verdict(
                first_position, tuple(tokens), finish, 1234, 23456, len(nodes), num_accepted, lead_tokens=9
            )
            if (tampered := engine.tamper(self._handle, verdict)) is not None:
                self.sink.verdict(tampered)
        engine.close(self._handle)

    async def _wait_for_drafts(self) -> None:
        while self.sink.is_congested:
            self._news.clear()
            await self._news.wait()
        if self._opening.system == "specedge" and not self._trie.num_live:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._engine.patience_s)

    def _walk(self, verified: set[int]) -> list[int]:
        context, node = list(self._trie.committed), ROOT
        tokens: list[int] = []
        while True:
            tokens.append(next_token([*context, *tokens]))
            child = self._trie.children(node).get(tokens[-1])
            if child is None or child not in verified:
                return tokens
            node = child


class TreeDrafts:
    """Drafts one tree per verdict: the right tokens down to `num_right`, wrong ones around them.

    Args:
        num_nodes: nodes of a tree, in as many messages as `num_messages`.
        defer: hands over each message on a later turn of the loop.
    """

    drafter_id = "tree"

    def __init__(self, num_nodes: int = 32, num_right: int = 4, num_messages: int = 1, gap_s: float = 0.0) -> None:
        self.num_nodes = num_nodes
        self.num_right = num_right
        self.num_messages = num_messages
        self.gap_s = gap_s
        self.sessions: list[TreeSession] = []

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> "TreeSession":
        self.sessions.append(TreeSession(self, request.committed, on_nodes))
        return self.sessions[-1]


class TreeSession:
    def __init__(self, source: TreeDrafts, committed: Sequence[int], on_nodes: OnNodes) -> None:
        self.num_pauses = 0
        self.num_resumes = 0
        self.is_closed = False
        self.epoch = 0
        self._source = source
        self._committed = list(committed)
        self.on_nodes = on_nodes
        self._num_sent = 0
        self._random = Random(7)
        self._task: asyncio.Task[None] | None = None
        self._draft()

    def verdict(self, token_ids: Sequence[int]) -> None:
        self._committed += token_ids
        self._draft()

    def restart(self) -> int:
        self.epoch += 1
        self._num_sent = 0
        self._draft()
        return self.epoch

    def pause(self) -> None:
        self.num_pauses += 1

    def resume(self) -> None:
        self.num_resumes += 1

    def close(self) -> None:
        self.is_closed = True
        if self._task is not None:
            self._task.cancel()

    def _draft(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._send(self._tree()))

    def _tree(self) -> list[tuple[int, int]]:
        """Pairs of (parent within the tree or -1, token), the right path first."""
        context, tree = list(self._committed), []
        for depth in range(self._source.num_right):
            context.append(next_token(context))
            tree.append((depth - 1, context[-1]))
        while len(tree) < self._source.num_nodes:
            tree.append((self._random.randrange(-1, len(tree)), self._random.randrange(20_000, VOCAB_SIZE)))
        return tree

    async def _send(self, tree: list[tuple[int, int]]) -> None:
        size = len(tree) // self._source.num_messages
        first, anchor = self._num_sent, ~(len(self._committed) - 1)
        for start in range(0, len(tree), size):
            await asyncio.sleep(self._source.gap_s)
            part = tree[start : start + size]
            self._num_sent += len(part)
            parents = [anchor if parent < 0 else first + parent for parent, _ in part]
            self.on_nodes(self.epoch, DraftNodes([token for _, token in part], parents, [-1.5] * len(part)))


@asynccontextmanager
async def serving(
    engine: Engine,
    port: int = 0,
    tls: ServerTls | None = None,
    host: str = "127.0.0.1",
    authentication: Authentication | None = None,
    observer: StreamObserver | None = None,
    **stream_options: Any,
) -> AsyncIterator[VerifierServer]:
    """A verifier server over `engine`, ready, stopped at the end; a free port unless one is given."""
    options = ServerOptions(host, port, stream=StreamOptions(**stream_options), tls=tls)
    server = VerifierServer(engine, options, observer=observer, authentication=authentication)
    await server.start()
    await server.set_ready()
    try:
        yield server
    finally:
        await server.stop()
