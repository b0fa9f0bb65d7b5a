"""What the target says: a function of the text before, of the position's own noise, and of nothing else."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from specedge.noise import gumbel_noise
from specedge.sampling import SamplingParams

VOCAB_SIZE: Final = 9
EOS: Final = 8
_SPREAD = 3.0  # of the logits


class Texts:
    """One target's own texts under all sampling parameters."""

    def __init__(self, model: str) -> None:
        self._salt = model.encode()
        self._logits: dict[tuple[int, ...], list[float]] = {}
        self._noise: dict[tuple[int, int], list[float]] = {}
        self._next: dict[tuple[object, ...], int] = {}

    def next_token(self, path: tuple[int, ...], sampling: SamplingParams, num_prompt: int) -> int:
        """The target's token after a text whose first `num_prompt` tokens are the prompt."""
        key = path, num_prompt, sampling.seed, sampling.temperature, sampling.min_tokens
        token = self._next.get(key)
        if token is None:
            token = self._next[key] = self._choose(path, sampling, num_prompt)
        return token

    def answer(self, prompt: Sequence[int], sampling: SamplingParams) -> tuple[tuple[int, ...], str]:
        """The answer and why it ends, as plain decoding would have it."""
        path, num_prompt = tuple(prompt), len(prompt)
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS,))}
        while True:
            token = self.next_token(path, sampling, num_prompt)
            path = (*path, token)
            num_tokens = len(path) - num_prompt
            if token in ends and num_tokens > sampling.min_tokens:
                return path[num_prompt:], "stop"
            if num_tokens == sampling.max_tokens:
                return path[num_prompt:], "length"

    def _choose(self, path: tuple[int, ...], sampling: SamplingParams, num_prompt: int) -> int:
        scores = self._scores(path)
        if not sampling.is_greedy:
            noise = self._noise_at(sampling.seed, len(path))
            scores = [score / sampling.temperature + own for score, own in zip(scores, noise, strict=True)]
        if len(path) - num_prompt < sampling.min_tokens:
            refused = {EOS, *sampling.stop_token_ids}
            scores = [-1e9 if token in refused else score for token, score in enumerate(scores)]
        return scores.index(max(scores))

    def _scores(self, path: tuple[int, ...]) -> list[float]:
        known = self._logits.get(path)
        if known is None:
            digest = blake2b(bytes(path), digest_size=VOCAB_SIZE, salt=self._salt).digest()
            known = self._logits[path] = [_SPREAD * byte / 255 for byte in digest]
        return known

    def _noise_at(self, seed: int, position: int) -> list[float]:
        known = self._noise.get((seed, position))
        if known is None:
            known = self._noise[seed, position] = gumbel_noise(seed, position, VOCAB_SIZE).tolist()
        return known
