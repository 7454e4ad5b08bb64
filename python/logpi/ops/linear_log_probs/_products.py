"""The four products of the head, by torch: logits, and the gradients of hidden states and weight.

Operands are of one dtype; sums over tiles are float32 whatever that is. On a GPU a 16-bit product
is written in float32 where float32 is asked for. On a CPU torch has no such product: for float32
logits operands are cast tile by tile, and of a 16-bit gradient each tile's part is rounded before
it is added in float32, as one product over the whole vocabulary would be rounded at its end.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALVES = (torch.bfloat16, torch.float16)
# MKL's float32 product of this shape goes at 160-186 GFLOP/s in so many columns of logits a call,
# at 106-159 in 8192 (128-512 rows, D = 2048, two threads of an EPYC).
_CPU_FLOAT_COLUMNS = 1024


def widens(x: Tensor) -> bool:
    """Whether torch can multiply 16-bit `x` into float32 here."""
    return x.is_cuda and x.dtype in _HALVES


def logits_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """`out [n, w]` = x weight^T + bias."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and len(weight) > _CPU_FLOAT_COLUMNS:
        for begin in range(0, len(weight), _CPU_FLOAT_COLUMNS):
            part = slice(begin, begin + _CPU_FLOAT_COLUMNS)
            logits_into(out[:, part], x, weight[part], None if bias is None else bias[part])
    elif out.dtype != x.dtype:
        torch.mm(x, weight.t(), out_dtype=out.dtype, out=out)
        if bias is not None:
            out.add_(bias)
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def add_grad_hidden(total: Tensor, grad: Tensor, weight: Tensor) -> None:
    """`total [n, D]` float32 += grad weight."""
    _add_product(total, grad, weight)


def grad_hidden_into(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """`out [n, D]` = grad weight."""
    _product_into(out, grad, weight)


def grad_weight_into(out: Tensor, grad: Tensor, x: Tensor, add: bool) -> None:
    """`out [w, D]` = (or +=) grad^T x."""
    (_add_product if add else _product_into)(out, grad.t(), x)


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif out.dtype == torch.float32 and widens(a):
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    elif total.dtype == torch.float32 and widens(a):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.add_(torch.mm(a, b))
