"""The emulator finds what is planted in kernels/ and is silent about what is right."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import build
import pytest
import sanitized

KERNELS = Path(__file__).parent / "kernels"

# Kernels that are right: every variant computes them exactly, and no sanitizer says a word.
RIGHT = (
    "block_sums",
    "online_log_sum_exp",
    "histogram_by_atomics",
    "last_block",
    "indices_in_three_dims",
    "every_collective",
    "a_short_warp",
    "syncwarp_orders",
    "bits_and_conversions",
    "every_atomic",
    "launch_after_a_fault",
)

# What the emulator itself finds, in every variant: the case, and the words of its report.
FAULTS = {
    "divergent_barrier": "24 threads returned",
    "two_barriers": "divergent barrier: others wait at __syncthreads",
    "barrier_after_return": "31 threads (0 to 31) at __syncthreads",
    "shuffle_without_a_lane": "with mask 0xffffffff",
    "two_operations": "are at __shfl_xor_sync",
    "lane_outside_mask": "reads lane 20, which does not take part",
    "caller_outside_mask": "which the caller is not in",
    "barrier_against_shuffle": "deadlock in block 0",
    "no_blocks": "expected 1 to 2147483647 blocks in x, got 0",
    "too_many_threads": "expected 1 to 1024 threads a block, got 1088",
    "too_much_shared": "bytes of dynamic shared memory, got 1048576",
    "misaligned_hinted_load": "misaligned 16-byte load by __ldg",
    "misaligned_plain_load": "'const struct uint4' needs an address divisible by 16",
    "misaligned_store": "misaligned 16-byte store by __stcs",
    "misaligned_plain_store": "'double' needs an address divisible by 8",
    "misaligned_atomic": "misaligned 4-byte atomicAdd",
    "static_out_of_bounds": "index 32 out of bounds for 'float [32]'",
}

OUT_OF_BOUNDS = (
    "dynamic_out_of_bounds",
    "global_read_out_of_bounds",
    "global_write_out_of_bounds",
    "vector_out_of_bounds",
)

RACES = (
    "missing_barrier",
    "missing_second_barrier",
    "shuffle_as_fence",
    "syncwarp_across_warps",
    "syncwarp_of_half",
    "plain_add",
    "global_write_race",
    "flag_without_fence",
    "blocks_write_one_address",
    "block_trusts_its_neighbour",
    "last_block_without_fence",
)

UNINITIALISED = ("uninitialised_static", "uninitialised_dynamic")

every_variant = pytest.mark.parametrize("variant", build.KERNEL_FLAGS)


@cache
def _program(variant: str) -> Path | str:
    try:
        return build.build_planted(variant)
    except build.CannotBuildError as error:
        return str(error)


def run(case: str, variant: str) -> subprocess.CompletedProcess[str]:
    program = _program(variant)
    if isinstance(program, str):
        pytest.skip(program)
    return subprocess.run(
        [str(program), *([case] if case else [])],
        env={**sanitized.environment(variant), "LD_PRELOAD": ""},
        preexec_fn=sanitized.fixed_addresses,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def places(case: str) -> list[str]:
    """`file:line` of every line marked as the fault of this case."""
    return [
        f"tests/cpp/kernels/{path.name}:{number}"
        for path in sorted(KERNELS.glob("*.cu"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(rf"// FAULT {case}$", line)
    ]


def assert_names_one_of(places: list[str], text: str) -> None:
    found = re.findall(r"tests/cpp/kernels/\w+\.cu:\d+", text)
    assert places, "no line is marked as this fault"
    assert set(places) & set(found), f"expected one of {places} in\n{text}"


def test_every_case_is_expected() -> None:
    listed = run("", "plain").stdout.split()
    assert sorted(listed) == sorted([*RIGHT, *FAULTS, *OUT_OF_BOUNDS, *RACES, *UNINITIALISED])


@every_variant
@pytest.mark.parametrize("case", RIGHT)
def test_a_right_kernel_is_exact_and_silent(case: str, variant: str) -> None:
    done = run(case, variant)
    assert (done.stdout, done.stderr, done.returncode) == ("exact\n", "", 0)


@every_variant
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_its_place(case: str, variant: str) -> None:
    done = run(case, variant)
    assert done.returncode == 1
    assert FAULTS[case] in done.stdout
    assert_names_one_of(places(case), done.stdout)


@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
@pytest.mark.parametrize("case", UNINITIALISED)
def test_shared_memory_begins_as_nan(case: str, variant: str) -> None:
    done = run(case, variant)
    assert done.returncode == 0
    assert done.stdout == "32 then 1\n"  # a sum, and whether the sum with a hole is NaN


@pytest.mark.parametrize("case", UNINITIALISED)
def test_initcheck_names_the_read(case: str) -> None:
    done = run(case, "initcheck")
    assert done.returncode == 1
    assert "read of 4 bytes of shared memory that no thread has written" in done.stdout
    assert_names_one_of(places(case), done.stdout)


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_address_sanitizer_sees_past_the_end(case: str) -> None:
    done = run(case, "address")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert_names_one_of(places(case), done.stderr)


@pytest.mark.parametrize("case", RACES)
def test_thread_sanitizer_sees_the_race(case: str) -> None:
    done = run(case, "thread")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
    assert_names_one_of(places(case), done.stderr)


def test_the_variants_are_needed() -> None:
    # What a sanitizer alone can see, the plain variant lets through: these tests prove something.
    for case in (*OUT_OF_BOUNDS, *RACES):
        assert run(case, "plain").stdout == "silent\n"
