"""use_logpi against TRL's own function on the same tensors, and as a context manager."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from logpi.integrations import trl as integration
from logpi.integrations.trl import LogProbHead, use_logpi
from logpi.testing import assert_all_within_budget, ulp

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(trl|transformers|accelerate)\b.*"),
]

HOOK = "_ChunkedLogProbFunction"
NAMES = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
ALL = NAMES[1:]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`trl.trainer.utils`; whatever a test leaves in the hook's place is undone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl")
    module = importlib.import_module("trl.trainer.utils")
    monkeypatch.setattr(module, HOOK, getattr(module, HOOK))
    return module


@pytest.fixture
def theirs_apply(utils: ModuleType) -> Callable[..., Any]:
    """TRL's own function."""
    if importlib.import_module("trl").__version__.startswith("1.15."):
        pytest.skip("TRL 1.15 scores tokens on GPUs only")
    return getattr(utils, HOOK).apply


# ---- the same numbers as TRL's function ---------------------------------------------------------


def _head_inputs(
    *, dtype: torch.dtype = torch.float32, rows: int = 37, seed: int = 0, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """37 rows: not a whole number of any vector; V = 131 and D = 24: nor is a row."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 24, generator=draw).to(dtype)
    weight = torch.randn(131, 24, generator=draw).to(dtype)
    targets = torch.randint(0, 131, (rows,), generator=draw)
    return hidden, weight, torch.randn(131, generator=draw).to(dtype) if bias else None, targets


def _run(
    apply: Callable[..., tuple[Tensor | None, ...]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: tuple[Any, ...],
    upstream: tuple[str, ...] = ("log_probs", "entropy"),
) -> dict[str, Tensor]:
    """Outputs and, under random upstream gradients, those of hidden, weight and bias, by name."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in (hidden, weight, bias)]
    temperature, *rest = options
    outputs = apply(*leaves, targets, temperature, 64, *rest)
    named = {name: x for name, x in zip(NAMES, outputs, strict=True) if x is not None}
    draw = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(targets.shape, generator=draw) for name in ("log_probs", "entropy")}
    torch.autograd.backward(
        [named[name] for name in upstream], [noise[name].to(named[name]) for name in upstream]
    )
    grads = zip(("hidden", "weight", "bias"), leaves, strict=True)
    return named | {f"grad_{name}": x.grad for name, x in grads if x is not None}


def _definition(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    _chunk_size: int,
    softcap: float | None,
    logit_scale: float,
    _outputs: tuple[str, ...],
) -> tuple[Tensor, ...]:
    """The five outputs by the formulas in TRL's documentation, in whatever dtype comes in."""
    z = torch.nn.functional.linear(hidden, weight, bias) * logit_scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = z.log_softmax(-1)
    return (
        log_p.gather(-1, targets[:, None])[:, 0],
        -(log_p.exp() * log_p).sum(-1),
        (2 * log_p).logsumexp(-1).detach(),
        z.mean(-1).detach(),
        z.argmax(-1) == targets,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "softcap", "logit_scale", "bias"),
    [
        (1.0, None, 1.0, False),
        (0.7, None, 1.0, True),
        (1.0, 5.0, 1.0, False),
        (1.3, 5.0, 0.25, True),  # all at once: their order shows
    ],
)
def test_outputs_and_gradients_are_trls(
    theirs_apply: Callable[..., Any],
    dtype: torch.dtype,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    bias: bool,
    seed: int,
) -> None:
    inputs = _head_inputs(dtype=dtype, seed=seed, bias=bias)
    options = (temperature, softcap, logit_scale, ALL)
    theirs = _run(theirs_apply, *inputs, options)
    ours = _run(LogProbHead().apply, *inputs, options)
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in inputs]
    truth = _run(_definition, *wide, options)
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    top1 = [run.pop("is_top1") for run in (ours, theirs)]
    del truth["is_top1"]
    assert torch.equal(*top1)
    if dtype == torch.bfloat16:  # logits, rounded to bf16, set the scale of every error
        bf16 = 2.0 * ulp(truth["mean_logits"].abs().max().item() + 8.0, dtype)
        for key in NAMES[:4]:
            torch.testing.assert_close(ours[key].double(), truth.pop(key), atol=bf16, rtol=0)
            ours.pop(key), theirs.pop(key)
    assert_all_within_budget(ours, theirs, truth, name="use_logpi")


