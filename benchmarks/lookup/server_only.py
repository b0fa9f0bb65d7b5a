"""The embedded pair in system server-only, step by step in this process, with lookup beside the draft model or not."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.lookup.services import PROMPTS
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.wire.messages import OpenSession, Verdict
from specedge_verifier.loading import load
from specedge_verifier.settings import VerifierSettings

TEMPERATURES = (0.0, 0.7)
_MAX_TOKENS = 200


@dataclass(slots=True)
class ServerTotal:
    """What the last round took, and its texts."""

    num_tokens: int
    num_verifications: int
    seconds: float
    texts: list[list[int]]


def measure_server_only(lookup: Literal["on", "off"], temperature: float, num_rounds: int) -> ServerTotal:
    """All prompts, one after the other; the rounds before the last one are for learning.

    Args:
        lookup: the verifier's setting.
        temperature: of all requests.
        num_rounds: at least one.
    """
    tokenizer = load_tokenizer(resolve_model(EMBEDDED_NAME, "target"))
    core = load(VerifierSettings(system="server-only", num_threads=1, lookup=lookup, num_kv_blocks=512)).core
    total = ServerTotal(0, 0, 0.0, [])
    for number in range(num_rounds * len(PROMPTS)):
        index = number % len(PROMPTS)
        if index == 0:
            total = ServerTotal(0, 0, 0.0, [])
        message = [{"role": "user", "content": PROMPTS[index]}]
        prompt_ids: Any = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        sampling = SamplingParams(temperature=temperature, seed=index, max_tokens=_MAX_TOKENS, ignore_eos=True)
        began_s = time.perf_counter()
        core.open(number, OpenSession(str(number), tuple(prompt_ids), (), sampling, "", ""))
        verdicts: list[Verdict] = []
        with torch.inference_mode():
            while core.num_sessions:
                verdicts += [event for _, event in core.step().events if isinstance(event, Verdict)]
        total.seconds += time.perf_counter() - began_s
        total.texts.append([token for verdict in verdicts for token in verdict.token_ids])
        total.num_tokens += len(total.texts[-1])
        total.num_verifications += len(verdicts)
    return total
