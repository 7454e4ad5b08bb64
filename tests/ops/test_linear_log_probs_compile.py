"""What a compiler makes of linear_log_probs: one graph, the same bits, torch's own rules kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_linear_log_probs import ALL, D, V, randint, randn, with_bias
from torch import Tensor
from torch._functorch import config as functorch_config

from logpi import KeepSet
from logpi.testing import bits, outputs_and_gradients

if TYPE_CHECKING:
    from rows import Row

N = 6


def option_sets() -> dict[str, dict[str, Any]]:
    kept = torch.rand(N, V, generator=torch.Generator().manual_seed(3)) < 0.1
    kept[:, 5] = True
    return {
        "plain": {},
        "temperatures": {"temperature": torch.linspace(0.5, 2, N)},
        "masked": {"loss_mask": torch.arange(N) % 3 != 1, "softcap": 2.0},
        "slice": {"support": slice(0, 64), "vocab_size": V - 1},
        "kept": {"support": KeepSet.from_mask(kept), "loss_mask": torch.arange(N) % 3 != 1},
        "float32 logits": {"logits_dtype": torch.float32},
    }


OPTIONS = option_sets()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    # outputs_and_gradients goes backward several times, which donated buffers do not survive
    with functorch_config.patch(donated_buffer=False):
        yield
    torch._dynamo.reset()


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return randn(N, D), randn(V, D, seed=2) * 0.5, randn(V, seed=5), torch.full((N,), 5)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("option", OPTIONS)
def test_one_graph_with_the_bits_of_eager(kernel_row: Row, option: str) -> None:
    if kernel_row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")
    options = {"backend": kernel_row.backend} | OPTIONS[option]

    def op(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> Any:
        return with_bias(hidden, weight, bias, ids, **options, **ALL)

    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    eager = outputs_and_gradients(op, *operands())
    ours = outputs_and_gradients(compiled, *operands())
    assert eager.keys() == ours.keys()
    for name, tensor in eager.items():
        assert torch.equal(bits(ours[name]), bits(tensor)), name


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain_bytes": 1}, "retain_bytes: expected 0 under"),
        ({"weight_grad": torch.zeros(V, D)}, "weight_grad: expected None under"),
    ],
)
def test_compiled_refuses_what_it_cannot_keep(options: dict[str, Any], message: str) -> None:
    def run(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = with_bias(hidden, weight, bias, ids, backend="cpu", **options).log_probs
        return out

    with pytest.raises(Exception, match=message):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*operands())


@pytest.mark.parametrize("option", ["plain", "masked", "slice"])
def test_registered_ops_keep_torchs_rules(option: str) -> None:
    from logpi.ops.linear_log_probs import _library
    from logpi.ops.linear_log_probs.op import LinearCall, check_call

    hidden, weight, bias, ids = operands()
    given = {"temperature": 1.0, "support": None, "vocab_size": None, "loss_mask": None}
    given |= {"softcap": None, "logit_scale": 1.0} | OPTIONS[option]
    for fields in ((True,) * 5, (False,) * 5):
        absent = hidden.new_empty(()).expand(N, V)
        head = check_call(absent, ids, *given.values(), fields, False)
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        call = LinearCall(*leaves, head, torch.float32, 0, None, 0, None, None)
        args = ("cpu", *call[:3], (N,), V, torch.float32, None, *head[1:-2])
        assert len(args) == _library._ARGUMENTS
        torch.library.opcheck(torch.ops.logpi.linear_log_probs.default, args)
        with torch.no_grad():
            log_probs, *_, stats, kept = torch.ops.logpi.linear_log_probs(*args)
            plain = ("cpu", *(leaf.detach() for leaf in leaves), *args[4:])
            upstream = randn(N), randn(N) if fields[0] else None
            torch.library.opcheck(
                torch.ops.logpi.linear_log_probs_backward.default,
                (*plain, log_probs, stats, kept, *upstream, [True, True, True]),
            )


def test_ids_are_checked_when_it_runs() -> None:
    hidden, weight, bias, _ = operands()

    def run(hidden: Tensor, ids: Tensor) -> Tensor:
        return with_bias(hidden, weight, bias, ids, backend="cpu").log_probs

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    compiled(hidden, randint(V, N))
    with pytest.raises(ValueError, match=rf"token_ids: .* got {V} in row 2"):
        compiled(hidden, torch.tensor([0, 1, V, 3, 4, 5]))
