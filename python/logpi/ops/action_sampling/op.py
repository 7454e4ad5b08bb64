"""Robot actions drawn from a policy's logits: token, log-prob, entropy and action in one pass.

    p = softmax(logits[.., codec.support] / temperature)
    token ~ p: the first at which the sum of p is above a uniform number of (seed, step, row)
    log_probs = log p(token)      actions = codec's centre of the token, in the robot's units

docs/ops/action_sampling.md says why every backend draws the same token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from logpi.core import checks, cuda, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.draws import check_seed_and_step
from logpi.core.plain_logits import refused_by_cpu, refused_by_cuda, refused_by_triton
from logpi.ops.action_sampling.codec import ActionCodec

_HERE = "logpi.ops.action_sampling."


class ActionSample(NamedTuple):
    """What `sample_action_tokens` returns, `[..]` each: token ids in int64, the rest in float32;
    `entropy` is None unless asked for."""

    token_ids: Tensor
    log_probs: Tensor
    entropy: Tensor | None
    actions: Tensor


class Call(NamedTuple):
    """A checked call, as every row takes it: N rows in row-major order of the leading dims."""

    logits: Tensor  # [.., V], any strides: bin 0 is in first_column
    table: Tensor  # [action_dim or 1, num_bins] float32: row n is of dimension n % len(table)
    temperatures: Tensor | None  # [N] float32 (float64 with such logits); None: the scalar
    step_at: Tensor | None  # [] int64; None: the int
    row_ids: Tensor | None  # [N] int64; None: 0, 1, ..
    num_rows: int
    num_bins: int
    first_column: int
    first_id: int  # token id of bin 0
    temperature: float
    seed: int
    step: int
    greedy: bool
    entropy: bool

    def sliced(self) -> Tensor:
        """`[.., num_bins]`: a view, which costs a call of torch that the kernels of `_C` save."""
        return self.logits.narrow(-1, self.first_column, self.num_bins)


def grid(num_bins: int) -> float:
    """x + grid - grid rounds x in [0, 1] so that num_bins of them add up exactly in float64."""
    return 1.5 * 2.0 ** (num_bins - 1).bit_length()


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("cuda", _HERE + "_cuda", why_not=refused_by_cuda, unavailable=cuda.unavailable),
    Backend(
        "triton", _HERE + "_triton", why_not=refused_by_triton, unavailable=triton_row.unavailable
    ),
    Backend("cpu", _HERE + "_native", why_not=refused_by_cpu),
    Backend("torch", _HERE + "reference"),
)


def sample_action_tokens(
    logits: Tensor,  # [.., V], or hidden states [.., D] with the head's weight
    weight: Tensor | None = None,  # [V, D]
    *,
    codec: ActionCodec,
    temperature: float | Tensor = 1.0,
    seed: int,
    step: int | Tensor,
    row_ids: Tensor | None = None,  # [..]
    greedy: bool = False,
    bias: Tensor | None = None,  # [V]
    return_entropy: bool = False,
    backend: str = AUTO,
) -> ActionSample:
    """An action token for every row, its log-prob, and the action that it stands for.

    Args:
        logits: `[.., V]` float32, bfloat16, float16 or float64, any strides: V at least the
            codec's vocab_size (padding is not looked at), or its num_bins alone, the slice. With
            `weight`, hidden states `[.., D]`. No gradient flows. -inf is legal.
        weight: `[V, D]` of the head, or the slice's rows alone: no others are multiplied. The
            product is torch's, in the dtype of both (or autocast's), as in `linear_log_probs`.
        codec: the tokens, and what they stand for. With statistics the rows go through the action
            dimensions in turn: the last leading dim must be a multiple of `codec.action_dim`, as
            `[B, action_dim]` and `[B, chunk * action_dim]` are.
        temperature: divides the logits; above 0. A float, or a float tensor `[..]`, one a row.
        seed: the run's, at least 0.
        step: the rollout step's, at least 0: another step, another draw. An int, or a 0-d int64
            tensor on the device, so that a CUDA graph draws anew at every replay.
        row_ids: `[..]` int64: whose draw each row takes. A row's draw is a function of (seed, step,
            row id) alone, so that environment 17 acts alike in whatever batch it is replayed.
            None: rows count from 0.
        greedy: the most probable token (the lowest id among equals) instead of a draw.
        bias: `[V]`, or the slice's, of a head that has one.
        return_entropy: of each row's distribution, in nats.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `ActionSample(token_ids, log_probs, entropy, actions)`. Log-probs and entropies are of the
        distribution drawn from: over the action tokens alone and at the temperature, greedy or
        not, as `token_log_probs(logits, token_ids, support=codec.support, temperature=..)` has them
        when a trainer asks again. float32; of float64 logits float64, but actions are float32.
        The same logits give the same tokens on every row of the table and in any batch.

    Raises:
        ValueError: a shape or value; names the argument, what was expected, what came. On a CPU
            also a row without a distribution: NaN, +inf, nothing but -inf, a bad temperature in a
            tensor. On a GPU looking would stop the stream: there such a row has log-prob, entropy
            and action NaN, and the token in the middle, which moves nothing.
        TypeError: a dtype.  BackendError: no row can serve; lists every row's reason.

    Memory: 16 bytes a row, 20 with entropy; from hidden states also the logits of the slice.
    Source: docs/ops/action_sampling.md.
    """
    call = check_call(
        logits, weight, codec, temperature, seed, step, row_ids, greedy, bias, return_entropy
    )
    row = select("sample_action_tokens", BACKENDS, backend, call)
    if row.name == "torch":
        from logpi.ops.action_sampling import reference  # torch.compile can trace this import

        return reference.sample(call)
    if torch.compiler.is_compiling():
        from logpi.ops.action_sampling import _library

        return _library.sample(row.name, call)
    out: ActionSample = row.kernels.sample(call)
    return out


def check_call(
    logits: Tensor,
    weight: Tensor | None,
    codec: ActionCodec,
    temperature: float | Tensor,
    seed: int,
    step: int | Tensor,
    row_ids: Tensor | None,
    greedy: bool,
    bias: Tensor | None,
    return_entropy: bool,
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    if not isinstance(codec, ActionCodec):
        raise TypeError(f"codec: expected an ActionCodec, got {type(codec).__name__}")
    name = "logits" if weight is None else "hidden_states"
    checks.dtype(name, logits, *checks.FLOATS)
    shape = logits.shape
    if not shape:
        raise ValueError(f"{name}: expected at least one dimension, got a 0-d tensor")
    if weight is not None:
        logits, first_column = _product(logits.detach(), weight, bias, codec), 0
    elif bias is not None:
        raise ValueError("bias: expected None without a weight, got a tensor")
    else:
        first_column = _first("logits", shape, -1, codec)
    lead, device = shape[:-1], logits.device
    table = codec.table(device)
    num_dims, num_bins = table.shape
    if num_dims > 1 and (not lead or lead[-1] % num_dims):
        raise ValueError(
            f"{name}: expected a last leading dim of {num_dims} (the codec's action_dim) or a "
            f"multiple of it, got leading dims {tuple(lead)}"
        )
    temperatures = None
    if isinstance(temperature, Tensor):
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        checks.dtype("temperature", temperature, *checks.FLOATS)
        temperatures = _per_row("temperature", temperature, lead, device).to(wide)
        temperature = 1.0
    else:
        checks.positive("temperature", temperature)
    seed, step, step_at = check_seed_and_step(seed, step, device)
    if row_ids is not None:
        checks.dtype("row_ids", row_ids, torch.int64)
        row_ids = _per_row("row_ids", row_ids, lead, device)
    return Call(
        logits.detach() if logits.requires_grad else logits,
        table,
        temperatures,
        step_at,
        row_ids,
        lead.numel(),
        num_bins,
        first_column,
        codec.vocab_size - num_bins,
        float(temperature),
        seed,
        step,
        bool(greedy),
        bool(return_entropy),
    )


def _first(name: str, shape: torch.Size, dim: int, codec: ActionCodec) -> int:
    """Where the action tokens begin in a dim of V entries, or of as many as there are bins."""
    size, bins = shape[dim], codec.num_bins
    if size == bins:
        return 0
    if size < codec.vocab_size:
        raise ValueError(
            f"{name}: expected at least {codec.vocab_size} vocabulary entries (the codec's "
            f"vocab_size) or {bins} (its num_bins), got shape {tuple(shape)}"
        )
    return codec.vocab_size - bins


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, codec: ActionCodec) -> Tensor:
    """`[.., num_bins]`: hidden states times the rows of the slice."""
    checks.dtype("weight", weight, *checks.FLOATS)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight: expected [V, {x.shape[-1]}] for hidden_states {tuple(x.shape)}, got shape "
            f"{tuple(weight.shape)}"
        )
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None:
            checks.device(name, given, x.device)
            mixes = torch.is_autocast_enabled(x.device.type)
            if given.dtype != x.dtype and not mixes:
                raise TypeError(
                    f"{name}: expected {x.dtype}, the dtype of hidden_states, got {given.dtype}"
                )
    rows = _first("weight", weight.shape, 0, codec), codec.num_bins
    if bias is not None:
        checks.shape("bias", bias, weight.shape[:1])
        bias = bias.detach().narrow(0, *rows)
    return linear(x, weight.detach().narrow(0, *rows), bias)


def _per_row(name: str, value: Tensor, lead: torch.Size, device: torch.device) -> Tensor:
    checks.shape(name, value, lead)
    checks.device(name, value, device)
    return value.detach().reshape(-1).contiguous()
