"""What our tests are made of, for yours: an error budget, hard logits, memory that shows its age.

    |ours - truth| <= 2 |yardstick - truth| + 4 ulp of the largest |truth|       (max norm)

truth is the definition in float64; the yardstick is the definition at the dtype under test, that is
what a careful user of torch would write. A bound from the machine, not from taste: it fails at a
third bit where atol=1e-4 fails at the tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logpi.core.backends import Backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEEDS = (0, 1, 2, 3, 4)  # one faulty formula alone fails on 5 to 7 seeds of 10, so one is too few


# ---- the budget ---------------------------------------------------------------------------------


def ulp(value: float, dtype: torch.dtype) -> float:
    """The distance from `|value|` to the next larger number of `dtype`."""
    info = torch.finfo(dtype)
    exponent = int(torch.frexp(torch.tensor(max(abs(value), info.tiny), dtype=torch.float64))[1])
    return float(info.eps * 2.0 ** (exponent - 1))


def assert_within_budget(
    ours: Tensor, yardstick: Tensor, truth: Tensor, *, name: str = "result", ulps: int = 4
) -> None:
    """Assert that `ours` is as near to `truth` as twice the yardstick's error and 4 ulp.

        max |ours - truth| <= 2 max |yardstick - truth| + 4 ulp(max(max |truth|, 2^-24))

    Below 2^-24 the digits of an entropy or a gradient are those of probabilities that a float32
    log-prob cannot express (and soon those of float64's own rounding of p near 1).

    Args:
        ours: the tensor under test; its dtype sets the ulp.
        yardstick: the same numbers from plain torch at the same dtype. An element of it that is
            not finite where the truth is finite earns us nothing.
        truth: the same numbers in float64.
        name: begins the message.
        ulps: 4, unless the yardstick ran on better hardware than ours.

    Raises:
        AssertionError: a shape or dtype differs, NaN or an infinity is where the truth has none or
            missing where it has one, or the worst element is over the budget.
    """
    if ours.shape != truth.shape or yardstick.shape != truth.shape:
        shapes = tuple(ours.shape), tuple(yardstick.shape), tuple(truth.shape)
        raise AssertionError(f"{name}: shapes of ours, yardstick and truth differ: {shapes}")
    if truth.dtype != torch.float64 or ours.dtype != yardstick.dtype:
        dtypes = ours.dtype, yardstick.dtype, truth.dtype
        raise AssertionError(f"{name}: ours, yardstick and truth have dtypes {dtypes}")
    if ours.numel() == 0:
        return
    ours64, yardstick64, truth = (t.detach().double() for t in (ours, yardstick, truth))
    for what, is_it in (("NaN", torch.isnan), ("-inf", torch.isneginf), ("+inf", torch.isposinf)):
        differs = is_it(ours64) != is_it(truth)
        if differs.any():
            at = _index(differs.int())
            raise AssertionError(
                f"{name}{at}: {what} in one and not in the other: ours {ours64[at].item():g}, "
                f"truth {truth[at].item():g} ({int(differs.sum())} such elements)"
            )
    finite = truth.isfinite()
    error = (ours64 - truth).abs().where(finite, 0.0)
    earned = (yardstick64 - truth).abs().where(finite & yardstick64.isfinite(), 0.0)
    one_ulp = ulp(max(truth.where(finite, 0.0).abs().max().item(), 2.0**-24), ours.dtype)
    worst, allowed = error.max().item(), 2 * earned.max().item() + ulps * one_ulp
    if worst > allowed:
        at = _index(error)
        raise AssertionError(
            f"{name}{at}: ours {ours64[at].item():.9g}, truth {truth[at].item():.9g}, yardstick "
            f"{yardstick64[at].item():.9g}; error {worst:.3g} is over the budget {allowed:.3g} = "
            f"2 * {earned.max().item():.3g} (yardstick's worst) + {ulps} * {one_ulp:.3g} (ulp, "
            f"{str(ours.dtype).removeprefix('torch.')})"
        )


def assert_all_within_budget(
    ours: Mapping[str, Tensor],
    yardstick: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    *,
    name: str = "",
    ulps: int = 4,
) -> None:
    """`assert_within_budget` for every named tensor; the three must name the same ones."""
    if not ours.keys() == yardstick.keys() == truth.keys():
        raise AssertionError(f"{name}: {[*ours]}, {[*yardstick]} and {[*truth]} should be the same")
    for key in truth:
        label = f"{name} {key}".strip()
        assert_within_budget(ours[key], yardstick[key], truth[key], name=label, ulps=ulps)


def _index(weights: Tensor) -> tuple[int, ...]:
    """Where the largest element is."""
    return tuple(int(i) for i in torch.unravel_index(weights.argmax(), weights.shape))


def outputs_and_gradients(
    op: Callable[..., Any], *args: Any, seed: int = 0, **options: Any
) -> dict[str, Tensor]:
    """Every float an op returns and every gradient it gives, by name.

    Gradients are those of each output that has one, alone and then together, under random
    upstream gradients (ones hide a kernel that ignores them), for every float positional argument.

    Args:
        op: returns a tensor or a NamedTuple of them. None and non-float fields are left out.
        args: positional arguments; the float tensors among them become leaves.
        seed: of the upstream gradients.
        options: handed through.
    """
    is_leaf = [isinstance(arg, Tensor) and arg.is_floating_point() for arg in args]
    leaves = [arg.detach().requires_grad_() for arg, yes in zip(args, is_leaf, strict=True) if yes]
    rest = iter(leaves)
    returned = op(
        *(next(rest) if yes else arg for arg, yes in zip(args, is_leaf, strict=True)), **options
    )
    fields = {"result": returned} if isinstance(returned, Tensor) else returned._asdict()
    outputs = {k: t for k, t in fields.items() if t is not None and t.is_floating_point()}
    results = {name: output.detach() for name, output in outputs.items()}

    generator = torch.Generator().manual_seed(seed)
    heads = {name: output for name, output in outputs.items() if output.requires_grad}
    upstream = {k: torch.randn(t.shape, generator=generator).to(t) for k, t in heads.items()}
    groups = [[name] for name in heads] + ([[*heads]] if len(heads) > 1 else [])
    for names in groups:
        grads = torch.autograd.grad(
            [heads[name] for name in names],
            leaves,
            [upstream[name] for name in names],
            retain_graph=True,
            allow_unused=True,
        )
        for at, grad in enumerate(grads):
            if grad is not None:
                results[f"gradient of {'+'.join(names)} to float argument {at}"] = grad
    return results


def assert_op_within_budget(
    op: Callable[..., Any], *args: Any, backend: str, seed: int = 0, name: str = "", **options: Any
) -> None:
    """Assert that a row of an op, forward and gradients, stays within the budget.

    The yardstick is the op's `torch` row on the same arguments, the truth the same row on the
    float arguments in float64.
    """
    ours = outputs_and_gradients(op, *args, seed=seed, backend=backend, **options)
    yardstick = outputs_and_gradients(op, *args, seed=seed, backend="torch", **options)
    truth = outputs_and_gradients(op, *in_float64(*args), seed=seed, backend="torch", **options)
    assert_all_within_budget(ours, yardstick, truth, name=name)


def in_float64(*args: Any) -> tuple[Any, ...]:
    """The same arguments, the float tensors among them as float64."""
    is_float = [isinstance(arg, Tensor) and arg.is_floating_point() for arg in args]
    return tuple(arg.double() if yes else arg for arg, yes in zip(args, is_float, strict=True))


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers: `torch.equal` on these also tells -0 from 0, NaN from NaN."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])


# ---- hard logits --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A kind of logits that has broken somebody's kernel.

    Attributes:
        name: for test ids.
        draw: `[N, V]` float32 standard normal noise to logits of the same shape.
    """

    name: str
    draw: Callable[[Tensor], Tensor]

    def logits(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Tensor:
        """`[num_rows, num_columns]` of `dtype`, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_rows, num_columns, generator=generator)
        largest = torch.finfo(dtype).max
        drawn = self.draw(noise)
        return drawn.clamp(-largest, largest).where(drawn.isfinite(), drawn).to(dtype)

    def __str__(self) -> str:
        return self.name


def _neg_inf_prefix(noise: Tensor) -> Tensor:
    logits = noise.clone()
    logits[:, : 3 * noise.shape[-1] // 5] = -torch.inf
    return logits


CASES = (
    Case("normal", lambda noise: noise),
    Case("flat", lambda noise: noise / 1000),  # entropy near log V: every element counts the same
    Case("peaked", lambda noise: noise / 0.05),  # a temperature of 0.05: p near 1, entropy near 0
    Case("offset", lambda noise: noise + 1e4),  # exp overflows unless the maximum goes first
    Case("neg_inf_half", lambda noise: noise.masked_fill(noise > _median(noise), -torch.inf)),
    Case("neg_inf_prefix", _neg_inf_prefix),  # the first chunks of a row have no maximum
    Case("heavy_tailed", lambda noise: (noise / noise.roll(1, -1)).clamp(-3e4, 3e4)),
    Case("ascending", lambda noise: (8 * noise).sort(-1).values),  # the maximum always moves
    Case("spike", lambda noise: noise.scatter(-1, _argmax(noise), 500.0)),  # 2^x wraps here
    Case("hundredfold", lambda noise: 100 * noise),  # rounding x * log2(e) costs 3e-5 at 300
)


def _median(noise: Tensor) -> Tensor:
    return noise.median(-1, keepdim=True).values


def _argmax(noise: Tensor) -> Tensor:
    return noise.argmax(-1, keepdim=True)


# ---- memory -------------------------------------------------------------------------------------

_aten = torch.ops.aten
_UNWRITTEN = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.empty_permuted.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}


class _NaNEmpty(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _UNWRITTEN and not out.is_meta:
            if out.is_floating_point() or out.is_complex():
                out.fill_(torch.nan)
            else:
                out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max)
        return out


@contextmanager
def nan_empty() -> Iterator[None]:
    """Within it, `torch.empty` and its kin return NaN (integers: the largest; bools: True).

    An output that a kernel forgot to write then shows as NaN instead of whatever lay there,
    which in a test is most often the right answer of the previous call.
    """
    with _NaNEmpty():  # type: ignore[no-untyped-call]
        yield


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes = sizes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _storage(leaf) not in known:
                self.sizes.append(leaf.untyped_storage().nbytes())
        return out


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Within it, the bytes of every tensor that torch allocates are appended to the yielded list.

    It sees what operators return, not what they allocate and free inside themselves.
    """
    sizes: list[int] = []
    with _Allocations(sizes):
        yield sizes


# ---- rows ---------------------------------------------------------------------------------------


def rows_that_serve(backends: Sequence[Backend], call: Any) -> list[str]:
    """The names of the rows of an op's table that would serve `call`, in the table's order."""
    return [row.name for row in backends if row.refusal(call) is None]
