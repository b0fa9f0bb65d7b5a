"""Records acceptance traces from the embedded pair: the target answers, the draft ranks children at every position.

The draft reads the target's own text, so claims and ranks are those of rows on the true path, under the noise both
share. Its tau is fitted while recording, as it is while drafting.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import Candidates
from specedge.drafting.ranking import ChildRanking
from specedge.model.batch import IntArray, PackedBatch, Segment
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.loader import load_generation_defaults, load_model
from specedge.model.runner import TransformersRunner
from specedge.row_group import RowGroup
from specedge.sampler import Sampler
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.prompts.loaders import load_prompts
from specedge_bench.simulation.acceptance_trace import NOT_AMONG, AcceptanceTrace, write_trace

TEMPERATURES = (0.0, 0.7, 1.0)
_NUM_SLOTS = 2048
_LEAST_LOG_PROB = -20.0


def record_traces(folder: Path, *, num_prompts: int = 60, max_tokens: int = 96) -> Iterator[Path]:
    """Records the embedded pair at every temperature into one file each; gives their paths as they are written."""
    pair = EmbeddedPair(max_tokens)
    prompts = load_prompts("own")[:num_prompts]
    for temperature in TEMPERATURES:
        found = [pair.positions(prompt, temperature, seed) for seed, prompt in enumerate(prompts)]
        claims, ranks = zip(*(position for answer in found for position in answer), strict=True)
        noise = "" if temperature == 0 else ", noise shared by draft and target"
        trace = AcceptanceTrace(
            name=f"embedded-t{temperature:g}",
            assumption=f"embedded pair, temperature {temperature:g}{noise}, {len(prompts)} answers of the bench's own "
            f"prompts, at most {max_tokens} tokens each",
            log_probs=claims,
            ranks=ranks,
        )
        path = folder / f"{trace.name}.json"
        write_trace(path, trace)
        yield path


class EmbeddedPair:
    """Both models, one text at a time.

    Args:
        max_tokens: of an answer.
    """

    def __init__(self, max_tokens: int) -> None:
        target_path, draft_path = resolve_model(EMBEDDED_NAME, "target"), resolve_model(EMBEDDED_NAME, "draft")
        self._max_tokens = max_tokens
        self._tokenizer = load_tokenizer(target_path)
        self._eos_ids = load_generation_defaults(target_path, self._tokenizer).eos_ids
        self._target = TransformersRunner(load_model(target_path, "cpu", "auto"), _NUM_SLOTS)
        self._draft = TransformersRunner(load_model(draft_path, "cpu", "auto"), _NUM_SLOTS)
        self._sampler = Sampler(self._target.vocab_size, self._target.device)
        self._rankings: dict[float, ChildRanking] = {}

    @torch.inference_mode()
    def positions(self, prompt: Prompt, temperature: float, seed: int) -> list[tuple[tuple[float, ...], int]]:
        """(claims, rank) for each token of the target's answer, its end included."""
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=self._max_tokens)
        prompt_ids = self._ids(prompt)
        answer = self._answer(prompt_ids, params)
        text = [*prompt_ids, *answer]
        batch = _chain(text, 0, len(text) - 1, range(len(prompt_ids) - 1, len(text) - 1))
        logits = self._draft.forward(batch)
        ranking = self._rankings.setdefault(
            temperature, ChildRanking.of(self._draft, DraftingSettings(), vocab_size=self._target.vocab_size)
        )
        group = RowGroup(params, batch.logits_rows + 1, self._eos_ids, len(prompt_ids))
        children = ranking.rank(logits, [group])
        ranking.observe(zip(children, answer, strict=True))
        return [_position(candidates, token) for candidates, token in zip(children, answer, strict=True)]

    def _answer(self, prompt_ids: list[int], params: SamplingParams) -> list[int]:
        text, start = list(prompt_ids), 0
        while len(text) < len(prompt_ids) + params.max_tokens:
            stop = len(text)
            logits = self._target.forward(_chain(text, start, stop, range(stop - 1, stop)))
            group = RowGroup(params, np.array([stop], dtype=np.int64), self._eos_ids, len(prompt_ids))
            text.append(int(self._sampler.choose(logits, [group])[0]))
            start = stop
            if text[-1] in self._eos_ids:
                break
        return text[len(prompt_ids) :]

    def _ids(self, prompt: Prompt) -> list[int]:
        if not prompt.messages:
            continuation: list[int] = self._tokenizer.encode(prompt.text)
            return continuation
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        chat: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return list(chat)


def _chain(text: list[int], start: int, stop: int, wanted: range) -> PackedBatch:
    """Tokens start..stop-1 of a text whose tokens own the first slots; `wanted` are positions."""
    positions: IntArray = np.arange(start, stop, dtype=np.int64)
    segment = Segment(stop - start, np.arange(stop, dtype=np.int64))
    rows = np.array(wanted, dtype=np.int64) - start
    return PackedBatch(np.array(text[start:stop], dtype=np.int64), positions, positions, (segment,), rows)


def _position(candidates: Candidates, token: int) -> tuple[tuple[float, ...], int]:
    claims = tuple(min(0.0, max(_LEAST_LOG_PROB, claim)) for claim in candidates.log_probs)
    return claims, candidates.token_ids.index(token) if token in candidates.token_ids else NOT_AMONG
