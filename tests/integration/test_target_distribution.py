"""At temperature 1 the engine's tokens are distributed as plain transformers' softmax says, whatever our sampler says.

Thousands of sessions with seeds of their own answer the same prompts through the real engine, with draft trees, so that
many tokens are drawn after accepted nodes. The frequencies after each text are held to the softmax of that text by a
chi-square test.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import erfc, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from specedge.block_pool import BlockPool
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_model
from specedge.model.runner import TransformersRunner
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.trie import anchor_at
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel

TARGET = resolve_model("demo", "target")
PROMPTS = ('"Good morning," said the', "He had two apples and bought three more. Now he has")
NUM_SESSIONS = 5_000  # per prompt
NUM_AT_A_TIME = 64
NUM_DRAFTED = 4
NUM_TOKENS = 2
MIN_DRAWS = 200  # after one text, to test it
MIN_EXPECTED = 5.0
SMALLEST_P = 1e-4

Text = tuple[int, ...]


@dataclass(frozen=True)
class ChiSquare:
    """A statistic and its degrees of freedom; statistics of different texts add up."""

    statistic: float = 0.0
    num_free: int = 0

    def __add__(self, other: "ChiSquare") -> "ChiSquare":
        return ChiSquare(self.statistic + other.statistic, self.num_free + other.num_free)

    @property
    def p_value(self) -> float:
        """Probability of a statistic as large, by Wilson and Hilferty's approximation."""
        spread = 2 / (9 * self.num_free)
        z = ((self.statistic / self.num_free) ** (1 / 3) - (1 - spread)) / sqrt(spread)
        return 0.5 * erfc(z / sqrt(2))


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> ChiSquare:
    """Tokens expected too seldom are counted together."""
    expected = observed.sum() * probabilities
    is_rare = expected < MIN_EXPECTED
    observed = np.append(observed[~is_rare], observed[is_rare].sum())
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    if expected[-1] < MIN_EXPECTED:
        observed, expected = observed[:-1], expected[:-1] * (observed[:-1].sum() / expected[:-1].sum())
    return ChiSquare(float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1)


@cache
def plain_model() -> Any:
    return load_model(TARGET, "cpu", "float32", attention="sdpa")


@cache
def softmax(text: Text) -> np.ndarray:
    """The model's distribution after a text, by transformers alone."""
    with torch.inference_mode():
        logits = plain_model()(input_ids=torch.tensor([text]), logits_to_keep=1).logits[0, -1]
    return torch.softmax(logits.double(), dim=-1).numpy()


def engine() -> EngineCore:
    """A core whose rows cost nothing, so that every draft node is verified, with a clock of its own."""
    runner = TransformersRunner(load_model(TARGET, "cpu", "float32"), 4096)
    limits = SchedulerLimits(max_batch_size=NUM_AT_A_TIME, max_num_batched_tokens=1024, max_tree_nodes=8)
    scheduler = Scheduler(BlockPool(1024, 4), limits, StepTime(1024, [(1, 0.01), (1024, 0.01)]))
    info = ServerInfo("target", "", runner.vocab_size, 1024, 64, (2,), NUM_AT_A_TIME, "")
    ticks = count()
    return EngineCore(
        scheduler, TargetModel(runner, Sampler(runner.vocab_size, runner.device)), info, lambda: next(ticks) * 1e-3
    )


def draft(prompt: Text) -> DraftNodes:
    """The likeliest first tokens."""
    tokens = np.argsort(-softmax(prompt))[:NUM_DRAFTED].tolist()
    return DraftNodes(tokens, [anchor_at(len(prompt) - 1)] * NUM_DRAFTED, [-0.5] * NUM_DRAFTED)


def answers(core: EngineCore, prompt: Text) -> Iterator[tuple[list[int], int]]:
    """Every session's tokens, and how many of them were accepted draft nodes; the session's number is its seed."""
    nodes = draft(prompt)
    tokens: dict[int, list[int]] = {}
    num_accepted: Counter[int] = Counter()
    num_opened = 0
    while num_opened < NUM_SESSIONS or tokens:
        while num_opened < NUM_SESSIONS and len(tokens) < NUM_AT_A_TIME:
            sampling = SamplingParams(seed=num_opened, max_tokens=NUM_TOKENS, ignore_eos=True)
            core.open(num_opened, OpenSession(str(num_opened), prompt, (), sampling, "", "likeliest"))
            assert core.draft(num_opened, nodes) == []
            tokens[num_opened] = []
            num_opened += 1
        for handle, event in core.step().events:
            if isinstance(event, Verdict):
                tokens[handle] += event.token_ids
                num_accepted[handle] += event.num_accepted
                if event.finish_reason:
                    yield tokens.pop(handle), num_accepted.pop(handle)


def counts_by_text(prompt: Text, drawn: Sequence[Sequence[int]]) -> Mapping[Text, np.ndarray]:
    """How often each token followed each text, [vocab] per text."""
    counts: dict[Text, np.ndarray] = defaultdict(lambda: np.zeros(len(softmax(prompt)), dtype=np.int64))
    for tokens in drawn:
        for index, token in enumerate(tokens):
            counts[*prompt, *tokens[:index]][token] += 1
    return counts


def test_tokens_are_distributed_as_the_models_softmax() -> None:
    torch.set_num_threads(1)
    core = engine()
    tokenizer = load_tokenizer(TARGET)
    by_depth = [ChiSquare()] * NUM_TOKENS
    num_draws = num_accepted = 0
    for text in PROMPTS:
        prompt: Text = tuple(tokenizer.encode(text, add_special_tokens=False))
        drawn = []
        for tokens, accepted in answers(core, prompt):
            drawn.append(tokens)
            num_accepted += accepted
        assert {len(tokens) for tokens in drawn} == {NUM_TOKENS}
        for before, observed in counts_by_text(prompt, drawn).items():
            if observed.sum() >= MIN_DRAWS:
                num_draws += int(observed.sum())
                by_depth[len(before) - len(prompt)] += chi_square(observed, softmax(before))
    assert num_draws >= 15_000 and num_accepted >= 4_000
    for depth, total in enumerate(by_depth):
        assert total.p_value > SMALLEST_P, f"token {depth + 1} of the answers: {total}"
    core.scheduler.pool.check_integrity()


@pytest.mark.parametrize("temperature", [0.95, 1.05])
def test_a_temperature_five_per_cent_off_would_be_noticed(temperature: float) -> None:
    """As many draws from the model's distribution, and from the one a wrong temperature gives, made by numpy."""
    right, wrong = ChiSquare(), ChiSquare()
    draw = np.random.default_rng(0)
    for text in PROMPTS:
        probabilities = softmax(tuple(load_tokenizer(TARGET).encode(text, add_special_tokens=False)))
        tempered = probabilities ** (1 / temperature)
        right += chi_square(draw.multinomial(NUM_SESSIONS, probabilities), probabilities)
        wrong += chi_square(draw.multinomial(NUM_SESSIONS, tempered / tempered.sum()), probabilities)
    assert right.p_value > SMALLEST_P > wrong.p_value


def test_the_approximation_of_p_values() -> None:
    """Points of the chi-square distribution as tables have them."""
    for statistic, num_free, p_value in (
        (18.307, 10, 0.05),
        (67.505, 50, 0.05),
        (135.807, 100, 0.01),
        (149.449, 100, 0.001),
    ):
        assert ChiSquare(statistic, num_free).p_value == pytest.approx(p_value, rel=0.03)
