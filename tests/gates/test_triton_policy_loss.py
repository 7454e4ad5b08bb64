"""The Triton kernels of policy_loss compiled for GPUs that are not here: nothing spills, and a knob
that changes compiles nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, compiled
from test_triton_specialisation import keys  # noqa: F401  a fixture

from logpi import objectives as o
from logpi.ops.policy_loss import _triton
from logpi.ops.policy_loss import _triton_kernels as kernels
from logpi.ops.policy_loss.encoding import KINDS, kind_and_knobs
from logpi.ops.policy_loss.offline import SHAPINGS

WHAT_EVERYONE_PASSES = {
    "loss_mask": "*i1",
    "selection": "*i1",
    "weights": "*fp64",
    "partial": "*fp64",
    "ESTIMATOR": 2,
    "ADVANTAGE_PER_ROW": False,
    "WEIGHT_PER_ROW": True,
    "BLOCK": _triton.BLOCK,
    "WITH_KL": True,
    "WITH_ENTROPY": True,
}
NUMBERS = sorted({kind for kind, _ in KINDS.values()} | {12 + i for i in range(len(SHAPINGS))})


def build(kernel: Any, target: str, **changes: Any) -> Any:
    known = WHAT_EVERYONE_PASSES | changes
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    return compiled(kernel, arguments, target, _triton.THREADS)


@pytest.mark.parametrize("target", TARGETS)
def test_ppo_on_every_target(target: str, record_property: Any) -> None:
    made = build(kernels.loss_kernel, target, OBJECTIVE=0)
    record_property("registers", made.registers)
    assert made.spilled == 0
    assert made.registers <= (168 if target.startswith("sm") else 256)  # 3 programs at a time


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_objective(kind: int) -> None:
    made = build(kernels.loss_kernel, "sm_90", OBJECTIVE=kind)
    assert made.spilled == 0
    assert made.registers <= 168


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_sum_of_sums(target: str) -> None:
    assert build(kernels.finish_kernel, target).spilled == 0


def run(objective: Any, shape: tuple[int, int], **options: Any) -> None:
    from logpi.ops.policy_loss.op import _check, encode

    x = torch.zeros(shape)
    arguments = {
        "log_probs": x, "old_log_probs": x, "advantages": x, "loss_mask": x, "objective": objective,
        "aggregation": "token-mean", "ref_log_probs": None, "kl": None, "entropy": None,
        "entropy_coef": 0.0, "rollout_log_probs": None, "importance": None, "num_tokens": None,
        "num_sequences": None, "horizon": None, "selection": None,
    }  # fmt: skip
    _triton.forward(encode(_check(**arguments | options)[0]), True, False)


def test_knobs_and_shapes_compile_nothing(keys: dict[str, set[str]]) -> None:  # noqa: F811
    for step, shape in enumerate(((1, 1), (2, 16), (3, 1024), (1, 4097))):
        ref = {"kl": o.KL(0.1 * step), "ref_log_probs": torch.zeros(shape)}
        run(o.PPOClip(0.1 * step, 1.0 * step), shape, **ref)
    assert {name: len(found) for name, found in keys.items()} == {
        "loss_kernel": 1,
        "finish_kernel": 1,
    }
    run(o.DualClip(), (2, 16), kl=o.KL(0.1), ref_log_probs=torch.zeros(2, 16))
    run(o.PPOClip(), (2, 16))
    assert len(keys["loss_kernel"]) == 3  # the count above can rise


def test_every_objective_that_has_a_number_has_its_own() -> None:
    numbers = [kind_and_knobs(o.LUFFY(s, 0.3 if "c" in s else None))[0] for s in SHAPINGS]
    assert numbers == list(range(12, 18))
