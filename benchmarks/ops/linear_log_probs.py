"""linear_log_probs beside its own bare products, and beside everyone who computes the same numbers.

Forward is without a graph; training is forward and backward with random upstream gradients of log p
and H. The bare products are torch's: 1 forward; 4 (the logits twice) or 3 with the backward. Their
logits go into one warm buffer and their gradients into fresh memory, as everyone's do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import TOTAL, Group, Provider
from benchmarks.ops import _linear_peers as peers
from benchmarks.ops._hidden import BOTH, LOSS, MASKED, ONE, SLICED, UNWEIGHTED
from benchmarks.ops._hidden import HiddenCase as Case
from benchmarks.shapes import LINEAR_QUICK as QUICK
from benchmarks.shapes import LINEAR_SHAPES as SHAPES
from benchmarks.shapes import MEMORY
from benchmarks.targets import Target
from logpi import linear_log_probs
from logpi.ops.linear_log_probs import BACKENDS
from logpi.ops.linear_log_probs._plan import WORKSPACE

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

WARM, FRESH = "GEMM", "GEMM, fresh buffer"
FOUR, THREE = "4 GEMMs", "3 GEMMs"
LONG = 3e11  # multiplications of a product that takes a CPU several seconds
SLOW = 5e10  # and of one that takes it about a second: then a peer has one round, no spread


class Form(NamedTuple):
    """One way from (hidden, weight, ids) to (log p, H or None); with a slope, to a loss."""

    name: str
    function: Callable[..., Any]
    computes: str = BOTH
    role: str = "peer"
    beside: str = FOUR  # in training
    compiles: bool = False
    asks: str = ""  # where that is not what it computes


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape and dtype. Where a call takes long, only a few do."""
    kind, forms = case.hidden.device.type, _peers(case.hidden.device.type)
    few = [form for form in forms if form.function in (peers.trl_chunked, peers.full_cross_entropy)]
    products = case.hidden.numel() * len(case.weight)
    if case.shape.name.startswith(MEMORY):
        return [_training(case, [*_ours_backward(case)[:1], *few])]
    if kind == "cpu" and products > LONG:
        if case.hidden.dtype == torch.float32:
            return []  # ten minutes more for what the shorter shapes tell
        forward = [*_ours_forward(case)[:1], *few]
        return [_forward(case, forward), _training(case, [*_ours_backward(case)[:1], *few], FOUR)]
    return [
        _forward(case, [*_ours_forward(case), *(f for f in forms if f.computes != LOSS)]),
        _training(case, [*_ours_backward(case), *forms], FOUR, THREE),
    ]


# ---- ours ----------------------------------------------------------------------------------------


def _row() -> str:
    """The backend row whose every mode is measured; of the others, the first mode alone."""
    return next(row.name for row in BACKENDS if row.unavailable() is None)


def _ours(
    name: str, row: str, how: str = "", asks: str = "", beside: str = "", **options: Any
) -> Form:
    fields = {"return_entropy": True, **options}

    def function(hidden: Tensor, weight: Tensor, ids: Tensor) -> Any:
        return linear_log_probs(hidden, weight, ids, backend=row, **fields)[:2]

    computes = BOTH if fields["return_entropy"] else ONE
    return Form(name + how, function, computes, "ours", beside, asks=asks)


def _others(row: str) -> list[str]:
    # the definition holds all logits, and stands in the table as torch linear + log_softmax
    return [other.name for other in BACKENDS if other.name not in (row, "torch")]


def _ours_forward(case: Case) -> list[Form]:
    row = _row()
    name = f"logpi {row}"
    base = [_ours(name, row, beside=WARM)]
    if not _every_way(case):
        return base
    return [
        *base,
        _ours(name, row, ", no entropy", beside=WARM, return_entropy=False),
        *_wide(case, name, row, WARM),
        _ours(name, row, f", {MASKED}", MASKED, name, loss_mask=case.half),
        _ours(name, row, f", {SLICED}", SLICED, name, support=case.window),
        *(_ours(f"logpi {other}", other, beside=WARM) for other in _others(row)),
    ]


def _ours_backward(case: Case) -> list[Form]:
    row = _row()
    name, logits = f"logpi {row}", len(case.hidden) * case.weight.shape[0] * case.weight.itemsize
    base = f"{name}, recompute"
    basic = [
        _ours(name, row, ", recompute", beside=FOUR),
        _ours(name, row, ", retain", beside=THREE, retain_bytes=logits),
    ]
    if not _every_way(case):
        return basic
    return [
        *basic,
        *_wide(case, name, row, FOUR),
        _ours(name, row, f", {MASKED}", MASKED, base, loss_mask=case.half),
        _ours(name, row, f", {UNWEIGHTED}", UNWEIGHTED, base),
        _ours(name, row, f", {SLICED}", SLICED, base, support=case.window),
        _policy_loss(case),
        *(_ours(f"logpi {other}, recompute", other, beside=FOUR) for other in _others(row)),
    ]


