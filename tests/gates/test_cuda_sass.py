"""The machine code of the CUDA kernels: wide loads, nothing in local memory, few registers.

Runs wherever nvcc is; a GPU is not needed. The table goes to build/gates/cuda_sass.md.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from sass import (
    ARCHS,
    BUILD,
    ROOT,
    WHOLE_SHARED,
    Expect,
    Kernel,
    carried_code,
    compile_all,
    faults,
    line_of,
    missing_tools,
    resident_warps,
    table,
)

SAMPLES = Path(__file__).parent / "samples"
SOURCES = sorted((ROOT / "csrc").glob("*/*.cu"))
SHIPPED = {"sm_80", "sm_90", "sm_100", "sm_120", "compute_120"}

# Every kernel of csrc/, by a pattern of its instances, the first that fits: what each must keep to.
# 80 registers are three blocks of 256 threads on a multiprocessor, 64 four; a softcap works in
# double.
KERNELS: dict[str, Expect] = {
    "action_sampling_rows<*>": Expect(64),  # a warp a row, in double
    "flow_balance_loss": Expect(80, wide_loads=False),  # rows begin anywhere; in double
    "flow_balance_gradient": Expect(32, wide_loads=False),
    # vectors of one number a token: a tile of 1024 is four loads a thread
    "covariance_clip_sums": Expect(40, wide_loads=False),
    "covariance_clip_keys": Expect(64, wide_loads=False),
    "covariance_clip_digit": Expect(40, wide_loads=False),
    "covariance_clip_ties": Expect(40, wide_loads=False),
    "covariance_clip_mark": Expect(40, wide_loads=False),
    "linear_log_probs_fold_rows<*, false>": Expect(64),
    "linear_log_probs_fold_rows<*, true>": Expect(128),
    "kept_ids_rows<*>": Expect(64),
    "sample_tokens_rows<*>": Expect(112),  # a block of 512 threads has the multiprocessor
    "token_log_probs_rows<*, false>": Expect(80),
    "token_log_probs_rows<*, true>": Expect(128),
    "token_log_probs_segments<*, false>": Expect(80),
    "token_log_probs_segments<*, true>": Expect(128),
    "token_log_probs_merge<*>": Expect(72, wide_loads=False),
    "token_log_probs_kept<*>": Expect(80, wide_loads=False),
    "token_log_probs_backward_tiles<*, false>": Expect(80),
    "token_log_probs_backward_tiles<*, true>": Expect(128),
    "token_log_probs_backward_kept<*>": Expect(80, wide_loads=False),
    "token_log_probs_fused<*>": Expect(128, dynamic_shared=WHOLE_SHARED),
}

_why_not = missing_tools()
pytestmark = pytest.mark.skipif(_why_not is not None, reason=f"{_why_not}")


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    return compile_all(SOURCES)


def test_every_kernel_keeps_to_its_line(compiled: list[Kernel]) -> None:
    unknown = {kernel.instance for kernel in compiled if not line_of(kernel, KERNELS)}
    assert not unknown, f"kernels without a line in KERNELS: {sorted(unknown)}"
    found = [fault for one in compiled for fault in faults(one, KERNELS[line_of(one, KERNELS)])]
    assert not found, "\n".join(found)


def test_every_line_has_its_kernel(compiled: list[Kernel]) -> None:
    used = {(line_of(kernel, KERNELS), kernel.arch) for kernel in compiled}
    assert used == {(pattern, arch) for pattern in KERNELS for arch in ARCHS}


def test_the_table_is_written(compiled: list[Kernel]) -> None:
    text = table(compiled, KERNELS)
    (BUILD / "cuda_sass.md").write_text(text)
    assert text.count("\n") == 2 + len(compiled)


def test_the_built_module_carries_every_target() -> None:
    from logpi import _C

    if not _C.has_cuda:
        pytest.skip("_C was built without CUDA")
    if os.environ.get("LOGPI_CUDA_ARCHS"):
        pytest.skip("LOGPI_CUDA_ARCHS chose other targets for this build")
    assert carried_code(Path(_C.__file__)) == SHIPPED


# ---- the gate can fail --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ARCHS)
def samples(request: pytest.FixtureRequest) -> dict[str, Kernel]:
    found = compile_all(sorted(SAMPLES.glob("*.cu")), [request.param])
    return {kernel.name: kernel for kernel in found}


def test_a_good_kernel_passes(samples: dict[str, Kernel]) -> None:
    good = samples["good_kernel"]
    assert faults(good, Expect(registers=32)) == []
    assert good.instance == "good_kernel<unsigned short>"
    assert (good.threads, good.static_shared) == (256, 32)
    assert good.count("MUFU", having="EX2") >= 4
    assert good.count("LDG") >= good.count("LDG", having="128") > 0


@pytest.mark.parametrize(
    ("name", "expect", "fault"),
    [
        ("good_kernel", Expect(registers=8), "registers, over its 8"),
        ("narrow_kernel", Expect(registers=64), "no 16-byte load"),
        ("spilling_kernel", Expect(registers=64), "loads and stores of local memory"),
        ("spilling_kernel", Expect(registers=64), "128 bytes of stack"),
        ("unbounded_kernel", Expect(registers=64), "no __launch_bounds__"),
    ],
)
def test_a_planted_fault_is_reported(
    samples: dict[str, Kernel], name: str, expect: Expect, fault: str
) -> None:
    assert any(fault in sentence for sentence in faults(samples[name], expect))


def test_a_line_is_a_pattern_and_the_first_counts(samples: dict[str, Kernel]) -> None:
    lines = {"good_kernel<unsigned *>": Expect(8), "good_kernel*": Expect(64)}
    assert line_of(samples["good_kernel"], lines) == "good_kernel<unsigned *>"
    assert line_of(samples["narrow_kernel"], lines) == ""
    text = table([samples["good_kernel"]], lines)
    assert "| `good_kernel<unsigned short>` | " in text
    assert "(of 8) |" in text


def test_wide_loads_are_asked_of_row_kernels_only(samples: dict[str, Kernel]) -> None:
    assert faults(samples["narrow_kernel"], Expect(registers=64, wide_loads=False)) == []


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "warps"),
    [
        (32, 256, 0, 64),  # nothing limits but the multiprocessor's own 64
        (64, 256, 0, 32),
        (65, 256, 0, 24),  # 72 are given out: 3 blocks of 8 warps, not 3.5
        (255, 256, 0, 8),
        (32, 1024, 0, 64),
        (32, 32, 0, 32),  # no more than 32 blocks
        (32, 256, 32 << 10, 32),  # 33 kB a block with the reserved one: 4 on sm_80
    ],
)
def test_occupancy_by_hand(
    samples: dict[str, Kernel], registers: int, threads: int, shared: int, warps: int
) -> None:
    kernel = dataclasses.replace(
        samples["good_kernel"], arch="sm_80", registers=registers, threads=threads, static_shared=0
    )
    assert resident_warps(kernel, shared) == warps


def test_a_compile_error_is_shown(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void broken_kernel() { return 1; }\n")
    with pytest.raises(RuntimeError, match=r"broken\.cu.*error"):
        compile_all([broken], ["sm_90"])
