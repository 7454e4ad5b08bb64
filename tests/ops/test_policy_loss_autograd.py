"""policy_loss and its gradients: derivatives, torch's own rules, and one graph for a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from logpi import policy_loss
from logpi.objectives import KL, LUFFY, ClipCov, DualClip, KLCov, Objective, RolloutImportance
from logpi.testing import bits
from loss_problems import EVERY, OF_A_SEQUENCE, Problem, evaluate, in_float64, problem
from rows import ROWS, Row, serve


@pytest.fixture(
    params=[row for row in ROWS if row.backend in ("cpu", "triton") and row.isa is None], ids=str
)
def kernel_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Whatever the ISA: autograd and compilers see the same op."""
    yield from serve(request.param)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    # several backwards through one graph, which donated buffers do not survive
    with functorch_config.patch(donated_buffer=False):
        yield
    torch._dynamo.reset()


OPTIONS: Problem = {"kl": KL(0.1), "entropy_coef": 0.01}


def arguments(p: Problem, **options: Any) -> Problem:
    kept = ("log_probs", "old_log_probs", "advantages", "loss_mask", "ref_log_probs", "entropy")
    selects = options.get("objective", DualClip()).selected_by
    return {k: p[k] for k in (*kept, *(("selection",) if selects else ()))} | OPTIONS | options


# ---- derivatives --------------------------------------------------------------------------------


def frozen_parts(objective: Objective) -> bool:
    """Whether some factor of the loss has, by definition, no gradient: differences tell it not."""
    return type(objective).__name__ in ("CISPO", "DPPOTV", "DPPOKL", "GSPO")


@pytest.mark.parametrize("objective", [o for o in EVERY if not frozen_parts(o)], ids=str)
def test_gradcheck(objective: Objective) -> None:
    p = in_float64(problem(1, 2, 7))
    p["old_log_probs"] = p["old_log_probs"] + 0.01  # off the kink of |log r|
    given = arguments(p, objective=objective)

    def loss(log_probs: Tensor, entropy: Tensor) -> Tensor:
        return policy_loss(**given | {"log_probs": log_probs, "entropy": entropy}).loss

    leaves = tuple(given[k].clone().requires_grad_() for k in ("log_probs", "entropy"))
    assert torch.autograd.gradcheck(loss, leaves)
    if not isinstance(objective, KLCov):
        assert torch.autograd.gradgradcheck(loss, leaves)


def test_gspo_s_gradient_is_that_of_its_sequence_ratio() -> None:
    """sum over tokens of the token form = the derivative of the sequence form, at equal A."""
    gspo = next(o for o in OF_A_SEQUENCE if type(o).__name__ == "GSPO")
    p = in_float64(problem())
    p["advantages"] = torch.linspace(-1, 1, 5, dtype=torch.float64)
    options = {"objective": gspo, "aggregation": "seq-mean-token-mean"}
    ours = evaluate(p, "torch", **options)["gradient of log_probs"]
    x, mask = p["log_probs"].clone().requires_grad_(), p["loss_mask"]
    counts = mask.sum(-1)
    s = ((x - p["old_log_probs"]) * mask).sum(-1).div(counts).exp()
    free, bound = (-p["advantages"] * r for r in (s, s.clamp(0.8, 1.28)))
    torch.maximum(free, bound).mean().backward()
    assert torch.allclose(ours, x.grad, rtol=1e-10, atol=1e-14)


# ---- autograd's rules ---------------------------------------------------------------------------


def test_a_second_derivative_is_refused_by_a_kernel(kernel_row: Row) -> None:
    x = problem()["log_probs"].requires_grad_()
    given = arguments(problem()) | {"log_probs": x, "backend": kernel_row.backend}
    with pytest.raises(RuntimeError, match=r"no derivative, .* use backend='torch'"):
        torch.autograd.grad(policy_loss(**given).loss, x, create_graph=True)


