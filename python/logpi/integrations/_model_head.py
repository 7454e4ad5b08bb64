"""The head of a transformers model: its facts, and the hidden states that the model gives it."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logpi.core import checks

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
# Models whose logits were once seen to be those of head_of.
_CHECKED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Head(NamedTuple):
    """What a causal language model does to its last hidden states.

    logits = softcap * tanh(logit_scale * (hidden_states @ weight.T + bias) / softcap)
    """

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None
    logit_scale: float


def head_of(model: Any) -> Head:
    """The head of a transformers model, or of one wrapped by PEFT, DDP or torch.compile.

    A weight that FSDP2 or tensor parallelism has sharded is gathered (a collective: every rank
    must call); its gradient is scattered back as the mean over ranks, as theirs is.

    Raises:
        TypeError: a model without a head, or with one that is not a plain `torch.nn.Linear`, such
            as a quantized one or one with an adapter.
    """
    model = causal_lm(model)
    return facts(model, head_module(model))


class HeadInput(threading.local):  # DataParallel runs replicas in threads
    """The hidden states that a model gave its head."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.begin(False)

    def begin(self, asked: bool) -> None:
        """A call of the model begins; take what reaches the head if `asked`."""
        self.asked, self.calls = asked, 0
        self.rows: Tensor | None = None
        self.module: Any = None
        self.autocast_dtype: torch.dtype | None = None

    def take(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The head's pre-hook: it gets no position; at first one, to be checked."""
        if not self.asked:
            return None
        (self.rows,), self.module, self.calls = args, module, self.calls + 1
        device = self.rows.device.type
        if torch.is_autocast_enabled(device) and self.rows.dtype != torch.float64:
            self.autocast_dtype = torch.get_autocast_dtype(device)
        return (self.rows[..., :0, :] if self.model in _CHECKED else self.rows[..., -1:, :],)

    def hidden_states(self, logits: Tensor) -> Tensor:
        """`[.., D]`, once; `logits` are what the model made of the rows it was left with."""
        name = type(self.model).__name__
        if self.rows is None or self.calls != 1:
            raise RuntimeError(
                f"{name}: expected one call of its output embeddings in a forward, found "
                f"{self.calls}; its log-probs cannot be computed without its logits"
            )
        rows, self.rows, self.asked = self.rows, None, False
        if self.model not in _CHECKED:
            head = facts(self.model, self.module)
            _check(name, head, rows[..., -1:, :], logits, self.autocast_dtype)
            _CHECKED.add(self.model)
        return rows


class Run(NamedTuple):
    """A forward of a model without its logits."""

    output: Any  # its logits have no position, or at the first call one
    hidden_states: Tensor  # [B, T, D], as the head was given them
    autocast_dtype: torch.dtype | None  # of the head's product, where autocast was on


def run_to_head(model: Any, **inputs: Any) -> Run:
    """Call the model up to its head: whatever else its forward does, it does."""
    inner = causal_lm(model)
    given = HeadInput(inner)
    given.asked = True
    handle = head_module(inner).register_forward_pre_hook(given.take)
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    return Run(output, given.hidden_states(output.logits), given.autocast_dtype)


@torch.no_grad()
def _check(
    name: str, head: Head, rows: Tensor, logits: Tensor, autocast_dtype: torch.dtype | None
) -> None:
    """That the model made of `rows` what `head` makes: no model is computed wrong in silence."""
    dtype = autocast_dtype or head.weight.dtype
    with torch.autocast(rows.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        expected = F.linear(rows.to(dtype).to(head.weight.device), head.weight.to(dtype), bias)
    expected = expected.float() * head.logit_scale
    if head.softcap is not None:
        expected = head.softcap * torch.tanh(expected / head.softcap)
    same = logits.shape == expected.shape
    if same and expected.numel():
        error = (logits.to(expected.device).float() - expected).abs().max()
        tolerance = max(4 * torch.finfo(dtype).eps, 1e-3)
        same = not bool(error > tolerance * expected.abs().max())  # NaN tells nothing
    if not same:
        raise RuntimeError(
            f"{name}: its logits, {tuple(logits.shape)}, are not those of head_of(model), "
            f"{tuple(expected.shape)} with softcap {head.softcap} and logit_scale "
            f"{head.logit_scale}: it does to them what logpi does not know"
        )


def causal_lm(model: Any) -> Any:
    """The model of transformers inside its wrappers."""
    found = model
    if isinstance(found, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        found = found.module
    found = getattr(found, "_orig_mod", found)  # torch.compile
    if hasattr(found, "get_base_model"):  # PEFT
        found = found.get_base_model()
    if not hasattr(found, "get_output_embeddings"):
        raise TypeError(f"model: expected one of transformers, got {type(model).__name__}")
    if getattr(found.config, "is_encoder_decoder", False):
        raise TypeError(f"model: expected a causal model, got {type(found).__name__}")
    return found


def head_module(model: Any) -> Any:
    """The module of the head; TypeError if it is more than a product with a weight."""
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise TypeError(
            f"model: expected output embeddings that are a torch.nn.Linear, got "
            f"{type(module).__name__} in {type(model).__name__}"
        )
    return module


def facts(model: Any, module: Any) -> Head:
    """`module` is the model's head, or its replica on another device."""
    config = model.config
    if hasattr(config, "get_text_config"):  # transformers 4.40, OpenVLA-OFT's, has none
        config = config.get_text_config()
    softcap, scale = _first(config, _SOFTCAPS), _first(config, _FACTORS)
    scaling = getattr(config, "logits_scaling", None)  # Granite divides by it, HyperCLOVA X not
    if scale is None and scaling is not None:
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
    bias = None if module.bias is None else _whole(module.bias)
    return Head(_whole(module.weight), bias, softcap, 1.0 if scale is None else float(scale))


def _first(config: Any, names: tuple[str, ...]) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        checks.whole("weight of the head", tensor)
        return tensor
    from torch.distributed.tensor import Partial

    # Each rank has tokens of its own, or (tensor parallelism) all have the same: the mean serves.
    placements = [Partial("avg")] * tensor.device_mesh.ndim  # type: ignore[attr-defined]
    return tensor.full_tensor(grad_placements=placements)  # type: ignore[no-any-return]
