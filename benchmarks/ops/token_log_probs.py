"""token_log_probs beside everyone who computes the same numbers from the same logits.

Forward is log p and entropy without a graph. Training is forward and backward with random upstream
gradients of both, into a fresh gradient for everybody, or into a warm one for everybody. On a GPU
the forward of a few rows is also captured in a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import REPLAY, TOTAL, Group, Provider
from benchmarks.ops import _peers as peers
from benchmarks.ops._graphs import captured
from benchmarks.ops._logits import LogitsCase as Case
from benchmarks.shapes import QUICK, SHAPES
from benchmarks.targets import Target
from logpi import token_log_probs
from logpi.ops.token_log_probs.op import BACKENDS, Call, check_call

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

BOTH, ONE = "log p, H", "log p"
CALLS = 200  # per batch, where the call itself is timed
REPLAYED = 32  # batches in one graph, each with logits of its own: more than a cache holds
FEW_ROWS = 264  # two for each multiprocessor of an H100: a row a block leaves some of them idle


class Form(NamedTuple):
    """One way from (logits, ids) to (log p, H or None), differentiable."""

    name: str
    function: Callable[..., Any]
    computes: str = BOTH
    role: str = "peer"
    compiles: bool = False


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape and dtype."""
    forms = _forms(case.logits.device.type)
    if case.logits.numel() < 4096:
        return [Group("call", "", [_calls(case, form) for form in forms])]
    read, copy, fresh_copy = case.plain_read(), case.plain_copy(), case.plain_copy(fresh=True)
    # TRL's two functions are one and the same code under a graph: one of them is enough there
    trained = [form for form in forms if form.function is not peers.trl_separate]
    out = [
        Group("forward", "", [read, *(_forward(case, form) for form in forms), copy]),
        Group("training", "fresh", [fresh_copy, *(_training(case, f) for f in trained), read]),
        Group("training", "warm", [copy, *_warm(case), read]),
    ]
    if case.logits.is_cuda and len(case.logits) <= FEW_ROWS:
        captured = [form for form in forms if form.role == "ours" or form.function in CAPTURED]
        out.append(Group("replayed", "", [_replayed(case, form) for form in captured]))
    return out


def _forms(kind: str) -> list[Form]:
    compiled = {
        "torch.compile, log_softmax form": peers.log_softmax_form,
        "torch.compile, shifted-exp form": peers.shifted_form,  # inductor's fastest on a CPU
    }
    on_gpu = [
        Form("TRL kernel selective_log_softmax_and_entropy", peers.trl_kernel),
        Form("QuACK cross_entropy", peers.quack, ONE),
        Form("flash-attn cross_entropy_loss", peers.flash_attn, ONE),
    ]
    on_cpu = [Form("TRL selective_log_softmax_and_entropy", peers.trl_both)]
    return [
        *(Form(f"logpi {row.name}", _ours(row.name), role="ours") for row in BACKENDS),
        *(Form(n, torch.compile(f, dynamic=False), compiles=True) for n, f in compiled.items()),
        Form("torch log_softmax + gather + entropy", peers.log_softmax_form),
        Form("torch gather - logsumexp", peers.logsumexp_form, ONE),
        Form("F.cross_entropy", peers.cross_entropy, ONE),
        *(on_gpu if kind == "cuda" else on_cpu),
        Form("TRL selective_log_softmax + entropy_from_logits", peers.trl_separate),
        Form("Liger cross_entropy", peers.liger, ONE),
    ]


def _ours(row: str, **options: Any) -> Callable[..., Any]:
    return lambda x, ids: token_log_probs(x, ids, return_entropy=True, backend=row, **options)[:2]


def _forward(case: Case, form: Form) -> Provider:
    over = _overwritten(case, form)
    logits = case.logits if over is None else over

    def forward(_: None) -> Any:
        with torch.no_grad():
            return form.function(logits, case.token_ids)

    name, _, computes, role, compiles = form
    prepare = None if over is None else lambda: over.copy_(case.logits)
    return Provider(name, {"forward": forward}, role, computes, prepare, compiles=compiles)


def _overwritten(case: Case, form: Form) -> Tensor | None:
    """What to give to a form that writes the gradient over its input."""
    return case.scratch if form.function is peers.liger else None


def _replayed(case: Case, form: Form) -> Provider:
    """The forward of many batches, captured in one CUDA graph: no launch waits for the host."""
    graph: list[Callable[[], None]] = []

    def forward() -> None:
        with torch.no_grad():
            for logits in case.batches(REPLAYED):
                form.function(logits, case.token_ids)

    def replay(_: None) -> None:
        if not graph:
            graph.append(captured(forward, case.logits.device))
        graph[0]()

    name, _, computes, role, _ = form
    return Provider(name, {REPLAY: replay}, role, computes, calls=REPLAYED, compiles=True)


def _training(case: Case, form: Form, over: Tensor | None = None) -> Provider:
    """Forward and backward through autograd; `over`: on this copy, which is written over."""
    over = _overwritten(case, form) if over is None else over

    def forward(_: None) -> Any:
        leaf = (case.logits if over is None else over).detach().requires_grad_()
        return leaf, form.function(leaf, case.token_ids)

    def backward(saved: Any) -> Tensor:
        leaf, outputs = saved
        pairs = zip(outputs, (case.grad_log_probs, case.grad_entropy), strict=True)
        some = [(o, grad.view(o.shape).to(o.dtype)) for o, grad in pairs if o is not None]
        return torch.autograd.grad([o for o, _ in some], leaf, [grad for _, grad in some])[0]

    name, _, computes, role, compiles = form
    prepare = None if over is None else lambda: over.copy_(case.logits)
    stages = {"forward": forward, "backward": backward}
    return Provider(name, stages, role, computes, prepare, compiles=compiles)


