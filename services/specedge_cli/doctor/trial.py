"""A short session with the verifier, as a user's would be, without drafts and with them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from edge_agent.draft_source import DraftSource, NullDraftSource
from edge_agent.generation import Burst, GenerationOptions, GenerationRequest, GenerationService
from edge_agent.verifier_client import VerifierClient
from specedge.sampling import SamplingParams
from specedge_cli.doctor.statistics import percentile

NUM_PLAIN_TOKENS: Final = 16
NUM_DRAFTED_TOKENS: Final = 64
_SEED: Final = 20
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What a session was like.

    Attributes:
        first_token_s: from asking to the first token.
        seconds_per_token: after the first burst.
        tokens_per_verification: after the first burst.
        step_s: median of the verifier's steps.
        queue_s: median of its waiting before them.
        num_tokens: of the answer.
    """

    first_token_s: float
    seconds_per_token: float
    tokens_per_verification: float
    step_s: float
    queue_s: float
    num_tokens: int


async def try_session(
    client: VerifierClient, fingerprint: str, prompt_ids: Sequence[int], drafts: DraftSource | None
) -> Trial:
    """Run one session to its end.

    Args:
        fingerprint: of this edge's target tokenizer.
        drafts: where drafts come from; None: nowhere.

    Raises:
        SpecEdgeError: the verifier refuses or goes away.
    """
    options = GenerationOptions(verifier_deadline_s=_PATIENCE_S)
    service = GenerationService(client, drafts or NullDraftSource(), fingerprint, options)
    info = await service.start()
    default = info.default_sampling
    num_tokens = min(NUM_PLAIN_TOKENS if drafts is None else NUM_DRAFTED_TOKENS, info.max_len - len(prompt_ids))
    sampling = SamplingParams(
        temperature=default.temperature, top_p=default.top_p, top_k=default.top_k, min_p=default.min_p,
        seed=_SEED, max_tokens=num_tokens, ignore_eos=True,
    )  # fmt: skip
    request = GenerationRequest(f"doctor-{uuid4().hex[:12]}", tuple(prompt_ids), sampling, drafts is not None)
    loop = asyncio.get_running_loop()
    asked_s = loop.time()
    bursts: list[tuple[float, Burst]] = []
    async with service.generate(request) as answer:
        async for burst in answer:
            bursts.append((loop.time() - asked_s, burst))
    return trial_of(bursts)


def trial_of(bursts: Sequence[tuple[float, Burst]]) -> Trial:
    """The numbers of a session from its bursts and when they came, in seconds since it was asked for."""
    (first_s, first), *rest = bursts
    num_rest = sum(len(burst.token_ids) for _, burst in rest)
    steps = [burst.stats.step_us / 1e6 for _, burst in rest or bursts]
    waits = [burst.stats.queue_us / 1e6 for _, burst in rest or bursts]
    return Trial(
        first_token_s=first_s,
        seconds_per_token=(bursts[-1][0] - first_s) / num_rest if num_rest else first_s,
        tokens_per_verification=num_rest / len(rest) if rest else float(len(first.token_ids)),
        step_s=percentile(steps, 50),
        queue_s=percentile(waits, 50),
        num_tokens=len(first.token_ids) + num_rest,
    )
