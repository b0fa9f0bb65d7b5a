"""What earlier checks have found out for later ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specedge.wire.messages import ServerInfo


@dataclass(slots=True)
class Facts:
    """Filled in by checks in their order; None is not known.

    Attributes:
        verifier_is_to_start: the verifier that the edge names is of the same settings and may not be running yet.
        is_reachable: TCP with the verifier came about.
        info: what the verifier serves.
        round_trip_s: median of small calls.
        fingerprint: of this edge's target tokenizer.
        prompt_ids: tokens to try a session with.
        draft_step_s: median of the draft model's steps here.
        verifier_step_s: of the verifier's steps for one session without drafts.
        plain_s, drafted_s: between two tokens of a tried session, without and with drafts.
        tokens_per_verification: of the tried session with drafts.
    """

    verifier_is_to_start: bool = False
    is_reachable: bool = False
    info: ServerInfo | None = None
    round_trip_s: float | None = None
    fingerprint: str | None = None
    prompt_ids: Sequence[int] = field(default_factory=tuple)
    draft_step_s: float | None = None
    verifier_step_s: float | None = None
    plain_s: float | None = None
    drafted_s: float | None = None
    tokens_per_verification: float | None = None