def _warm(case: Case) -> list[Provider]:
    """Those who can write the gradient into a buffer they are given, or over the logits."""
    logits, ids, out = case.logits, case.token_ids, case.scratch
    grads = case.grad_log_probs, case.grad_entropy
    forward, backward = (
        torch.compile(f, dynamic=False) for f in (peers.closed_forward, peers.closed_backward)
    )
    closed = {
        "forward": lambda _: forward(logits, ids),
        "backward": lambda saved: (backward(logits, ids, *saved[1:], *grads, out), out)[1],
    }
    in_place = [
        Form(f"logpi {row.name}, in place", _ours(row.name, inplace_backward=True), role="ours")
        for row in BACKENDS
    ]
    return [
        *(_launched(case, row) for row in BACKENDS),
        *(_fused(case, row) for row in BACKENDS if row.name == "cuda"),
        *(_training(case, form, over=out) for form in in_place),
        Provider("torch.compile, closed form", closed, computes=BOTH, compiles=True),
    ]


def _launched(case: Case, row: Any) -> Provider:
    """A row's launchers, past autograd: the only way to hand them a gradient buffer."""
    call = _call(case)
    refusal = row.refusal(call)
    if refusal is None and row.name == "torch":
        refusal = "torch differentiates this row: there is no backward to give a buffer to"

    def backward(saved: Any) -> Tensor:
        out, stats = saved
        grads = case.grad_log_probs.view_as(out.log_probs), case.grad_entropy
        return row.kernels.backward(call, out.log_probs, stats, *grads, out=case.scratch)

    stages = {"forward": lambda _: row.kernels.forward(call, keep_stats=True), "backward": backward}
    return Provider(f"logpi {row.name}", stages, "ours", BOTH, refusal=refusal)


def _fused(case: Case, row: Any) -> Provider:
    """Forward and backward in one kernel, which takes upstream gradients known beforehand."""
    call = _call(case)

    def both_ways(_: None) -> Tensor:
        grads = case.grad_log_probs, case.grad_entropy
        return row.kernels.fused(call, *grads, out=case.scratch)[1]

    stages = {TOTAL: both_ways}
    return Provider(f"logpi {row.name}, fused", stages, "ours", BOTH, refusal=row.refusal(call))


def _call(case: Case) -> Call:
    wants = (True, False, False, False, False)  # the entropy alone
    return check_call(case.logits, case.token_ids, 1.0, None, None, None, None, 1.0, wants, False)


def _calls(case: Case, form: Form) -> Provider:
    """The call itself: many in a row, on logits so small that nothing else takes time."""
    leaf = case.logits.detach().requires_grad_()

    def without(_: None) -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                form.function(case.logits, case.token_ids)

    def with_graph(_: None) -> None:
        for _ in range(CALLS):
            form.function(leaf, case.token_ids)

    name, _, computes, role, compiles = form
    stages = {"call, no grad": without, "call, with grad": with_graph}
    return Provider(name, stages, role, computes, calls=CALLS, compiles=compiles)


# What can be captured in a graph: the rest reads results back on the host.
CAPTURED = (peers.log_softmax_form, peers.trl_kernel)
_FORWARD, _BACKWARD, _BOTH_WAYS = ("forward", ""), ("backward", "warm"), (TOTAL, "fresh")
_BIG, _SMALLER = "[2048, 151936]", ("[64, 32064]", "[512, 32064]", "[512, 151936]")
_ON_CPU = (
    Target("of a plain read", _BIG, _FORWARD, "of_read", 0.90, dtype="float32"),
    Target("of a plain read", _BIG, _FORWARD, "of_read", 0.70, dtype="bfloat16"),
    Target("times TRL", _BIG, _FORWARD, "ratio", 30.0, against="TRL"),
    Target("times torch.compile", _BIG, _FORWARD, "ratio", 2.5, against="torch.compile"),
    *(Target("times the best peer", s, _FORWARD, "ratio", 1.0, against="") for s in _SMALLER),
    *(Target("times the best peer", s, _BOTH_WAYS, "ratio", 1.0, against="") for s in _SMALLER),
    Target("of a copy", _BIG, _BACKWARD, "of_copy", 0.60),
    Target("times torch.compile", _BIG, _BOTH_WAYS, "ratio", 2.0, against="torch.compile"),
    Target("times torch.compile", _BIG, (TOTAL, "warm"), "ratio", 2.0, against="torch.compile"),
    Target("memory / logits, in place", _BIG, (TOTAL, "warm"), "memory", 1.02, ours="in place"),
    Target("µs a call", "[1, 32]", ("call, no grad", ""), "us", 12.0),
    Target("µs a call", "[1, 32]", ("call, with grad", ""), "us", 25.0),
)
_8K, _PEERS = "[8192, 151936]", ("TRL", "Liger", "QuACK", "torch.compile")
_ON_GPU = (
    Target("of a device copy", _8K, _FORWARD, "of_copy", 0.92, dtype="bfloat16"),
    Target("of a device copy", _8K, _BACKWARD, "of_copy", 0.93, dtype="bfloat16"),
    *(Target(f"times {peer}", _8K, _FORWARD, "ratio", 1.0, against=peer) for peer in _PEERS),
    *(Target(f"times {peer}", _8K, _BOTH_WAYS, "ratio", 1.0, against=peer) for peer in _PEERS),
    Target("memory / logits, in place", _8K, (TOTAL, "warm"), "memory", 1.02, ours="in place"),
    Target("µs in a graph", "[64, 151936]", (REPLAY, ""), "us", 9.0, dtype="bfloat16"),
)
TARGETS = {"cpu": _ON_CPU, "cuda": _ON_GPU}
