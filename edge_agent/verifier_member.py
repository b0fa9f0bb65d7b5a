"""One verifier of a pool: what it serves, how it has done lately, and which of this edge's sessions are on it."""

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from edge_agent.known_refusal import KnownRefusal
from edge_agent.verifier_breaker import Breaker, BreakerState
from edge_agent.verifier_choice import Standing
from specedge.errors import (
    CapacityExceeded,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    TenantLimit,
    Unauthenticated,
    VerifierDraining,
    VerifierUnavailable,
)
from specedge.sampling import SamplingParams
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, TOKEN_MASKS, ServerInfo

if TYPE_CHECKING:
    from edge_agent.verifier_client import Pulse, VerifierClient

logger = logging.getLogger(__name__)

STATES: Final = ("unknown", *(standing.name.lower() for standing in Standing), "left_out")


@dataclass(frozen=True, slots=True)
class PoolTimes:
    """How often a pool asks its verifiers how they are, in seconds.

    Args:
        ping_every_s: while sessions are on a verifier, or it is the only one.
        idle_ping_every_s: else; spread at random.
        ping_timeout_s: after which a ping of several verifiers counts as unanswered.
        sole_ping_timeout_s: the same for the only one: there is nowhere else to go.
        refused_pause_s: until a verifier is asked again that refuses this edge.
        left_out_pause_s: until one is asked again that serves something else.
        spread_s: sessions that lost their verifier open elsewhere after up to so long.
        meet_s: how long others may take after the first has said what it serves.
    """

    ping_every_s: float = 1.0
    idle_ping_every_s: float = 5.0
    ping_timeout_s: float = 2.0
    sole_ping_timeout_s: float = 5.0
    refused_pause_s: float = 5.0
    left_out_pause_s: float = 30.0
    spread_s: float = 0.3
    meet_s: float = 1.0


class Identity(NamedTuple):
    """What decides an answer's tokens: verifiers that have it in common can go on with each other's answers."""

    target_model: str
    tokenizer_fingerprint: str
    vocab_size: int
    eos_ids: tuple[int, ...]

    @classmethod
    def of(cls, info: ServerInfo) -> Self:
        """That of a verifier."""
        return cls(info.target_model, info.tokenizer_fingerprint, info.vocab_size, info.eos_ids)

    def __str__(self) -> str:
        eos = ",".join(map(str, self.eos_ids))
        return f"{self.target_model} (tokenizer {self.tokenizer_fingerprint}, {self.vocab_size} tokens, ends {eos})"


@dataclass(frozen=True, slots=True)
class Need:
    """What a session needs of its verifier.

    Args:
        identity: as it began with; None: any.
        capabilities: optional ones.
        num_tokens: prompt and answer at their longest.
        num_prompt_tokens: of the prompt.
        priority: higher goes first.
    """

    identity: Identity | None = None
    capabilities: frozenset[str] = frozenset()
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    priority: int = 0

    @classmethod
    def of(cls, num_prompt_tokens: int, sampling: SamplingParams, info: ServerInfo, priority: int = 0) -> Self:
        """That of a session. What exceeds the context of `info` is for a verifier to refuse."""
        wanted = {
            LOGPROBS: sampling.num_logprobs is not None or sampling.num_prompt_logprobs is not None,
            TOKEN_MASKS: bool(sampling.bad_words or sampling.allowed_token_ids),
            GRAMMARS: sampling.grammar is not None,
        }
        num_tokens = num_prompt_tokens + sampling.max_tokens
        capabilities = frozenset(capability for capability, is_wanted in wanted.items() if is_wanted)
        within = num_tokens if num_tokens <= info.max_len else 0
        return cls(Identity.of(info), capabilities, within, num_prompt_tokens, priority)

    def is_met_by(self, info: ServerInfo) -> bool:
        """Whether that verifier will do."""
        return (
            self.capabilities <= set(info.capabilities)
            and self.num_tokens <= info.max_len
            and self.identity in (None, Identity.of(info))
        )


class MovableSession(Protocol):
    """A session as the pool sees it."""

    need: Need

    @property
    def heard_s(self) -> float:
        """When its verifier last said something, in seconds of the event loop."""

    def leave(self, error: SpecEdgeError) -> None:
        """It goes on elsewhere; `error` says why."""


