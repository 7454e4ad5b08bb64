"""Philox4x32-10 against the vectors of its authors (Random123, kat_vectors)."""

from __future__ import annotations

import pytest
import torch

from logpi import _C
from logpi.ops.covariance_clip.reference import philox

ONES = 0xFFFFFFFF
VECTORS = {  # counter, key: words
    ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ((ONES,) * 4, (ONES, ONES)): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ),
}


@pytest.mark.parametrize(("counter", "key"), VECTORS)
def test_known_words(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    expected = VECTORS[counter, key]
    assert _C.philox(*counter, *key) == expected
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected
