"""Tokens per verification and acceptance by depth: the real engine and drafter in lockstep, one full tree a round."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_agent.drafter import Drafter
from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.loader import load_generation_defaults, load_model
from specedge.model.runner import ModelRunner
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.wire.draft_codec import DraftDecoder, DraftEncoder
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, SessionOpened, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.scheduler import Schedule, Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime
from specedge_verifier.target_model import TargetModel

NUM_NODES = 24
WIDTH = 4
MAX_DEPTH = 8
_NUM_BLOCKS, _BLOCK_SIZE, _MAX_LEN = 256, 16, 1024
_STEP_S = 0.03


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What trees brought at one temperature.

    Attributes:
        temperature: of the target.
        coupled: whether candidates were ranked with the target's noise; None at temperature 0, where there is none.
        num_verifications, tokens_per_verification, nodes_per_verification: each verification counts.
        accepted_at_depth: [depth - 1] share of the verifications that accepted at least that many nodes.
        num_answers: prompts answered.
    """

    temperature: float
    coupled: bool | None
    num_answers: int
    num_verifications: int
    tokens_per_verification: float
    nodes_per_verification: float
    accepted_at_depth: list[float]


class _FlatTarget(TargetModel):
    """Every step takes the same virtual time, so that no node is left out for what it costs."""

    now_s = 0.0

    def forward(self, schedule: Schedule) -> torch.Tensor:
        self.now_s += _STEP_S
        return super().forward(schedule)


class Lockstep:
    """The embedded pair, loaded once for all temperatures."""

    def __init__(self) -> None:
        target_path, draft_path = resolve_model(EMBEDDED_NAME, "target"), resolve_model(EMBEDDED_NAME, "draft")
        self._tokenizer = load_tokenizer(target_path)
        self._eos_ids = load_generation_defaults(target_path, self._tokenizer).eos_ids
        self._target = ModelRunner(load_model(target_path, "cpu", "auto"), _NUM_BLOCKS * _BLOCK_SIZE)
        self._draft = ModelRunner(load_model(draft_path, "cpu", "auto"), _NUM_BLOCKS * _BLOCK_SIZE)

    async def measure(
        self,
        temperature: float,
        coupled: bool | None,
        prompts: Sequence[str],
        max_tokens: int,
        answered: Callable[[], None],
    ) -> Acceptance:
        """Answers prompts one by one, each verification with a tree that was grown to its end."""
        model = _FlatTarget(self._target, Sampler(self._target.vocab_size, self._target.device))
        limits = SchedulerLimits(max_batch_size=1, max_num_batched_tokens=_MAX_LEN, max_tree_nodes=NUM_NODES)
        step_time = StepTime(_MAX_LEN, [(1, _STEP_S), (_MAX_LEN, _STEP_S)])
        info = ServerInfo("", "", self._target.vocab_size, _MAX_LEN, NUM_NODES, self._eos_ids, 1, "")
        scheduler = Scheduler(BlockPool(_NUM_BLOCKS, _BLOCK_SIZE), limits, step_time)
        core = EngineCore(scheduler, model, info, lambda: model.now_s)
        growth = GrowthSettings(max_beam_len=MAX_DEPTH, max_branch_width=WIDTH, max_budget=NUM_NODES)
        settings = DraftingSettings(mode="off", growth=growth, max_positions=_MAX_LEN)
        drafter = Drafter(self._draft, drafter_id="draft", settings=settings, coupled=coupled is not False)
        verdicts: list[Verdict] = []
        with torch.inference_mode():
            for index, prompt in enumerate(prompts):
                sampling = SamplingParams(temperature=temperature, seed=index, max_tokens=max_tokens)
                verdicts += await self._answer(core, drafter, index, self._ids(prompt), sampling)
                answered()
        depths = [verdict.num_accepted for verdict in verdicts]
        return Acceptance(
            temperature=temperature,
            coupled=coupled,
            num_answers=len(prompts),
            num_verifications=len(verdicts),
            tokens_per_verification=sum(len(verdict.token_ids) for verdict in verdicts) / len(verdicts),
            nodes_per_verification=sum(verdict.num_nodes_verified for verdict in verdicts) / len(verdicts),
            accepted_at_depth=[sum(num > depth for num in depths) / len(depths) for depth in range(MAX_DEPTH)],
        )

    async def _answer(
        self, core: EngineCore, drafter: Drafter, handle: int, prompt_ids: tuple[int, ...], sampling: SamplingParams
    ) -> list[Verdict]:
        encoder, decoder = DraftEncoder(), DraftDecoder(self._target.vocab_size)

        def send(epoch: int, nodes: DraftNodes) -> None:
            for message in encoder.encode(nodes):
                core.draft(handle, decoder.decode(message, num_verdicts_sent=0))

        core.open(handle, OpenSession(str(handle), prompt_ids, (), sampling, "", drafter.drafter_id))
        session = drafter.open(str(handle), prompt_ids, sampling, self._eos_ids, NUM_NODES, send)
        verdicts: list[Verdict] = []
        while not (verdicts and verdicts[-1].finish_reason):
            while drafter.step():
                pass
            await asyncio.sleep(0)  # delivers what was drafted
            for _, event in core.step().events:
                if isinstance(event, Verdict):
                    verdicts.append(event)
                    session.verdict(event.token_ids)
                elif not isinstance(event, SessionOpened):
                    raise event
        session.close()
        drafter.step()
        return verdicts

    def _ids(self, prompt: str) -> tuple[int, ...]:
        messages = [{"role": "user", "content": prompt}]
        ids: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return tuple(ids)
