"""One answer that the draft model gives alone: its text, and where it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from specedge.drafting.draft_session import DraftRequest
from specedge.errors import SpecEdgeError
from specedge.penalties import TokenCounts
from specedge.stopping import TokenStops
from specedge.wire.messages import FinishReason


class Decoded(NamedTuple):
    """What a step gave a session: a token, or why there are no more."""

    token_id: int = 0
    finish_reason: FinishReason = ""
    error: SpecEdgeError | None = None


OnDecoded = Callable[[Decoded], None]


@dataclass(eq=False, slots=True)
class DecodingSession:
    """One answer.

    Attributes:
        request: as for drafting; its first `prompt_len` committed tokens are the prompt.
        on_decoded: called on the event loop thread.
        text: prompt and answer so far.
        slots: KV slots of those that are computed.
    """

    request: DraftRequest
    on_decoded: OnDecoded
    prompt_len: int
    text: list[int] = field(init=False)
    slots: list[int] = field(default_factory=list)
    is_paused: bool = False
    counts: TokenCounts | None = None
    stops: TokenStops = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        self.text = [*self.request.committed]
        self.stops = TokenStops(self.request.eos_ids, sampling)
        if sampling.has_penalties:
            self.counts = TokenCounts(self.text[: self.prompt_len])
            self.counts.append(self.text[self.prompt_len :])

    def commit(self, token_id: int) -> Decoded:
        """The token belongs to the answer, unless that has ended."""
        _, reason = self.stops.truncate([token_id], len(self.text) - self.prompt_len)
        self.text.append(token_id)
        if self.counts is not None:
            self.counts.append([token_id])
        return Decoded(token_id, reason or "")
