"""What edge and verifier say to each other, as plain values; `codec` gives them their protobuf form.

Positions are absolute: the first prompt token has position 0. `proto/specedge/verification/v1/verification.proto`
says what each field means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from specedge.errors import InvalidRequest, SpecEdgeError
from specedge.sampling import SamplingParams

PROTOCOL_VERSION = 1
"""Rises only when the meaning of an existing field changes."""

DRAFT_TRIES = "draft-tries"
"""Capability: the verifier accepts DraftNodes."""

LOGPROBS = "logprobs"
"""Capability: the verifier tells log-probabilities."""

TOKEN_MASKS = "token-masks"
"""Capability: the verifier obeys `bad_words` and `allowed_token_ids`."""

GRAMMARS = "grammars"
"""Capability: the verifier enforces grammars."""

PADDING = "padding"
"""Capability: the verifier ignores messages that consist of padding."""

PROGRESS = "progress-20ms"
"""Capability: sessions rest while their edge is behind."""

MAX_NODES_PER_MESSAGE = 512
"""What a verifier accepts in one DraftNodes message unless set otherwise."""

TELL_WITHIN_S = 0.02
"""Within which an edge says that it has processed a verdict, where no drafts say so before."""

System = Literal["specedge", "autoregressive"]
FinishReason = Literal["", "stop", "length"]


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Edge to verifier, first message of a stream: begins a session or continues one after a broken stream.

    Args:
        cache_salt: prefixes are shared among sessions with the same one only.
        takes_padding: messages that consist of padding are ignored by this edge.
        takes_draining: it knows what Draining means.
        target_model: that the answer is of, as `ServerInfo` names it; a verifier may have been replaced by one of
            another model. Empty: any.
        tells_progress: it says within TELL_WITHIN_S that it has processed a verdict.
        round_trip_s: the shortest of the last round trips outside of sessions; None: unknown.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    committed_ids: tuple[int, ...]
    sampling: SamplingParams
    tokenizer_fingerprint: str
    drafter_id: str = ""
    system: System = "specedge"
    priority: int = 0
    cache_salt: bytes = b""
    takes_padding: bool = False
    takes_draining: bool = False
    target_model: str = ""
    tells_progress: bool = False
    round_trip_s: float | None = None


@dataclass(frozen=True, slots=True)
class DraftNodes:
    """Edge to verifier: draft nodes in order of arrival.

    Args:
        token_ids: the token each node proposes.
        parents: a node number (>= 0, counted over the whole stream) or `~p` for the committed token at position p.
        scores: natural logarithm of each token's probability after its parent, <= 0; one byte on the wire. A path's
            probability is the product along it, which stays true however late a node arrives.
        num_verdicts_seen: verdicts of this stream the edge had processed; filled in by whoever sends the message.
        looked_up: whether each node was looked up rather than computed by a draft model, for who watches on the edge;
            empty: none was. Not on the wire.
    """

    token_ids: Sequence[int]
    parents: Sequence[int]
    scores: Sequence[float]
    num_verdicts_seen: int = 0
    looked_up: Sequence[bool] = ()


class TokenLogprob(NamedTuple):
    """One token's log-probability: log_softmax of the target's logits in float32, before anything is done to them.

    Attributes:
        logprob: the token's own.
        top_ids: the most probable tokens at its place, best first.
        top_logprobs: theirs.
    """

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Verifier to edge, first message of a stream: the session has been admitted.

    `prompt_logprobs`, when asked for, are of every token of the prompt but the first; the message then comes once the
    prompt has been computed.
    """

    num_cached_tokens: int
    max_live_nodes: int
    max_nodes_per_message: int = MAX_NODES_PER_MESSAGE
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Verdict(NamedTuple):
    """Verifier to edge: tokens committed by one verification. The k-th verdict of a stream has number k."""

    first_position: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason = ""
    queue_us: int = 0
    step_us: int = 0
    num_nodes_verified: int = 0
    num_accepted: int = 0
    lead_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Draining:
    """Verifier to edge, at any time: it shuts down in good order, and the session had better go on elsewhere."""


@dataclass(frozen=True, slots=True)
class DefaultSampling:
    """The target model's own sampling defaults (its generation_config), for fields a user leaves out."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a verifier serves and which limits hold."""

    target_model: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_len: int
    max_live_nodes: int
    eos_ids: tuple[int, ...]
    max_batch_size: int
    server_version: str
    max_nodes_per_message: int = MAX_NODES_PER_MESSAGE
    default_sampling: DefaultSampling = field(default_factory=DefaultSampling)
    protocol_version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = (DRAFT_TRIES, LOGPROBS, TOKEN_MASKS, PADDING, PROGRESS)


def check_token_ids(
    token_ids: Sequence[int], vocab_size: int, name: str, error: type[SpecEdgeError] = InvalidRequest
) -> None:
    """Raises `error`, naming the first token id outside [0, vocab_size) and its index."""
    if min(token_ids, default=0) >= 0:
        check_received_ids(token_ids, vocab_size, name, error)
        return
    _refuse(token_ids, vocab_size, name, error)


def check_received_ids(
    token_ids: Sequence[int], vocab_size: int, name: str, error: type[SpecEdgeError] = InvalidRequest
) -> None:
    """As `check_token_ids`, for ids that come from unsigned fields."""
    if max(token_ids, default=0) >= vocab_size:
        _refuse(token_ids, vocab_size, name, error)


def _refuse(token_ids: Sequence[int], vocab_size: int, name: str, error: type[SpecEdgeError]) -> None:
    index = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < vocab_size)
    raise error(f"{name}[{index}] is {token_ids[index]}, outside the vocabulary of {vocab_size} tokens")
