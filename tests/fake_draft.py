"""A draft model without weights, and a verifier that only keeps the trie.

Every KV slot of the model remembers the text it was computed for. The model checks what a real one could only get wrong
silently, that the slots each row attends to hold exactly that row's own path, and counts how often each path is
computed. Its logits are a function of the whole path.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import torch

from edge_agent.drafter import Drafter, DraftHandle
from specedge.drafting.draft_session import DraftingSettings, DraftRequest
from specedge.errors import SpecEdgeError
from specedge.model.batch import PackedBatch, Segment
from specedge.sampling import SamplingParams
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes

VOCAB_SIZE = 13


def fake_logits(path: Sequence[int]) -> torch.Tensor:
    """The fake's logits after a path, float32 [VOCAB_SIZE]; peaked, without ties."""
    seed = int.from_bytes(blake2b(np.array(path, dtype=np.int64).tobytes(), digest_size=4).digest(), "little")
    return torch.from_numpy(np.random.default_rng(seed).normal(0.0, 3.0, VOCAB_SIZE).astype(np.float32))


class FakeDraft:
    """Implements `DraftRunner`.

    Args:
        num_slots: as a real runner has.
        logits: the model.
    """

    def __init__(self, num_slots: int, logits: Callable[[Sequence[int]], torch.Tensor] = fake_logits) -> None:
        self.num_slots = num_slots
        self.vocab_size = VOCAB_SIZE
        self.device = torch.device("cpu")
        self.computed: Counter[tuple[int, ...]] = Counter()
        self.num_rows: list[int] = []  # of every forward
        self.wanted_paths: list[tuple[int, ...]] = []  # of the last forward
        self.during_forward: Callable[[PackedBatch], None] = lambda batch: None
        self._paths: dict[int, tuple[int, ...]] = {}  # by slot
        self._logits = logits

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of the wanted rows, after checking every row's context."""
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two rows write the same slot"
        rows: list[tuple[int, ...]] = []
        for segment in batch.segments:
            rows += self._run(segment, batch, len(rows))
        assert len(rows) == len(batch.token_ids)
        self.computed.update(rows)
        self.num_rows.append(len(rows))
        self.wanted_paths = [rows[row] for row in batch.logits_rows]
        self.during_forward(batch)
        return torch.stack([self._logits(path) for path in self.wanted_paths] or [torch.empty(0)])

    def _run(self, segment: Segment, batch: PackedBatch, first: int) -> list[tuple[int, ...]]:
        context = segment.context_slots.tolist()
        num_rows = segment.num_rows
        num_tail = num_rows if segment.mask is None else segment.mask.shape[1]
        prefix, tail = context[: len(context) - num_tail], context[len(context) - num_tail :]
        assert tail[num_tail - num_rows :] == batch.slots[first : first + num_rows].tolist()
        rows = []
        for index in range(num_rows):
            row = first + index
            mask = np.arange(num_tail) <= index if segment.mask is None else segment.mask[index]
            own = num_tail - num_rows + index
            assert mask[own] and not mask[own + 1 :].any()
            seen = [tail[column] for column in np.flatnonzero(mask[:own])]
            positions = {len(self._paths[slot]) - 1: slot for slot in prefix + seen}
            assert len(positions) == len(prefix) + len(seen), "two tokens at the same position are visible"
            visible = [positions[position] for position in range(len(positions))]
            path = (*(self._paths[slot][-1] for slot in visible), int(batch.token_ids[row]))
            assert [self._paths[slot] for slot in visible] == [path[: n + 1] for n in range(len(visible))]
            assert batch.positions[row] == len(visible)
            self._paths[int(batch.slots[row])] = path
            rows.append(path)
        if segment.tail_positions is not None:
            assert segment.tail_positions.tolist() == [len(self._paths[slot]) - 1 for slot in tail]
        return rows


class TrieKeeper:
    """The verifier's side of one session: resolves what is sent and commits what the test says.

    Args:
        drafter: opens the session; its event loop must be running.
        committed: the prompt.
        sampling, eos_ids: of the session.
    """

    def __init__(
        self,
        drafter: Drafter,
        committed: Sequence[int],
        sampling: SamplingParams,
        eos_ids: Sequence[int] = (),
        max_live_nodes: int = 64,
        prediction: Sequence[int] = (),
    ) -> None:
        self.messages: list[DraftNodes] = []
        self.epoch = 0
        self._failure: Exception | None = None  # of a callback, where the event loop would only log it
        self.trie = DraftTrie(committed, max_live_nodes=1 << 20)
        request = DraftRequest(
            "session", tuple(committed), sampling, tuple(eos_ids), max_live_nodes, prediction=tuple(prediction)
        )
        self.handle: DraftHandle = drafter.open(request, self._receive)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Commits tokens on both sides."""
        self.check()
        self.trie.commit(token_ids)
        self.handle.verdict(token_ids)

    def reconnect(self) -> None:
        """Goes on with a stream that counts from 0."""
        self.trie = DraftTrie(self.trie.committed, max_live_nodes=1 << 20)
        self.messages = []
        self.epoch = self.handle.restart()

    def walk(self, answer: Sequence[int]) -> list[int]:
        """The verdict of a target that continues with `answer`: the accepted path and one token."""
        verdict: list[int] = []
        node = ROOT
        for token in answer:
            verdict.append(token)
            if token not in self.trie.children(node):
                break
            node = self.trie.children(node)[token]
        return verdict

    def path_to(self, number: int) -> tuple[int, ...]:
        """The tokens after the committed ones down to a live node."""
        return tuple(self.trie.token(node) for node in self.trie.path(number))

    def live_paths(self) -> set[tuple[int, ...]]:
        """All live hypotheses."""
        self.check()
        return {self.path_to(number) for number in self.trie.live_numbers()}

    def check(self) -> None:
        """Raises what went wrong with a message."""
        if self._failure is not None:
            raise self._failure

    def _receive(self, epoch: int, nodes: DraftNodes) -> None:
        try:
            assert epoch == self.epoch, "a message of a stream that has ended"
            assert len(nodes.token_ids) > 0
            self.messages.append(nodes)
            for token, parent, score in zip(nodes.token_ids, nodes.parents, nodes.scores, strict=True):
                self.trie.extend((parent,), (token,), (score,))
        except (AssertionError, SpecEdgeError) as error:
            self._failure = self._failure or error


def make_drafter(runner: FakeDraft, settings: DraftingSettings | None = None) -> Drafter:
    """A drafter that has not been started, so that a test can take its steps itself."""
    return Drafter(runner, drafter_id="fake", settings=settings or DraftingSettings())
