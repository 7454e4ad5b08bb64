"""The contract of linear_log_probs: numbers, options, what is left out of which product, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from logpi import BackendError, KeepSet, linear_log_probs, token_log_probs
from logpi.ops.linear_log_probs import _plan
from logpi.testing import CASES, DTYPES, Case, assert_op_within_budget, bits, nan_empty

if TYPE_CHECKING:
    from rows import Row

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}
N, V, D = 48, 1003, 24  # rows enough for a yardstick; a last tile that is not whole; V odd


def small(row: Row) -> int:
    """Workspace for tiles of 64 columns in float32, 16 of them; where every row of a tile costs
    milliseconds, of 512, and two."""
    return 34_000 if not row.tiny else 271_000


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randint(below: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def problem(dtype: torch.dtype = torch.float32, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    return randn(n, D, dtype=dtype), randn(V, D, seed=2, dtype=dtype) * 0.5, randint(V - 10, n)


def with_bias(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, **options: Any) -> Any:
    """Bias by position, so that its gradient is asked for too."""
    return linear_log_probs(hidden, weight, ids, bias=bias, **options)


def option_sets(n: int = N) -> dict[str, dict[str, Any]]:
    kept = torch.rand(n, V, generator=torch.Generator().manual_seed(3)) < 0.4
    kept[torch.arange(n), randint(V - 10, n)] = True
    temperatures = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(4))
    mask = torch.arange(n) % 3 != 1
    everything = {
        "temperature": temperatures,
        "vocab_size": V - 5,
        "loss_mask": mask,
        "softcap": 2.0,
        "logit_scale": 1.5,
    }
    return {
        "plain": {},
        "temperature": {"temperature": 0.7},
        "temperatures": {"temperature": temperatures},
        "slice": {"support": slice(0, V - 9)},
        "kept": {"support": KeepSet.from_mask(kept)},
        "vocab_size": {"vocab_size": V - 5},
        "loss_mask": {"loss_mask": mask},
        "softcap": {"softcap": 2.0},
        "logit_scale": {"logit_scale": 1.5},
        "everything": everything,
        "everything on a slice": {**everything, "support": slice(0, V - 7)},
        "everything kept": {**everything, "support": KeepSet.from_mask(kept[:, : V - 5])},
    }


OPTIONS = option_sets()
FEW = 12  # rows, where each costs a tenth of a second
FEW_OPTIONS = option_sets(FEW)


# ---- numbers ------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_in_many_tiles(row: Row, option: str, dtype: torch.dtype) -> None:
    hidden, weight, ids = problem(dtype, FEW if row.tiny else N)
    bias = randn(V, seed=5, dtype=dtype)
    options = ALL | (FEW_OPTIONS if row.tiny else OPTIONS)[option]
    options |= {"backend": row.backend, "workspace_bytes": small(row)}
    with nan_empty():
        assert_op_within_budget(with_bias, hidden, weight, bias, ids, **options)


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hard_logits(row: Row, case: Case, dtype: torch.dtype) -> None:
    # A head that gives the logits of the case: what a row of hidden states picks is a row of them.
    hidden = torch.eye(16, dtype=dtype)
    weight = case.logits(16, V, dtype=dtype).t().contiguous()
    weight = weight.clamp(min=-1e4)  # complaint 1; 0 * inf in the product would be NaN
    options = {"return_entropy": True, "backend": row.backend, "workspace_bytes": small(row)}
    assert_op_within_budget(linear_log_probs, hidden, weight, randint(V, 16), **options)


@by_dtype
@pytest.mark.parametrize("tiles", [1, 7, 64])
def test_the_error_does_not_grow_with_tiles(
    kernel_row: Row, tiles: int, dtype: torch.dtype
) -> None:
    columns = 4096  # peers' complaint 6: gradients summed over chunks in 16 bits
    width = {1: 4096, 7: 640, 64: 64}[tiles]
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: too slow for 4096 columns")
    hidden, weight = randn(32, D, dtype=dtype), randn(columns, D, seed=2, dtype=dtype) * 2
    ids = randint(columns, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plan, "_FORWARD_WIDTH", width)
        patch.setattr(_plan, "_BACKWARD_WIDTH", width)
        for seed in range(3):
            assert_op_within_budget(
                linear_log_probs, hidden, weight, ids, seed=seed, return_entropy=True,
                temperature=0.5, backend=kernel_row.backend,
            )  # fmt: skip


@pytest.mark.parametrize("retain", [0, 5000, 1 << 30], ids=["none", "some", "all"])
@by_dtype
def test_retained_tiles_give_the_same_gradients(
    kernel_row: Row, retain: int, dtype: torch.dtype
) -> None:
    hidden, weight, ids = problem(dtype)
    options = OPTIONS["loss_mask"] | {
        "backend": kernel_row.backend,
        "workspace_bytes": small(kernel_row),
    }
    assert_op_within_budget(
        linear_log_probs, hidden, weight, ids, return_entropy=True, retain_bytes=retain, **options
    )


def test_a_second_backward_makes_retained_tiles_again(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    out = linear_log_probs(*leaves, ids, retain_bytes=1 << 30, backend=kernel_row.backend)
    first = torch.autograd.grad(out.log_probs.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(out.log_probs.sum(), leaves)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("hidden_shape", "ids_shape"),
    [
        ((D,), ()),
        ((D,), (3,)),
        ((5, D), (5,)),
        ((2, 3, D), (2, 3)),
        ((2, 3, D), (2, 3, 4)),
        ((2, 0, D), (2, 0)),  # a rank without tokens
        ((0, D), (0, 2)),
        ((5, D), (5, 0)),  # entropy without a token
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_shapes(
    row: Row, hidden_shape: tuple[int, ...], ids_shape: tuple[int, ...], kept: bool
) -> None:
    hidden, weight = randn(*hidden_shape), randn(61, D, seed=2)
    ids = randint(61, *ids_shape)
    rows = hidden[..., 0].numel()
    support = KeepSet.from_mask(torch.ones(rows, 61, dtype=torch.bool)) if kept else None
    out = linear_log_probs(hidden, weight, ids, support=support, backend=row.backend, **ALL)
    whole = token_log_probs((hidden @ weight.T).double(), ids, backend="torch", **ALL)
    for ours, expected in zip(out, whole, strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-5)


@by_dtype
def test_float32_logits_of_16_bit_operands(row: Row, dtype: torch.dtype) -> None:
    hidden, weight, ids = problem(dtype)
    wide = {"logits_dtype": torch.float32, "return_entropy": True}
    ours = linear_log_probs(hidden, weight, ids, backend=row.backend, **wide)
    operands = hidden.float(), weight.float(), ids
    assert_op_within_budget(
        lambda *args, **kwargs: linear_log_probs(*args, **{**kwargs, "return_entropy": True}),
        *operands, backend=row.backend,
    )  # fmt: skip
    expected = linear_log_probs(*operands, return_entropy=True, backend=row.backend)
    torch.testing.assert_close(ours.log_probs, expected.log_probs, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(
        linear_log_probs(
            hidden.requires_grad_(), weight.requires_grad_(), ids, backend=row.backend, **wide
        ).log_probs.sum(),
        (hidden, weight),
    )
    assert {grad.dtype for grad in grads} == {dtype}


def test_autocast_has_the_last_word(row: Row) -> None:
    hidden, weight, ids = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        out = linear_log_probs(*leaves, ids, backend=row.backend)
        grads = torch.autograd.grad(out.log_probs.sum(), leaves)
    expected = linear_log_probs(hidden.bfloat16(), weight.bfloat16(), ids, backend=row.backend)
    torch.testing.assert_close(out.log_probs, expected.log_probs, rtol=1e-6, atol=1e-6)
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_log_probs_are_never_positive(kernel_row: Row) -> None:  # complaint 4
    hidden = torch.eye(16) * torch.linspace(1, 300, 16)
    out = linear_log_probs(hidden, torch.eye(61, 16), torch.arange(16), backend=kernel_row.backend)
    assert (out.log_probs <= 0).all()
    assert out.log_probs[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(kernel_row: Row, dtype: torch.dtype) -> None:
    # complaint 20; docs/ops/linear_log_probs.md says what torch's GEMM has to do with it
    hidden, weight, ids = problem(dtype, n=300)
    options = ALL | {"backend": kernel_row.backend, "workspace_bytes": 1 << 20}
    whole = linear_log_probs(hidden, weight, ids, **options)
    for count in (1, 7, 12, 299):
        part = linear_log_probs(hidden[:count], weight, ids[:count], **options)
        for name, one, other in zip(whole._fields, whole, part, strict=True):
            assert torch.equal(bits(one[:count]), bits(other)), (name, count)


def test_grad_mode_changes_no_bit(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    plain = linear_log_probs(hidden, weight, ids, backend=kernel_row.backend, **ALL)
    for retain in (0, 1 << 30):
        graded = linear_log_probs(
            hidden.clone().requires_grad_(), weight, ids, retain_bytes=retain,
            backend=kernel_row.backend, **ALL,
        )  # fmt: skip
        for one, other in zip(plain, graded, strict=True):
            assert torch.equal(bits(one), bits(other))


def test_gradcheck_of_the_definition() -> None:
    hidden, weight, bias = randn(4, 5).double(), randn(7, 5).double(), randn(7).double()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    mask = torch.tensor([True, False, True, True])

    def fields(*args: Tensor) -> tuple[Tensor, ...]:
        ids = torch.tensor([0, 1, 5, 2])
        return with_bias(*args, ids, softcap=3.0, loss_mask=mask, return_entropy=True)[:2]

    assert gradcheck(fields, leaves)


# ---- supports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reads_rows", [True, False])
@by_dtype
def test_kept_ids_by_either_way(kernel_row: Row, reads_rows: bool, dtype: torch.dtype) -> None:
    from logpi.ops.linear_log_probs import _kept

    hidden, weight, ids = problem(dtype)
    options = ALL | OPTIONS["everything kept"] | {"backend": kernel_row.backend}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kept, "_reads_rows", lambda *_: reads_rows)
        assert_op_within_budget(linear_log_probs, hidden, weight, ids, **options)


def test_a_token_outside_its_support(row: Row) -> None:
    hidden, weight, _ = problem()
    ids = torch.full((N,), 50)
    kept = KeepSet.from_lists([[1, 2, 3]] * N)
    for support in (slice(0, 50), kept):
        out = linear_log_probs(
            hidden, weight, ids, support=support, return_top1=True, backend=row.backend
        )
        assert (out.log_probs == -torch.inf).all()
        assert not out.top1.any()


def test_the_lowest_id_of_equals_is_the_top(row: Row) -> None:
    weight = torch.zeros(V, D)
    weight[[5, 700]] = 1.0  # in different tiles
    hidden, ids = torch.ones(2, D), torch.tensor([5, 700])
    options = {"return_top1": True, "backend": row.backend, "workspace_bytes": small(row)}
    assert linear_log_probs(hidden, weight, ids, **options).top1.tolist() == [True, False]
    kept = KeepSet.from_lists([[700, 9, 5]] * 2)
    out = linear_log_probs(hidden, weight, ids, support=kept, **options)
    assert out.top1.tolist() == [True, False]


# ---- buffers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_dtype", [torch.float32, None], ids=["main_grad", "own dtype"])
@by_dtype
def test_the_weight_gradient_goes_into_a_buffer(
    kernel_row: Row, buffer_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    hidden, weight, ids = problem(dtype)
    options = {"support": slice(0, V - 9), "backend": kernel_row.backend}
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    out = linear_log_probs(*leaves, ids, **options)
    expected = torch.autograd.grad(out.log_probs.sum(), leaves)
    buffer = torch.full_like(weight, 0.25, dtype=buffer_dtype).detach()
    out = linear_log_probs(*leaves, ids, weight_grad=buffer, **options)
    out.log_probs.sum().backward()
    assert weight.grad is None
    assert torch.equal(bits(hidden.grad), bits(expected[0]))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        buffer.double() - 0.25, expected[1].double(), rtol=4 * eps, atol=4 * eps
    )


def test_operands_may_be_views(row: Row) -> None:
    wide = randn(2, 9, 2 * D)
    hidden, ids = wide[:, :-1, :D], randint(V, 2, 9)[:, 1:]
    weight = randn(2 * V, D, seed=2)[::2]
    assert_op_within_budget(linear_log_probs, hidden, weight, ids, backend=row.backend)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(V, D + 1)}, ValueError, rf"weight: expected shape \(V, {D}\)"),
        ({"weight": torch.zeros(V)}, ValueError, r"weight: expected shape \(V, "),
        ({"weight": torch.zeros(V, D).half()}, TypeError, "weight: expected torch.float32"),
        ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
        ({"hidden_states": torch.zeros(N, D).long()}, TypeError, "hidden_states: expected float32"),
        ({"hidden_states": torch.zeros(())}, ValueError, r"hidden_states: expected \[.., D\]"),
        ({"token_ids": torch.zeros(N + 1).long()}, ValueError, "token_ids: expected shape"),
        ({"token_ids": torch.full((N,), V)}, ValueError, rf"ids in \[0, {V}\), got {V} in row 0"),
        ({"bias": torch.zeros(V - 1)}, ValueError, rf"bias: expected shape \({V},\)"),
        ({"vocab_size": V + 1}, ValueError, f"vocab_size: expected 1 to {V}"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number above 0"),
        ({"support": slice(3, 2)}, ValueError, "support: expected slice"),
        ({"loss_mask": torch.ones(N - 1)}, ValueError, "loss_mask: expected shape"),
        ({"retain_bytes": -1}, ValueError, "retain_bytes: expected at least 0, got -1"),
        ({"retain_bytes": 0.5}, TypeError, "retain_bytes: expected an int, got float"),
        ({"workspace_bytes": 100}, ValueError, "workspace_bytes: expected at least 4229, got 100"),
        ({"logits_dtype": torch.int8}, TypeError, "logits_dtype: expected a float dtype"),
        ({"vocab_start": 5}, ValueError, "vocab_start: expected 0 without a process_group"),
        ({"weight_grad": torch.zeros(V, D + 1)}, ValueError, "weight_grad: expected shape"),
        ({"weight_grad": torch.zeros(V, D).half()}, TypeError, "weight_grad: expected float32"),
        ({"backend": "fast"}, ValueError, "backend: expected one of .* for linear_log_probs"),
        ({"backend": "torch", "weight_grad": torch.zeros(V, D)}, BackendError, "no weight_grad"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type, message: str) -> None:
    hidden, weight, ids = problem()
    arguments: dict[str, Any] = {"hidden_states": hidden, "weight": weight, "token_ids": ids}
    arguments |= {"backend": "cpu"} | change
    with pytest.raises(error, match=message):
        linear_log_probs(**arguments)


def test_a_bad_value_is_found_in_the_callers_row(row: Row) -> None:
    if not row.reads_values and not row.emulated:
        pytest.skip(f"{row}: values are looked at on a CPU only")
    hidden, weight, ids = problem()
    ids[7] = -1
    mask = torch.ones(N, dtype=torch.bool)
    mask[:5] = False
    with pytest.raises(ValueError, match=r"token_ids: .*got -1 in row 7"):
        linear_log_probs(hidden, weight, ids, loss_mask=mask, backend=row.backend)
    mask[7] = False
    linear_log_probs(hidden, weight, ids, loss_mask=mask, backend=row.backend)


def test_a_backward_that_does_not_fit_says_what_it_needs() -> None:
    hidden, weight, ids = problem()
    out = linear_log_probs(
        hidden.requires_grad_(), weight, ids, workspace_bytes=4300, backend="cpu"
    )
    need = -(-64 * N * 4 * 32 // 31)  # a 32nd is not for tiles
    with pytest.raises(ValueError, match=f"at least {need} for the backward of {N} rows, got 4300"):
        out.log_probs.sum().backward()


def test_a_sharded_weight_is_refused_with_what_to_call(tmp_path: Any) -> None:  # complaint 23
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor

    hidden, weight, ids = problem()
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(weight, mesh, [Shard(0)])
        with pytest.raises(TypeError, match=r"DTensor .*weight\.full_tensor\(\).*avg.*vocab_start"):
            linear_log_probs(hidden, sharded, ids)
        whole = linear_log_probs(hidden, sharded.full_tensor(), ids)
    finally:
        distributed.destroy_process_group()
    assert torch.equal(whole.log_probs, linear_log_probs(hidden, weight, ids).log_probs)


def test_a_zero_3_weight_is_refused() -> None:
    hidden, weight, ids = problem()
    weight.ds_id = 0
    with pytest.raises(TypeError, match=r"ZeRO-3 parameter.*GatheredParameters"):
        linear_log_probs(hidden, weight, ids)
