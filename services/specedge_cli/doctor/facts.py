"""What earlier checks have found out for later ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specedge.wire.messages import ServerInfo


@dataclass(slots=True)
class Facts:
    """Filled in by checks in their order; None is not known.

    Attributes:
        runs_already: a process of these settings listens at its port, so its models are in memory.
        verifier_is_to_start: the verifier that the edge names is of the same settings and may not be running yet.
        is_reachable: TCP with the verifier came about.
        info: what the verifier serves.
        round_trip_s: median of small calls.
        fingerprint: of this edge's target tokenizer.
        prompt_ids: tokens to try a session with.
        draft_step_s: median of the draft model's steps here.
        verifier_step_s: of the verifier's steps for one session without drafts.
        tree_step_s: the same with the trees of this edge.
        plain_s: between two tokens of a tried session without drafts.
    """

    runs_already: bool = False
    verifier_is_to_start: bool = False
    is_reachable: bool = False
    info: ServerInfo | None = None
    round_trip_s: float | None = None
    fingerprint: str | None = None
    prompt_ids: Sequence[int] = field(default_factory=tuple)
    draft_step_s: float | None = None
    verifier_step_s: float | None = None
    tree_step_s: float | None = None
    plain_s: float | None = None