def test_a_second_backward_is_the_first(kernel_row: Row) -> None:
    x = problem()["log_probs"].requires_grad_()
    out = policy_loss(**arguments(problem()) | {"log_probs": x, "backend": kernel_row.backend})
    first, second = (torch.autograd.grad(out.loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_who_needs_no_gradient_gets_none(kernel_row: Row) -> None:
    p = problem()
    entropy = p["entropy"].requires_grad_()
    given = arguments(p) | {"entropy": entropy, "backend": kernel_row.backend}
    out = policy_loss(**given)
    out.loss.backward()
    assert entropy.grad is not None
    assert not any(value.requires_grad for value in out.metrics.values())
    silent = policy_loss(**given | {"entropy_coef": 0.0})
    assert not silent.loss.requires_grad
    assert torch.equal(silent.metrics["entropy"], out.metrics["entropy"])


def test_advantages_and_old_policies_have_no_gradient(kernel_row: Row) -> None:
    p = problem()
    leaves = {k: p[k].requires_grad_() for k in ("old_log_probs", "advantages", "ref_log_probs")}
    for backend in (kernel_row.backend, "torch"):
        assert not policy_loss(**arguments(p) | leaves, backend=backend).loss.requires_grad


def test_the_loss_may_be_changed_in_place(kernel_row: Row) -> None:
    """It shares no memory with the metrics."""
    x = problem()["log_probs"].requires_grad_()
    out = policy_loss(**arguments(problem()) | {"log_probs": x, "backend": kernel_row.backend})
    before = {name: value.clone() for name, value in out.metrics.items()}
    out.loss.div_(4).backward()
    assert all(torch.equal(out.metrics[name], value) for name, value in before.items())


# ---- compilers ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("objective", [DualClip(), KLCov(), LUFFY()], ids=str)
def test_one_graph_with_the_bits_of_eager(kernel_row: Row, objective: Objective) -> None:
    given = arguments(problem(), objective=objective) | {"backend": kernel_row.backend}
    given |= {"importance": RolloutImportance(), "num_tokens": torch.tensor(150.0)}
    given["rollout_log_probs"] = problem()["rollout_log_probs"]
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in given.items() if k not in tensors}

    def op(tensors: dict[str, Tensor]) -> Any:
        return policy_loss(**tensors, **settings)

    def run(function: Any) -> dict[str, Tensor]:
        leaves = {k: tensors[k].clone().requires_grad_() for k in ("log_probs", "entropy")}
        loss, metrics = function(tensors | leaves)
        loss.backward()
        return {"loss": loss, **metrics, **{f"of {k}": v.grad for k, v in leaves.items()}}

    eager = run(op)
    compiled = run(torch.compile(op, backend="aot_eager", fullgraph=True))
    assert eager.keys() == compiled.keys()
    for name, tensor in eager.items():
        assert torch.equal(bits(compiled[name]), bits(tensor)), name


@pytest.mark.parametrize("objective", [DualClip(), ClipCov()], ids=str)
def test_opcheck(kernel_row: Row, objective: Objective) -> None:
    from logpi.ops.policy_loss import _library  # noqa: F401  defines it
    from logpi.ops.policy_loss.op import _check, encode

    given = arguments(problem(0, 2, 5), objective=objective)
    rest = ("aggregation", "rollout_log_probs", "importance", "num_tokens", "num_sequences")
    defaults = dict.fromkeys((*rest, "horizon", "selection")) | {"aggregation": "token-mean"}
    call, _ = _check(**defaults | given)
    for wants in ((False, False), (True, True)):
        leaves = [x.detach().requires_grad_(wants[0]) for x in (call.log_probs, call.entropy)]
        encoded = encode(call._replace(log_probs=leaves[0], entropy=leaves[1]))
        arguments_ = (kernel_row.backend, *encoded, *wants)
        torch.library.opcheck(torch.ops.logpi.policy_loss.default, arguments_)