@pytest.mark.parametrize("upstream", ["log_probs", "entropy"])
def test_each_output_alone_has_trls_gradient(
    theirs_apply: Callable[..., Any], upstream: str
) -> None:
    inputs, options = _head_inputs(), (0.7, 5.0, 0.5, ("entropy",))
    ours = _run(LogProbHead().apply, *inputs, options, (upstream,))
    theirs = _run(theirs_apply, *inputs, options, (upstream,))
    for name in ("grad_hidden", "grad_weight", "grad_bias"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
        assert ours[name].abs().max() > 0.1  # zeros on both sides would agree too


@pytest.mark.parametrize("name", ALL)
def test_an_output_not_asked_for_is_none(theirs_apply: Callable[..., Any], name: str) -> None:
    hidden, weight, bias, targets = _head_inputs()
    outputs = (hidden.requires_grad_(), weight, bias, targets, 1.0, 64, None, 1.0, (name,))
    ours = LogProbHead().apply(*outputs)
    theirs = theirs_apply(*outputs)
    assert [x is None for x in ours] == [x is None for x in theirs]
    needs = [[x is not None and x.requires_grad for x in run] for run in (ours, theirs)]
    assert needs[0] == needs[1]


def test_no_rows_give_no_numbers_and_a_zero_gradient(utils: ModuleType) -> None:
    ours = _run(LogProbHead().apply, *_head_inputs(rows=0), (1.0, None, 1.0, ALL))
    assert ours["log_probs"].shape == (0,)
    assert torch.equal(ours["grad_weight"], torch.zeros(131, 24))


def test_autocast_sets_the_dtype_of_the_product_as_in_trl(theirs_apply: Callable[..., Any]) -> None:
    inputs, options = _head_inputs(), (1.0, None, 1.0, ("entropy",))

    def under_autocast(apply: Callable[..., Any]) -> dict[str, Tensor]:
        def call(*args: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return apply(*args)

        return _run(call, *inputs, options)

    ours = under_autocast(LogProbHead().apply)
    theirs = under_autocast(theirs_apply)
    full = _run(LogProbHead().apply, *inputs, options)
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    for name in ours:
        error, allowed = ((run[name] - full[name]).abs().max() for run in (ours, theirs))
        assert 0 < error <= 2 * allowed, name  # above 0: the product really was rounded


def test_a_float32_head_over_bf16_weights_matches_trl(theirs_apply: Callable[..., Any]) -> None:
    """cast_lm_head_to_fp32: TRL hands over float32 hidden states and the weight as it is."""
    hidden, weight, _, targets = _head_inputs(dtype=torch.bfloat16)
    options = (1.0, None, 1.0, ("entropy",))
    ours = _run(LogProbHead().apply, hidden.float(), weight, None, targets, options)
    theirs = _run(theirs_apply, hidden.float(), weight, None, targets, options)
    assert ours["grad_weight"].dtype == torch.bfloat16
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(ours["log_probs"], theirs["log_probs"], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("theirs_apply")
def test_the_fused_head_of_a_model_ignores_minus_100(utils: ModuleType) -> None:
    """Through add_fused_lm_head: labels of -100 give 0 and reach no gradient, on both sides."""
    labels = torch.tensor([[3, 7, -100, 1, 9, 0], [4, -100, -100, 8, 2, 5]])
    results = []
    for patched in (False, True):
        model = tiny_model()
        utils.add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
        before = getattr(utils, HOOK)
        if patched:
            with use_logpi() as head:
                out = model(labels.clamp(min=0), labels=labels, fused_lm_head=True)
            assert head.calls == 1
        else:
            out = model(labels.clamp(min=0), labels=labels, fused_lm_head=True)
        assert getattr(utils, HOOK) is before
        (out.loss + out.entropy.sum()).backward()
        results.append([out.loss, out.log_probs, out.entropy, model.lm_head.weight.grad])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(results[1][1] == 0, labels[:, 1:] == -100)


def test_deepspeed_zero_3_is_refused_with_the_reason() -> None:
    hidden, weight, bias, targets = _head_inputs()
    weight.ds_id = 0  # the mark that ZeRO-3 leaves on a sharded parameter
    with pytest.raises(TypeError, match=r"weight: .* ZeRO-3"):
        LogProbHead().apply(hidden, weight, bias, targets, 1.0, 64)


# ---- the context manager ------------------------------------------------------------------------


def test_it_undoes_itself(utils: ModuleType) -> None:
    before = getattr(utils, HOOK)
    with use_logpi() as head:
        assert getattr(utils, HOOK) is head
    assert getattr(utils, HOOK) is before


def test_it_undoes_itself_after_an_exception(utils: ModuleType) -> None:
    before = getattr(utils, HOOK)
    with pytest.raises(ZeroDivisionError), use_logpi():
        raise ZeroDivisionError
    assert getattr(utils, HOOK) is before


def test_blocks_nest_and_the_innermost_serves(utils: ModuleType) -> None:
    before = getattr(utils, HOOK)
    with use_logpi() as outer:
        with use_logpi(backend="torch") as inner:
            assert getattr(utils, HOOK) is inner
        assert getattr(utils, HOOK) is outer
    assert getattr(utils, HOOK) is before


def test_entering_one_context_twice_raises_and_it_still_undoes_itself(utils: ModuleType) -> None:
    before, context = getattr(utils, HOOK), use_logpi()
    with context:
        with pytest.raises(RuntimeError, match="already entered"), context:
            pass
        assert getattr(utils, HOOK) is not before
    assert getattr(utils, HOOK) is before
    with context:  # left, it can be entered again
        assert getattr(utils, HOOK) is not before
    assert getattr(utils, HOOK) is before


def test_leaving_in_another_order_raises(utils: ModuleType) -> None:
    outer, inner = use_logpi(), use_logpi()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="reverse order"):
        outer.__exit__(None, None, None)


def test_a_named_backend_reaches_the_op(utils: ModuleType) -> None:
    hidden, weight, bias, targets = _head_inputs()
    with (
        use_logpi(backend="no such row") as head,
        pytest.raises(ValueError, match="got 'no such row'"),
    ):
        head.apply(hidden, weight, bias, targets, 1.0, 64)


# ---- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.14.2", "1.17.0", "1.17.0.dev0", "2.0"])
def test_an_untested_version_raises_one_sentence(
    utils: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    before = getattr(utils, HOOK)
    monkeypatch.setattr("trl.__version__", version)
    with pytest.raises(RuntimeError) as raised, use_logpi():
        pass
    assert str(raised.value) == (
        f"logpi.integrations.trl serves TRL >=1.15,<1.17, found TRL {version}"
    )
    assert getattr(utils, HOOK) is before


@pytest.mark.parametrize("version", ["1.15.0", "1.16.3", "1.16.1.dev0"])
def test_a_tested_version_is_taken(
    utils: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("trl.__version__", version)
    with use_logpi() as head:
        assert getattr(utils, HOOK) is head


def test_a_missing_hook_raises_one_sentence(
    utils: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(utils, HOOK)
    with pytest.raises(RuntimeError, match=f"{HOOK}, and the installed TRL .* has no such"):
        use_logpi().__enter__()
    assert not hasattr(utils, HOOK)


def test_a_hook_with_other_arguments_raises_one_sentence(
    utils: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            return hidden

    monkeypatch.setattr(utils, HOOK, Changed)
    with pytest.raises(RuntimeError, match=r"takes hidden, weight, labels$"):
        use_logpi().__enter__()
    assert getattr(utils, HOOK) is Changed


def test_without_trl_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTRL:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == "trl":
                raise ModuleNotFoundError(f"No module named {name!r}", name="trl")

    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoTRL(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"pip install logpi\[trl\]"):
        use_logpi().__enter__()


def test_a_module_that_trl_misses_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "trl":
                raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.delitem(sys.modules, "trl", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="accelerate"):
        use_logpi().__enter__()


def test_importing_the_integration_does_not_import_trl() -> None:
    assert "trl" not in vars(integration)
