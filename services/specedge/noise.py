"""Position-keyed Gumbel noise: every token of every position of every seed has its own fixed noise.

All integers are modulo 2**64, with G = 0x9E3779B97F4A7C15 (the golden ratio):

    key(seed, position)         = finalise(finalise(seed) + (position + 1) * G)
    bits(seed, position, token) = finalise(key + (token + 1) * G) >> 32
    v                           = (float32(bits) + 0.5) / 2**32, at most 1 - 2**-24
    gumbel                      = -log(-log1p(-v))

`finalise` is the output function of splitmix64 (Steele, Lea and Flood 2014). The integers and v are the same in numpy,
in torch and on every device; the two logarithms may differ in the last bit. Large noise, the kind that wins an argmax,
comes from small v, where float32 resolves every one of the 2**32 values. The bound on v only touches the largest 2**-24
of the values: float32 would round them to 1 and make the noise minus infinity, which means "filtered out" elsewhere.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

GOLDEN_RATIO: Final = 0x9E3779B97F4A7C15
MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS: Final = (30, 27, 31)
MAX_UNIFORM: Final = 1.0 - 2.0**-24


def noise_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each (seed, position) pair; everything the noise depends on besides the token."""
    return _finalise(_finalise(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_RATIO))


def noise_bits(seed: int, position: int, num_tokens: int) -> NDArray[np.uint32]:
    """The 32 random bits of tokens 0..num_tokens-1 at an absolute position."""
    key = noise_keys(np.array([seed], dtype=np.uint64), np.array([position], dtype=np.int64))
    steps = np.arange(1, num_tokens + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO)
    return (_finalise(key + steps) >> np.uint64(32)).astype(np.uint32)


def gumbel_noise(seed: int, position: int, num_tokens: int) -> NDArray[np.float32]:
    """Standard Gumbel noise of tokens 0..num_tokens-1 at an absolute position; always finite."""
    uniform = (noise_bits(seed, position, num_tokens).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    exponential: NDArray[np.float32] = -np.log1p(-np.minimum(uniform, np.float32(MAX_UNIFORM)))
    return -np.log(exponential)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(SHIFTS[0]))) * np.uint64(MULTIPLIERS[0])
    state = (state ^ (state >> np.uint64(SHIFTS[1]))) * np.uint64(MULTIPLIERS[1])
    return state ^ (state >> np.uint64(SHIFTS[2]))
