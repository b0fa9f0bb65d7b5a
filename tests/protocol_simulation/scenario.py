"""What a seed stands for: who there is, what they ask for, how the network is, and what will go wrong when."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from edge_agent.generation import GenerationOptions
from protocol_simulation.edge import EdgeSetup, Wish
from protocol_simulation.network import LinkQuality
from protocol_simulation.texts import EOS, VOCAB_SIZE
from protocol_simulation.verifier import VerifierSetup
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.sampling import SamplingParams
from specedge_verifier.waiting import BatchType

DEADLINE_S: Final = 30.0
"""How long answers wait for a verifier, as edges do unless told otherwise."""
TROUBLE_S: Final = 0.8
"""Within this time things begin to go wrong."""

FAULTS: Final = {
    "connection cut": 4,
    "short silence": 2,
    "half-open connection": 3,
    "verifier unreachable": 2,
    "verifier killed": 4,
    "verifier drained": 3,
    "engine died": 1,
    "model replaced": 1,
    "edge killed": 2,
    "verdict repeated": 1,
    "verdict of an old stream": 2,
}
"""What can go wrong, and how often in relation to each other."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong.

    Attributes:
        lasts_s: a verifier's absence, a silence, a grace.
        pick: chooses the victim among those there are then.
    """

    kind: str
    at_s: float
    lasts_s: float
    pick: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulation."""

    addresses: tuple[str, ...]
    verifiers: VerifierSetup
    edges: EdgeSetup
    wishes: list[list[Wish]]  # by edge
    faults: list[Fault]
    min_delay_s: float
    max_delay_s: float

    @classmethod
    def draw(cls, dice: Random, kinds: Mapping[str, int] = FAULTS) -> "Scenario":
        """That of a seed, with faults of some kinds."""
        is_slow = dice.random() < 0.15
        step_s = dice.choice([0.005, 0.02, 0.05])
        is_crowded = dice.random() < 0.25
        num_verifiers = 1 if is_crowded else dice.choice([1, 2, 2, 3])
        num_edges = dice.choice([1, 1, 2])
        gives_up = dice.random() < 0.1
        prompts = [_prompt(dice) for _ in range(2)]
        verifiers = VerifierSetup(
            num_blocks=12 if is_crowded else dice.choice([12, 13, 16, 40]),
            max_batch_size=4 if is_crowded else dice.choice([1, 2, 4]),
            max_rows=dice.choice([64, 12]),
            max_sessions=8 if is_crowded else dice.choice([1, 2, 8, 8]),
            max_live_nodes=dice.choice([24, 24, 5]),
            max_unsent=dice.choice([64, 2]),
            batch_type=dice.choice([BatchType.READY, BatchType.READY, *BatchType]),
            step_s=step_s,
        )
        edges = EdgeSetup(
            drafting=_drafting(dice),
            agreement=dice.choice([0.9, 0.7, 0.3]),
            num_slots=dice.choice([512, 512, 60]),
            step_s=dice.choice([0.002, 0.01, 0.04]),
            options=GenerationOptions(
                verifier_deadline_s=0.8 if gives_up else DEADLINE_S,
                stall_timeout_s=2.0,
                max_buffered_bursts=dice.choice([64, 2, 1]),
            ),
            gives_up=gives_up,
        )
        wishes = [
            [_wish(dice, prompts, is_slow, is_crowded) for _ in range(num_wishes)]
            for num_wishes in ([3] if is_crowded else [dice.choice([1, 2, 3 - num_edges]) for _ in range(num_edges)])
        ]
        faults = [
            Fault(kind, dice.uniform(0.0, TROUBLE_S), dice.choice([0.02, 0.3, 1.0, 2.5]) * dice.random(), dice.random())
            for kind in dice.choices([*kinds], [*kinds.values()], k=dice.choice([0, 1, 2, 3, 4, 5]))
        ]
        min_delay_s = dice.choice([0.0005, 0.005, 0.03])
        addresses = tuple(f"v{number}:1" for number in range(num_verifiers))
        return cls(
            addresses,
            verifiers,
            edges,
            wishes,
            sorted(faults, key=lambda fault: fault.at_s),
            min_delay_s,
            min_delay_s * dice.choice([1, 4]),
        )

    def draw_quality(self, dice: Random) -> LinkQuality:
        """Of one way through the network."""
        delay_s = dice.uniform(self.min_delay_s, self.max_delay_s)
        jitter_s = delay_s * dice.choice([0.0, 0.3, 2.0])
        return LinkQuality(delay_s, jitter_s, dice.choice([0.0, 0.05]), dice.choice([100, 100, 2]))


def _prompt(dice: Random) -> tuple[int, ...]:
    return tuple(dice.randrange(VOCAB_SIZE) for _ in range(dice.choice([1, 3, 7, 12])))


def _drafting(dice: Random) -> DraftingSettings | None:
    source = dice.choice(["streamed", "streamed", "streamed", "streamed with lookup", "lookup", "off", "included"])
    if source == "lookup":
        return None
    growth = GrowthSettings(max_n_beams=4, max_beam_len=3, max_branch_width=2, max_budget=dice.choice([12, 6]))
    mode = "streamed" if source.startswith("streamed") else source
    return DraftingSettings(mode, growth, growth, looks_up=source == "streamed with lookup")  # type: ignore[arg-type]


def _wish(dice: Random, prompts: list[tuple[int, ...]], is_slow: bool, is_crowded: bool) -> Wish:
    prompt = dice.choice(prompts) if dice.random() < 0.5 else _prompt(dice)
    max_tokens = 20 if is_crowded else dice.choice([1, 2, 8, 14, 20])
    sampling = SamplingParams(
        temperature=dice.choice([0.0, 0.7, 1.0]),
        seed=dice.getrandbits(32),
        max_tokens=max_tokens,
        min_tokens=dice.choice([0, 0, min(4, max_tokens)]),
        ignore_eos=dice.random() < 0.7,
        stop_token_ids=dice.choice([(), (), (), (EOS - 1,)]),
    )
    return Wish(
        prompt,
        sampling,
        starts_s=0.1 if is_crowded else dice.uniform(0.0, 0.4),
        speculates=dice.random() < 0.9,
        priority=dice.choice([0, 0, 1]),
        reading_s=dice.uniform(0.0, 0.3) if is_slow or dice.random() < 0.1 else 0.0,
        leaves_after=dice.choice([1, 2, 4]) if dice.random() < 0.1 else None,
    )
