"""The two models without weights: a target whose KV slots remember their text, and a draft that often guesses it."""

from collections.abc import Iterable, Sequence

import numpy as np
from fake_target import FakeTarget

from protocol_simulation.texts import VOCAB_SIZE
from protocol_simulation.world import MODELS, World
from specedge.drafting.draft_step import DraftStep
from specedge.drafting.growth import Candidates
from specedge.model.batch import PackedBatch
from specedge.row_group import RowGroup
from specedge_verifier.packing import pack, row_groups
from specedge_verifier.scheduler import Schedule

_CLAIMS = {
    width: (claims, np.array(claims)) for width, claims in enumerate(([], [-0.3], [-0.3, -1.6], [-0.3, -1.6, -2.5]))
}
_NO_PARTITION = np.zeros(1)


class DeviceLost(Exception):
    """Kills an engine."""


class Target(FakeTarget):
    """Implements `StepModel`; checks that every row sees the KV of its own text at its own position."""

    def __init__(self, world: World, model: str) -> None:
        super().__init__()
        self.texts = world.texts[model]
        self._world = world
        self.is_lost = False

    def launch(self, schedule: Schedule) -> "Step":  # type: ignore[override]
        if self.is_lost:
            raise DeviceLost("the device was lost")
        return Step(self, pack(schedule), row_groups(schedule))

    def move_kv(self, source_slots: Sequence[int], target_slots: Sequence[int]) -> None:
        self._world.note("accepted KV moved")
        super().move_kv(source_slots, target_slots)


class Step:
    """Implements `PendingTokens`."""

    is_ready = False

    def __init__(self, target: Target, batch: PackedBatch, groups: list[RowGroup]) -> None:
        self._target = target
        self._batch = batch
        self._groups = groups

    def tokens(self) -> list[int]:
        paths = self._target.run(self._batch)
        rows = iter(self._batch.logits_rows.tolist())
        texts, found = self._target.texts, []
        for group in self._groups:
            for position in group.positions.tolist():
                path = paths[next(rows)]
                assert len(path) == position, f"a row after {len(path)} tokens is sampled at position {position}"
                found.append(texts.next_token(path, group.params, group.prompt_len))
        return found


class Draft:
    """Implements `specedge.drafting.core.DraftModel`.

    Args:
        agreement: how often its first guess is the target's token.
        width: children of a node.
    """

    def __init__(self, world: World, agreement: float, width: int) -> None:
        self._seed = world.seed
        self._texts = world.texts[MODELS[0]]
        self._agreement = agreement
        self._width = width

    def children(self, step: DraftStep) -> list[Candidates]:
        found = []
        for session, tree, rows in step.parts:
            trie, sampling = tree.trie, session.request.sampling
            for reference in rows.references:
                path = [*trie.committed]
                if reference >= 0:
                    path += [trie.token(number) for number in trie.path(reference)]
                right = self._texts.next_token(tuple(path), sampling, session.prompt_len)
                found.append(self._guess(path, right, sampling.is_greedy))
        return found

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """Learns nothing."""

    def _guess(self, path: Sequence[int], right: int, is_greedy: bool) -> Candidates:
        mixed = hash((self._seed, *path)) & 0xFFFFFF  # of integers: the same in every process
        first = right if mixed % 997 < 997 * self._agreement else (right + 1 + mixed % 3) % VOCAB_SIZE
        others = [token for token in ((first + 1 + mixed // 997) % VOCAB_SIZE, right) if token != first]
        tokens = [first, *others][: self._width]
        claims, scores = _CLAIMS[len(tokens)]
        return Candidates(tokens, claims, scores, _NO_PARTITION, is_greedy)
