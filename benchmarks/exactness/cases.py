"""What is asked in every cell: a prompt and the sampling parameters that go with it."""

from dataclasses import dataclass, replace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from benchmarks.exactness.prompts import all_prompts
from specedge.grammar.spec import GrammarSpec
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
    tokenizer: PreTrainedTokenizerBase, eos_id: int, temperature: float, num_prompts: int, max_tokens: int
) -> list[Case]:
    """The first `num_prompts` prompts, each with a seed of its own and, by turns, one of the parameter sets."""
    variants = _variants(tokenizer, eos_id)
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


def _variants(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> list[SamplingParams]:
    """Everything that makes a token depend on more than its own row; the EOS token is helped to come up at all."""
    stops = tuple(_token_id(tokenizer, text) for text in (",", ".", " the"))
    ends = ((eos_id, 7.0),)
    schema = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}'
    return [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(presence_penalty=0.6, frequency_penalty=0.4),
        SamplingParams(top_k=20),
        SamplingParams(logit_bias=ends),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(min_p=0.05),
        SamplingParams(logit_bias=ends, min_tokens=6),
        SamplingParams(stop_token_ids=stops[:2]),
        SamplingParams(logit_bias=ends, ignore_eos=True, top_p=0.95),
        SamplingParams(top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
        SamplingParams(stop_token_ids=stops, min_tokens=9, frequency_penalty=1.0, top_p=0.8),
        SamplingParams(presence_penalty=-0.5, logit_bias=((stops[0], -4.0), (stops[1], 2.0), *ends), min_tokens=3),
        SamplingParams(bad_words=(stops[:1], stops[1:]), allowed_token_ids=tuple(range(3000)), num_logprobs=2),
        SamplingParams(grammar=GrammarSpec("json_schema", schema)),
        SamplingParams(grammar=GrammarSpec("regex", r"[A-Z][a-z ,]+\. [A-Z][a-z ]{5,30}!"), top_p=0.9, min_tokens=4),
        SamplingParams(grammar=GrammarSpec("ebnf", 'root ::= ("- " [^\\n]+ "\\n")+'), repetition_penalty=1.2),
    ]


def _chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    message = [{"role": "user", "content": prompt}]
    ids: Any = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    return tuple(ids)


def _token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = cast(list[int], tokenizer.encode(text, add_special_tokens=False))
    assert len(ids) == 1, f"{text!r} is not one token"
    return ids[0]