@dataclass(slots=True, eq=False)
class VerifierMember:
    """A verifier.

    Attributes:
        info: what it serves, None until it has said.
        is_left_out: it serves something else than the others; `reason` says what.
        is_serving: what it said last; None before it was asked.
        sessions: those of this edge.
        num_opened, num_failed: sessions admitted, streams and pings that failed.
        load: its sessions by its places, all edges together, as it said last.
    """

    client: "VerifierClient"
    dice: random.Random = field(default_factory=random.Random)
    info: ServerInfo | None = None
    is_left_out: bool = False
    reason: str = ""
    is_serving: bool | None = None
    sessions: set[MovableSession] = field(default_factory=set)
    num_opened: int = 0
    num_failed: int = 0
    breaker: Breaker = field(init=False)
    must_ask: bool = False
    pinged_s: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _hinted: float | None = None
    _places: int = 1
    _num_chosen: int = 0  # since the last hint
    _full_until_s: float = 0.0
    _refusal: KnownRefusal | None = None

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.dice)

    @property
    def address(self) -> str:
        """Its address."""
        return self.client.address

    @property
    def drafts(self) -> bool:
        """Whether it takes drafts."""
        return self.info is not None and DRAFT_TRIES in self.info.capabilities

    @property
    def load(self) -> float:
        """Sessions by places, with those that this edge has opened since it said so; else this edge's own."""
        if self._hinted is None:
            return (len(self.sessions) + self._num_chosen) / self._places
        return self._hinted + self._num_chosen / self._places

    def is_full(self, now_s: float) -> bool:
        """Whether a session opened now would have to wait for a place, as far as is known."""
        has_refused = self._refusal is not None and now_s < self._refusal.until_s
        return has_refused or (self._hinted is not None and self._hinted >= 1.0)

    def refuses(self, need: Need, now_s: float) -> CapacityExceeded | None:
        """What it would surely answer, since it just did; None: it has to be asked."""
        if self._refusal is None:
            return None
        return self._refusal.meets(need.num_prompt_tokens, need.priority, now_s)

    def standing(self, now_s: float) -> Standing:
        """How it is seen now."""
        if self.is_serving is False:
            return Standing.AWAY
        state = self.breaker.state(now_s)
        if state is BreakerState.OPEN or self.client.refusal is not None:
            return Standing.LOST
        if now_s < self._full_until_s:
            return Standing.BUSY
        # Half-open: one session tries it, after a ping has found it there.
        if state is BreakerState.HALF_OPEN:
            return Standing.GOOD if self.is_serving and not self.must_ask else Standing.LOST
        return Standing.DOUBTED if self.breaker.is_doubtful else Standing.GOOD

    def state(self, now_s: float) -> str:
        """The same in a word, one of STATES."""
        if self.is_left_out:
            return "left_out"
        if self.info is None and self.client.refusal is None:
            return "unknown"
        return self.standing(now_s).name.lower()

    def chosen(self, now_s: float) -> None:
        """A session is about to be opened here."""
        self._num_chosen += 1
        if self.breaker.state(now_s) is BreakerState.HALF_OPEN:
            self.breaker.try_out(now_s)

    def opened(self) -> None:
        """A session was admitted."""
        self.num_opened += 1
        self.is_serving = True
        self._full_until_s = 0.0
        self.breaker.opened()

    def broke(self, error: SpecEdgeError, now_s: float, need: Need | None = None) -> None:
        """A session that needs so much ended here before its answer did."""
        match error:
            case VerifierDraining():
                self.is_serving = False
            case CapacityExceeded():
                self._full_until_s = now_s + error.retry_after_s
                if need is not None and not isinstance(error, TenantLimit):  # a tenant has room again at any moment
                    from_tokens = need.num_prompt_tokens if error.from_tokens is None else error.from_tokens
                    self._refusal = KnownRefusal(error, from_tokens, need.priority, now_s)
            case VerifierUnavailable():
                self.num_failed += 1
                self.breaker.failed("stream", now_s)
                self.must_ask = True
            case ModelLoadError() | Unauthenticated():
                self.must_ask = True
            case _:
                return
        self.news.set()

    def pulse(self, pulse: "Pulse | None", now_s: float) -> None:
        """A ping was answered, or not."""
        if pulse is None:
            self.num_failed += 1
            self.breaker.failed("ping", now_s)
            self.is_serving, self.must_ask = None, True
            return
        self.breaker.answered(now_s)
        self.is_serving = pulse.is_serving
        if pulse.load is not None:
            self._hinted = pulse.load.num_sessions / pulse.load.max_batch_size
            self._num_chosen = 0

    def ask_again(self) -> None:
        """What it said may hold no longer."""
        self.must_ask = True
        self.news.set()

    def told(self, info: ServerInfo) -> None:
        """It said what it serves."""
        self.info = info
        self.must_ask = False
        self._places = max(info.max_batch_size, 1)
        if self._hinted is None:
            self._num_chosen = 0

    async def ask(self, fingerprint: str, timeout_s: float) -> None:
        """Ask once what it serves, and keep it; a failure counts as a ping without answer."""
        now = asyncio.get_running_loop().time
        try:
            info = await self.client.ask_server_info(timeout_s)
            self.client.check_tokenizer(info, fingerprint)
        except (ModelLoadError, ProtocolError) as error:
            self.leave_out(str(error))
            self.info, self.must_ask = None, False
        except (CapacityExceeded, Unauthenticated):
            self.must_ask = True
        except SpecEdgeError:
            self.pulse(None, now())
        else:
            self.told(info)

    def leave_out(self, reason: str) -> None:
        """It is not asked: it serves something else."""
        if reason != self.reason:
            logger.error("the verifier at %s is left out: %s", self.address, reason)
        self.is_left_out, self.reason = True, reason

    def take_in(self) -> None:
        """It serves the same as the others."""
        if self.is_left_out:
            logger.info("the verifier at %s serves the same as the others", self.address)
        self.is_left_out, self.reason = False, ""

    @property
    def is_usable(self) -> bool:
        """Whether sessions can be on it at all."""
        return self.info is not None and not self.is_left_out

    async def wait(self, pause_s: float, spread_s: float) -> None:
        """Until the next ping: soon after news."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self.news.wait()
                await asyncio.sleep(self.dice.uniform(0.0, spread_s))
        self.news.clear()
