"""Random words against the vectors of Philox's authors; the uniform numbers made of them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from logpi import _C
from logpi.core.draws import check_seed_and_step, philox, random_words, uniforms

ONES = 0xFFFFFFFF
VECTORS = {  # Random123, kat_vectors: counter, key: words
    ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ((ONES,) * 4, (ONES, ONES)): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ),
}
LARGE = 2**63 - 1
CALLS = [(0, 0, 0), (7, 3, 11), (LARGE, 5, LARGE), (2**40 + 9, 2**33 + 1, 2**35 + 2), (1, LARGE, 0)]


@pytest.mark.parametrize(("counter", "key"), VECTORS)
def test_known_words(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    expected = VECTORS[counter, key]
    assert _C.philox(*counter, *key) == expected
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize(("seed", "step", "row"), CALLS)
def test_a_uniform_is_52_bits_of_words_1_and_2(seed: int, step: int, row: int) -> None:
    words = _C.philox(
        row & ONES, row >> 32, step & ONES, step >> 32, seed & ONES, seed >> 32
    )  # whose numbers are the authors'
    expected = Fraction(2 * (words[1] << 20 | words[2] >> 12) + 1, 2**53)
    assert Fraction(_C.uniform(seed, step, row)) == expected
    for given in (step, torch.tensor(step)):
        drawn = uniforms(seed, given, torch.tensor([[row]]))
        assert drawn.shape == (1, 1)
        assert Fraction(drawn.item()) == expected


def test_rows_are_even_and_know_nothing_of_covariance_clip() -> None:
    n, rows = 1 << 20, torch.arange(1 << 20)
    u = uniforms(3, 4, rows)
    counts = torch.histc(u, 1024, 0, 1)
    chi = ((counts - n / 1024).square() / (n / 1024)).sum().item()
    assert abs(chi - 1023) < 5 * (2 * 1023) ** 0.5
    keys = random_words(3, 4, rows)[0].double()
    for other in (keys, uniforms(3, 5, rows), uniforms(4, 4, rows), u.roll(1)):
        correlation = torch.corrcoef(torch.stack([u, other]))[0, 1].item()
        assert abs(correlation) < 5 / n**0.5


def test_seed_and_step_are_checked() -> None:
    cpu = torch.device("cpu")
    assert check_seed_and_step(1, 2, cpu) == (1, 2, None)
    at = torch.tensor(5)
    assert check_seed_and_step(1, at, cpu) == (1, 0, at)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        check_seed_and_step(-1, 0, cpu)
    with pytest.raises(ValueError, match=r"step: expected at most 2\^63 - 1"):
        check_seed_and_step(0, 2**63, cpu)
    with pytest.raises(TypeError, match="step: expected int64, got int32"):
        check_seed_and_step(0, torch.tensor(1, dtype=torch.int32), cpu)
    with pytest.raises(ValueError, match=r"step: expected shape \(\), got \(1,\)"):
        check_seed_and_step(0, torch.tensor([1]), cpu)
    with pytest.raises(ValueError, match="step: expected a tensor on meta"):
        check_seed_and_step(0, at, torch.device("meta"))