def _every_way(case: Case) -> bool:
    """Where a target asks, on a GPU, and at a caller's own shape; elsewhere minutes are saved."""
    asked = {target.shape for target in _ON_CPU if target.ours}
    return case.hidden.is_cuda or case.shape not in SHAPES["cpu"] or str(case.shape) in asked


def _wide(case: Case, name: str, row: str, beside: str) -> list[Form]:
    if case.hidden.dtype == torch.float32:
        return []
    return [_ours(name, row, ", float32 logits", beside=beside, logits_dtype=torch.float32)]


def _policy_loss(case: Case) -> Form:
    """The second op of this head: gradients in the forward."""

    def function(hidden: Tensor, weight: Tensor, ids: Tensor, slope: Tensor) -> Tensor:
        return peers.policy_loss(hidden, weight, ids, slope, case.log_probs)

    return Form("logpi linear_policy_loss", function, LOSS, "ours", THREE)


# ---- the others ----------------------------------------------------------------------------------


def _peers(kind: str) -> list[Form]:
    on_gpu = [Form("Apple CCE, less small gradients", peers.cce, ONE)]
    return [
        Form("TRL ChunkedLogProbFunction", peers.trl_chunked),
        Form("torch linear + log_softmax", peers.full_logits, beside=THREE),
        Form("torch linear + cross_entropy", peers.full_cross_entropy, ONE, beside=THREE),
        Form("torch linear_cross_entropy", peers.torch_chunked, ONE),
        Form("Liger FusedLinearGRPOLoss", peers.liger_grpo, LOSS),
        Form("Apple CCE torch_compile", peers.cce_compiled, ONE, beside=THREE, compiles=True),
        *(on_gpu if kind == "cuda" else []),
    ]


def _products(case: Case, name: str) -> Provider:
    hidden, weight = case.hidden, case.weight

    def logits(_: Any) -> Tensor:
        return torch.mm(hidden, weight.t(), out=case.buffer)

    def gradients(grad: Tensor) -> tuple[Tensor, Tensor]:
        return torch.mm(grad, weight), torch.mm(grad.t(), hidden)

    stages: dict[str, Callable[[Any], Any]] = {
        WARM: {"forward": logits},
        FRESH: {"forward": lambda _: torch.mm(hidden, weight.t())},
        FOUR: {"forward": logits, "backward": lambda _: gradients(logits(_))},
        THREE: {"forward": logits, "backward": gradients},
    }[name]
    returns = case.nbytes if "backward" in stages else 0
    case.buffer.sum()  # is there from here on, and nobody's peak
    return Provider(name, stages, "reference", returns=returns)


def _acquainted(case: Case, form: Form) -> None:
    """Imports what a form imports: the peak of a slow call, seen once, must hold no modules."""
    asked = case.asked[form.asks or form.computes]
    ids, slope = asked.token_ids[:1] * 0, asked.grad_log_probs[:1]
    given = (case.hidden[:1], case.weight[:2], ids, *([slope] if form.computes == LOSS else []))
    if not form.compiles:
        with contextlib.suppress(Exception):  # who cannot run says so when its turn comes
            form.function(*given)


def _forward(case: Case, forms: list[Form]) -> Group:
    def provider(form: Form) -> Provider:
        _acquainted(case, form)
        asks = form.asks or form.computes
        ids = case.asked[asks].token_ids

        def forward(_: None) -> Any:
            with torch.no_grad():
                return form.function(case.hidden, case.weight, ids)

        beside = form.beside if form.role == "ours" else WARM
        return _provider(case, form, {"forward": forward}, beside, returns=0)

    return Group(
        "forward", "", [*(_products(case, name) for name in (WARM, FRESH)), *map(provider, forms)]
    )


