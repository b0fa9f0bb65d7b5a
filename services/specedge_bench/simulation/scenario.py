"""What is simulated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from specedge.drafting.growth import GrowthSettings
from specedge.errors import SettingsError
from specedge_bench.curves import StepCurve
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.simulation.acceptance_trace import AcceptanceTrace
from specedge_verifier.queue_bounds import QueueLimits

System = Literal["autoregressive", "server-only", "specedge"]
Mode = Literal["streamed", "included", "excluded", "off"]
Batching = Literal["ready", "static", "dynamic"]
Choice = Literal["fixed", "random", "two"]
SYSTEMS: tuple[System, ...] = ("autoregressive", "server-only", "specedge")
MODES: tuple[Mode, ...] = ("streamed", "included", "excluded", "off")
BATCH_TYPES: tuple[Batching, ...] = ("ready", "static", "dynamic")
CHOICES: tuple[Choice, ...] = ("fixed", "random", "two")

BLOCK_SIZE = 16
"""Tokens per KV block."""

Progress = Callable[[int, int], None]
"""Told how many tokens of how many have arrived."""


class ScenarioError(SettingsError):
    """A simulation was asked for that makes no sense; names the value and the limit."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A request of a run whose answer is in the trace.

    Attributes:
        num_prompt_tokens, num_answer_tokens: its lengths.
        trace_start: where in the trace the answer begins.
    """

    num_prompt_tokens: int
    num_answer_tokens: int
    trace_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulation.

    Attributes:
        system: see `specedge bench`.
        verifier_curve: the target's step time on a verifier's device.
        draft_curve: the draft's, on an edge's device, or for "server-only" on a verifier's.
        trace: how well draft and target agree.
        num_sessions: users in a closed loop, or answers in all where `arrival_rate` is given.
        requests_per_user: answers of one user, one after the other; closed loop only.
        arrival_rate: answers begun per second in all (Poisson); None is a closed loop.
        num_edges: users are spread over them evenly.
        num_verifiers: each with a device of its own.
        verifier_choice: where an edge opens a session. "fixed": on the one verifier that it has, edges being spread
            over them evenly; "two": as the product chooses, by the hints of all; "random": anywhere.
        network: between every edge and its verifiers; each edge has a line of its own.
        mode, growth: how edges draft. "server-only" drafts in synchronous rounds.
        batch_type: the verifier's waiting rule.
        num_prompt_tokens, max_tokens: means of prompt and answer length.
        length_spread: lengths are drawn uniformly within this share of their means.
        replayed: what each of the `num_sessions` users asks, one after the other, in a closed loop; empty draws lengths
            and places in the trace.
        warm_up: what each of them asks before, which does not count but is learnt from.
        max_batch_size, max_num_batched_tokens, max_tree_nodes, max_live_nodes: the verifier's settings.
        queue: the verifier's bounds for new sessions; None takes everyone. Who is refused comes back when told to in a
            closed loop, else never.
        num_kv_blocks: of 16 tokens; None gives every running session what it needs.
        verifier_host_s, edge_host_s: what a step of the target, and of the draft wherever it runs, costs beside its
            forward.
        verifier_session_s: what a session costs the verifier's processor per step, most of it while the device
            computes: a step takes at least that of all its sessions.
        seed: names the run.
    """

    system: System
    verifier_curve: StepCurve
    draft_curve: StepCurve
    trace: AcceptanceTrace
    num_sessions: int = 8
    requests_per_user: int = 1
    arrival_rate: float | None = None
    num_edges: int = 1
    num_verifiers: int = 1
    verifier_choice: Choice = "fixed"
    network: NetworkProfile = field(default_factory=lambda: NetworkProfile("rtt15", 15.0))
    mode: Mode = "streamed"
    growth: GrowthSettings = field(default_factory=lambda: GrowthSettings(max_budget=64))
    batch_type: Batching = "ready"
    num_prompt_tokens: int = 256
    max_tokens: int = 128
    length_spread: float = 0.25
    replayed: tuple[tuple[Replayed, ...], ...] = ()
    warm_up: tuple[tuple[Replayed, ...], ...] = ()
    max_batch_size: int = 64
    max_num_batched_tokens: int = 1024
    max_tree_nodes: int = 64
    max_live_nodes: int = 256
    queue: QueueLimits | None = None
    num_kv_blocks: int | None = None
    verifier_host_s: float = 0.001
    edge_host_s: float = 0.0005
    verifier_session_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        words = (("system", SYSTEMS), ("mode", MODES), ("batch_type", BATCH_TYPES), ("verifier_choice", CHOICES))
        for name, known in words:
            if getattr(self, name) not in known:
                raise ScenarioError(f"{name} is {getattr(self, name)}; known are {', '.join(known)}")
        counts = ("num_sessions", "requests_per_user", "num_edges", "num_verifiers", "num_prompt_tokens", "max_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise ScenarioError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if self.num_verifiers > self.num_edges and self.verifier_choice == "fixed":
            raise ScenarioError(
                f"num_verifiers is {self.num_verifiers}, num_edges only {self.num_edges}; a verifier serves whole edges"
            )
        for name in ("verifier_host_s", "edge_host_s", "verifier_session_s"):
            if not 0 <= getattr(self, name) < 3600:
                raise ScenarioError(f"{name} is {getattr(self, name)}; it has to be at least 0 and below 3600")
        if not 0 <= self.length_spread < 1:
            raise ScenarioError(f"length_spread is {self.length_spread}; it has to be at least 0 and below 1")
        for name in ("replayed", "warm_up"):
            asked = getattr(self, name)
            if asked and (self.arrival_rate is not None or len(asked) != self.num_sessions):
                raise ScenarioError(
                    f"{name} has {len(asked)} users; a closed loop of as many as num_sessions, {self.num_sessions}, is "
                    "needed"
                )
        if self.arrival_rate is not None and not self.arrival_rate > 0:
            raise ScenarioError(f"arrival_rate is {self.arrival_rate}; it has to be above 0")

    @property
    def num_shards(self) -> int:
        """Parts that have no influence on each other: a verifier each, or all where edges choose among them."""
        return self.num_verifiers if self.verifier_choice == "fixed" else 1

    def verifiers_of(self, shard: int) -> range:
        """The numbers of a shard's verifiers."""
        return range(shard, shard + 1) if self.verifier_choice == "fixed" else range(self.num_verifiers)
