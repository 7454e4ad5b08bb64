"""The uniform numbers that the ops which sample draw: a function of (seed, step, row) alone.

    u = (m + 1/2) / 2^52        m: 52 bits of words 1 and 2 of Philox4x32-10

The key is the seed; the counter is the row, then the step; the low 32 bits of each first (Salmon et
al. 2011, Parallel random numbers: as easy as 1, 2, 3). Word 0 is `clip_cov_mask`'s, so that the
same (seed, step) may go to both. Every operation is exact: u has the same bits on every backend
and never is 0 or 1. csrc/core/philox.h and core/_triton_draws.py have the same for the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core import checks

_LOW32 = 0xFFFFFFFF
_MOST = 2**63 - 1


def uniforms(seed: int, step: int | Tensor, row_ids: Tensor) -> Tensor:
    """`[..]` float64 in (0, 1), one for each of the int64 `row_ids`, on their device."""
    _, high, low, _ = random_words(seed, step, row_ids)
    return ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52


def random_words(seed: int, step: int | Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """The four words of (seed, step, index), `[..]` int64 each."""
    steps = torch.as_tensor(step)  # 0-d: of an int on a CPU, which every device takes
    counter = (index & _LOW32, index >> 32 & _LOW32, steps & _LOW32, steps >> 32 & _LOW32)
    return philox(counter, (seed & _LOW32, seed >> 32))


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of 32 bits, as int64."""
    (a, b, c, d), (k, j) = counter, key
    for _ in range(10):
        high_a, low_a = _product(a, 0xD2511F53)
        high_c, low_c = _product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ j, low_a
        k, j = k + 0x9E3779B9 & _LOW32, j + 0xBB67AE85 & _LOW32
    return a, b, c, d


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product whose 64 bits int64 does not hold."""
    low, high = x * (factor & 0xFFFF), x * (factor >> 16)
    return high + (low >> 16) >> 16, (high << 16) + low & _LOW32


def check_seed_and_step(
    seed: int, step: int | Tensor, device: torch.device
) -> tuple[int, int, Tensor | None]:
    """The seed, the step, and where the step lies, if it is a 0-d int64 tensor on the device (it is
    then 0 here): a CUDA graph reads that anew at every replay."""
    step_at: Tensor | None = None
    if isinstance(step, Tensor):
        checks.dtype("step", step, torch.int64)
        checks.shape("step", step, ())
        checks.device("step", step, device)
        step_at, step = step, 0
    for name, value in (("seed", seed), ("step", step)):
        checks.at_least(name, value, 0)
        if value > _MOST:
            raise ValueError(f"{name}: expected at most 2^63 - 1, got {value}")
    return seed, step, step_at
