"""The published noise, number by number, and its torch twin."""

import numpy as np
import pytest
import torch

from specedge import row_chunks
from specedge.noise import gumbel_noise, noise_bits, noise_keys
from specedge.torch_noise import TorchNoise

# seed, position, token, bits, gumbel: computed with Python's unbounded integers and float64 logarithms.
VECTORS = [
    (0x0, 0, 0, 0xA706DD2F, -0.05528557982482514),
    (0x0, 0, 1, 0xB382A305, -0.18898377598828228),
    (0x0, 1, 0, 0x46B73E79, 1.129216147957241),
    (0x1, 0, 0, 0x55C55969, 0.89640908414371),
    (0x2A, 17, 4095, 0x3D080071, 1.3007106399002035),
    (0x2A, 1023, 151935, 0x7EDCC62F, 0.37936041773169304),
    (0x11F71FB04CB, 131071, 50256, 0x726328BF, 0.5241103697403516),
    (0x100000000, 0, 7, 0xE2C70B7A, -0.7748373599519145),
    (0x7FFFFFFFFFFFFFFF, 5, 3, 0x2A9611FB, 1.704053604765628),
    (0x8000000000000000, 5, 3, 0xF6995769, -1.1952429053416045),
    (0xFFFFFFFFFFFFFFFF, 0, 0, 0x968D1EC0, 0.11996396642393135),
    (0xFFFFFFFFFFFFFFFF, 1048575, 262143, 0x6A339809, 0.6238326238115085),
    (0x0, 4537, 100840, 0x00000006, 20.30890760025996),
    (0x0, 866, 90349, 0xFFFFFFF0, -2.8115409097662813),  # float32 rounds these bits up to 2**32
]
SEEDS = [0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 2, 2**64 - 1]


def keys_of(seeds: list[int], positions: list[int]) -> torch.Tensor:
    keys = noise_keys(np.array(seeds, dtype=np.uint64), np.array(positions, dtype=np.int64))
    return torch.from_numpy(keys.view(np.int64))


@pytest.mark.parametrize(("seed", "position", "token", "bits", "gumbel"), VECTORS)
def test_numpy_gives_the_published_vectors(seed: int, position: int, token: int, bits: int, gumbel: float) -> None:
    assert noise_bits(seed, position, token + 1)[token] == bits
    assert gumbel_noise(seed, position, token + 1)[token] == pytest.approx(gumbel, rel=1e-5, abs=3e-7)


@pytest.mark.parametrize(("seed", "position", "token", "bits", "gumbel"), VECTORS)
def test_torch_gives_the_published_vectors(seed: int, position: int, token: int, bits: int, gumbel: float) -> None:
    noise = TorchNoise(token + 1, "cpu")
    keys = keys_of([seed], [position])
    assert noise.bits(keys)[0, token].item() == bits
    assert noise.gumbel(keys)[0, token].item() == pytest.approx(gumbel, rel=1e-5, abs=3e-7)


def test_torch_bits_equal_numpy_bits_for_every_token_of_a_batch() -> None:
    positions = [0, 1, 2, 1000, 2**20, 2**31, 2**40, 2**62]
    bits = TorchNoise(3001, "cpu").bits(keys_of(SEEDS, positions))
    expected = np.stack([noise_bits(seed, position, 3001) for seed, position in zip(SEEDS, positions, strict=True)])
    assert bits.dtype == torch.uint32
    np.testing.assert_array_equal(bits.numpy(), expected)


def test_torch_noise_equals_numpy_noise_to_the_last_bits() -> None:
    noise = TorchNoise(3001, "cpu").gumbel(keys_of(SEEDS, list(range(8))))
    expected = np.stack([gumbel_noise(seed, position, 3001) for position, seed in enumerate(SEEDS)])
    assert noise.dtype == torch.float32
    np.testing.assert_allclose(noise.numpy(), expected, rtol=2e-6, atol=3e-7)


def test_noise_of_a_key_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = TorchNoise(1001, "cpu")
    keys = keys_of(SEEDS, list(range(8)))
    together = noise.gumbel(keys)
    alone = torch.cat([noise.gumbel(keys[row : row + 1]) for row in range(8)])
    monkeypatch.setattr(row_chunks, "_MAX_CPU_CHUNK", 3 * 1001)
    in_chunks = noise.gumbel(keys)
    assert torch.equal(together, alone)
    assert torch.equal(together, in_chunks)


def test_noise_of_some_tokens_is_bit_for_bit_the_noise_of_all() -> None:
    noise = TorchNoise(5003, "cpu")
    keys = keys_of(SEEDS, list(range(8)))
    everything = noise.gumbel(keys)
    random = torch.Generator().manual_seed(1)
    for width in (1, 3, 7, 16, 130, 5003):
        token_ids = torch.randint(0, 5003, (8, width), generator=random)
        assert torch.equal(noise.gumbel_of(keys, token_ids), everything.gather(1, token_ids))


def test_noise_of_a_token_does_not_depend_on_the_vocabulary_size() -> None:
    np.testing.assert_array_equal(noise_bits(7, 11, 5000)[:100], noise_bits(7, 11, 100))


def test_seed_and_position_are_not_interchangeable() -> None:
    pairs = [(seed, position) for seed in range(40) for position in range(40)]
    keys = keys_of([seed for seed, _ in pairs], [position for _, position in pairs])
    assert len(np.unique(keys)) == len(pairs)


def test_noise_is_finite_and_has_the_moments_of_a_gumbel_distribution() -> None:
    noise = np.concatenate([gumbel_noise(3, position, 100_000) for position in range(20)])
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.003)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.01)