def _training(case: Case, forms: list[Form], *products: str) -> Group:
    def provider(form: Form) -> Provider:
        _acquainted(case, form)
        asked = case.asked[form.asks or form.computes]

        def forward(_: None) -> Any:
            leaves = [t.detach().requires_grad_() for t in (case.hidden, case.weight)]
            if form.computes == LOSS:
                return leaves, (form.function(*leaves, asked.token_ids, asked.grad_log_probs), None)
            return leaves, form.function(*leaves, asked.token_ids)

        def backward(saved: Any) -> Any:
            leaves, (out, entropy) = saved
            if form.computes == LOSS:
                return torch.autograd.grad(out, leaves)
            outputs, upstream = [out], [asked.grad_log_probs.view(out.shape).to(out.dtype)]
            if entropy is not None:
                outputs.append(entropy)
                upstream.append(asked.grad_entropy.view(entropy.shape).to(entropy.dtype))
            return torch.autograd.grad(outputs, leaves, upstream)

        stages = {"forward": forward, "backward": backward}
        return _provider(case, form, stages, form.beside, returns=case.nbytes)  # like the inputs

    return Group(
        "training", "fresh", [*(_products(case, name) for name in products), *map(provider, forms)]
    )


def _provider(
    case: Case, form: Form, stages: dict[str, Any], beside: str, returns: int
) -> Provider:
    slow = not case.hidden.is_cuda and case.hidden.numel() * len(case.weight) > SLOW
    rounds = 1 if slow and form.role == "peer" else None
    return Provider(
        form.name, stages, form.role, form.computes, compiles=form.compiles,
        beside=(beside,), returns=returns, rounds=rounds, asks=form.asks or form.computes,
    )  # fmt: skip


# ---- what a run must reach -----------------------------------------------------------------------

_FORWARD, _BACKWARD, _BOTH_WAYS = ("forward", ""), ("backward", "fresh"), (TOTAL, "fresh")


def _beside(
    label: str,
    shape: str,
    where: tuple[str, str],
    bound: float,
    against: str,
    ours: str = "",
    dtype: str | None = None,
) -> Target:
    return Target(label, shape, where, "beside", bound, dtype, against, ours)


def _memory_promised(rows: int, hidden: int) -> float:
    """MiB: the workspace, 8 bytes an element of the hidden states, 2 of the libraries' own."""
    return (WORKSPACE["cpu"] + 8 * rows * hidden) / 2**20 + 2


_512 = "[512, 2048, 151936]"
_ON_CPU = (
    _beside("of the GEMM's time", _512, _FORWARD, 1.10, "GEMM"),
    _beside("of its 4 GEMMs' time", _512, _BOTH_WAYS, 1.10, FOUR, "recompute"),
    _beside("of its 3 GEMMs' time, retain", _512, _BOTH_WAYS, 1.10, THREE, "retain"),
    _beside("of 3 GEMMs' time, policy loss", _512, _BOTH_WAYS, 1.10, THREE, "linear_policy_loss"),
    _beside("of the unmasked time", _512, _FORWARD, 0.55, "logpi", MASKED),
    _beside("of the unmasked time", _512, _BOTH_WAYS, 0.55, "logpi", MASKED),
    _beside("of the time with gradients", _512, _BACKWARD, 0.60, "logpi", UNWEIGHTED),
    _beside("of the whole head's time", _512, _FORWARD, 1 / 50, "logpi", SLICED),
    *(
        Target(f"{label} of the best peer", str(shape), where, metric, 1.0, against="")
        for shape in SHAPES["cpu"]
        if not shape.name.startswith(MEMORY)
        for where in (_FORWARD, _BOTH_WAYS)
        for label, metric in (("times", "ratio"), ("peak memory", "peak_ratio"))
    ),
    *(
        Target("MiB beyond the gradients", str(s), _BOTH_WAYS, "beyond_mib",
               _memory_promised(s.rows, s.hidden or 0))
        for s in SHAPES["cpu"] if s.name.startswith(MEMORY)
    ),
)  # fmt: skip
_8K = "[8192, 4096, 151936]"
_ON_GPU = (
    _beside("of cuBLAS alone", _8K, _FORWARD, 1.05, "GEMM", dtype="bfloat16"),
    _beside("of its 4 GEMMs' time", _8K, _BOTH_WAYS, 1.07, FOUR, "recompute", dtype="bfloat16"),
    _beside("of its 3 GEMMs' time", _8K, _BOTH_WAYS, 1.07, THREE, "retain", dtype="bfloat16"),
    _beside(
        "of 3 GEMMs' time", _8K, _BOTH_WAYS, 1.07, THREE, "linear_policy_loss", dtype="bfloat16"
    ),
    *(
        Target(f"{label} of the best peer", _8K, where, metric, 1.0, against="", dtype="bfloat16")
        for where in (_FORWARD, _BOTH_WAYS)
        for label, metric in (("times", "ratio"), ("peak memory", "peak_ratio"))
    ),
)
TARGETS = {"cpu": _ON_CPU, "cuda": _ON_GPU}
