"""A target model without weights: every KV slot remembers the text it was computed for.

It runs the real packing and checks what a real model could only get wrong silently: that the slots each row attends to
hold exactly that row's own path. Its next token is a function of the whole path.
"""

from collections.abc import Sequence
from hashlib import blake2b

from specedge.model.batch import PackedBatch
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.scheduler import Schedule

VOCAB_SIZE = 5


def next_token(path: Sequence[int]) -> int:
    """The target's token after a path, in [0, VOCAB_SIZE)."""
    return blake2b(bytes(path), digest_size=2).digest()[0] % VOCAB_SIZE


def answer(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What plain decoding generates."""
    path = list(prompt)
    for _ in range(num_tokens):
        path.append(next_token(path))
    return path[len(prompt) :]


class FakeTarget:
    """Implements `StepModel`, as late as a real one may be: rows are computed when their tokens are asked for."""

    def __init__(self) -> None:
        self.paths: dict[int, tuple[int, ...]] = {}  # by KV slot
        self.num_rows = 0

    def launch(self, schedule: Schedule) -> "FakeStep":
        batch = pack(schedule)
        sizes = [1 + item.num_nodes for item in schedule.planned if item.samples]
        assert [len(group.positions) for group in row_groups(schedule)] == sizes
        return FakeStep(self, batch)

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        moved = [self.paths[slot] for slot in source_slots]
        self.paths.update(zip(target_slots, moved, strict=True))

    def run(self, batch: PackedBatch) -> list[tuple[int, ...]]:
        """Paths of the rows, after checking every row's context."""
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two rows write the same slot"
        rows: list[tuple[int, ...]] = []
        for segment in batch.segments:
            first, num_context = len(rows), len(segment.context_slots)
            context = segment.context_slots.tolist()
            own = slice(first, first + segment.num_rows)
            assert context[num_context - segment.num_rows :] == batch.slots[own].tolist()
            for index in range(segment.num_rows):
                row = first + index
                prefix = context[: num_context - segment.num_rows]
                if segment.mask is None:
                    seen = range(index)
                else:
                    assert segment.mask.shape == (segment.num_rows, segment.num_rows) and segment.mask[index, index]
                    seen = [other for other in range(segment.num_rows) if segment.mask[index, other] and other != index]
                visible = prefix + [context[len(prefix) + other] for other in seen]
                before = tuple(self.paths[slot][-1] for slot in visible)
                path = (*before, int(batch.token_ids[row]))
                assert [self.paths[slot] for slot in visible] == [path[: n + 1] for n in range(len(visible))]
                assert batch.positions[row] == len(visible)
                self.paths[int(batch.slots[row])] = path
                rows.append(path)
        self.num_rows += len(rows)
        return rows


class FakeStep:
    """Implements `PendingTokens`."""

    is_ready = False

    def __init__(self, target: FakeTarget, batch: PackedBatch) -> None:
        self._target = target
        self._batch = batch

    def tokens(self) -> list[int]:
        rows = self._target.run(self._batch)
        return [next_token(rows[row]) for row in self._batch.logits_rows]
