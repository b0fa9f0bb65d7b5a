"""What is asked in every cell: a prompt and the sampling parameters that go with it."""

from dataclasses import dataclass, replace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from benchmarks.exactness.parameters import PARAMETERS, Requests
from benchmarks.exactness.prompts import all_prompts
from specedge.sampling import MAX_SEED, SamplingParams

_SEED_STEP = 0xD1B54A32D192ED03  # odd, so that all seeds differ
_FEW_TOKENS = {1: 1, 4: 2, 7: 3}  # max_tokens by prompt number modulo 9


@dataclass(frozen=True, slots=True)
class Case:
    """One request of a cell."""

    index: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams

    @property
    def request_id(self) -> str:
        return f"prompt-{self.index}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    token_ids: tuple[int, ...]
    finish_reason: str


def make_cases(
    tokenizer: PreTrainedTokenizerBase,
    eos_id: int,
    temperature: float,
    num_prompts: int,
    max_tokens: int,
    requests: Requests = "mixed",
) -> list[Case]:
    """The first `num_prompts` prompts, each with a seed of its own and, by turns, one of the parameter sets."""
    comma, full_stop, the = (_token_id(tokenizer, text) for text in (",", ".", " the"))
    variants = PARAMETERS[requests]((comma, full_stop, the), eos_id)
    cases = []
    for index, prompt in enumerate(all_prompts()[:num_prompts]):
        limit = min(max_tokens, _FEW_TOKENS.get(index % 9, max_tokens - index % 5))
        sampling = variants[index % len(variants)]
        sampling = replace(
            sampling,
            temperature=temperature,
            seed=index * _SEED_STEP & MAX_SEED,
            max_tokens=max(1, limit),
            min_tokens=min(sampling.min_tokens, max(1, limit)),
        )
        cases.append(Case(index, _chat_ids(tokenizer, prompt), sampling))
    return cases


def _chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    message = [{"role": "user", "content": prompt}]
    ids: Any = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    return tuple(ids)


def _token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = cast(list[int], tokenizer.encode(text, add_special_tokens=False))
    assert len(ids) == 1, f"{text!r} is not one token"
    return ids[0]
