"""Log-probs of a transformers model without its logits.

`log_probs` scores tokens with any `AutoModelForCausalLM`. `use_logpi` makes a model's own loss do
without logits for the length of a `with` block: a plain `transformers.Trainer` then trains through
logpi. Both stand where the model calls its head: they take the hidden states it was given, and
leave it none, so that no model's forward is copied here.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logpi.core import checks
from logpi.core.backends import AUTO
from logpi.core.support import Support
from logpi.ops.linear_log_probs import linear_log_probs
from logpi.ops.token_log_probs import TokenLogProbs

_IGNORED = -100  # the label of a token that carries no loss
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


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
    model = _causal_lm(model)
    return _facts(model, _head_module(model))


def log_probs(
    model: Any,
    input_ids: Tensor,  # [B, T]
    attention_mask: Tensor | None = None,  # [B, T]
    *,
    labels: Tensor | None = None,  # [B, T] or [B, n]
    logits_to_keep: int | None = None,
    loss_mask: Tensor | None = None,  # [B, T] or [B, n]
    temperature: float | Tensor = 1.0,
    support: Support = None,
    vocab_size: int | None = None,
    return_entropy: bool = False,
    return_collision: bool = False,
    return_lse: bool = False,
    return_top1: bool = False,
    return_mean_logit: bool = False,
    retain_bytes: int = 0,
    workspace_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    backend: str = AUTO,
    **model_kwargs: Any,
) -> TokenLogProbs:
    """What the model gives the next tokens, from one forward and without `[B, T, V]` logits.

        log_probs[b, t] = log p(input_ids[b, t + 1] | input_ids[b, : t + 1])

    With n = T - 1, or `logits_to_keep`, the last n tokens are scored.

    Args:
        model: a causal language model of transformers, or one wrapped by PEFT or DDP. Its softcap
            and logit scale are its own (`head_of`); training or evaluation mode stays as it is.
        input_ids: `[B, T]` int64.
        attention_mask: `[B, T]`, for the model. It masks no output: that is `loss_mask`.
        labels: the tokens to score in place of `input_ids`, aligned with them at the end (so
            `[B, T]`, or `[B, n]`). -100 is left out, as if `loss_mask` were False there.
        logits_to_keep: how many tokens at the end to score, such as the length of the
            completions; 1 to T - 1. None: all that have one before them.
        loss_mask: False at tokens to leave out: outputs and gradients are exactly 0. Aligned with
            `input_ids` at the end.
        temperature: divides the logits. A float, or a tensor `[B, n]`.
        support, vocab_size, return_entropy, return_collision, return_lse, return_top1,
            return_mean_logit, retain_bytes, workspace_bytes, logits_dtype, backend: as in
            `linear_log_probs`. Without a `logits_dtype` the products are those of the model,
            autocast included.
        model_kwargs: handed to the model: `position_ids`, `pixel_values`, ... With
            `inputs_embeds` the model gets these, and `input_ids` only names the tokens.

    Returns:
        `TokenLogProbs` of `[B, n]`. Gradient flows into the model.

    Raises:
        RuntimeError: a model whose logits are not those of its head (checked on one token a
            sequence at the first call with a model, where a GPU is waited for).
        ValueError, TypeError: as in `linear_log_probs` and `head_of`.

    Memory: the model's without its head, and that of `linear_log_probs`.
    """
    inner = _causal_lm(model)
    if "inputs_embeds" not in model_kwargs:
        model_kwargs["input_ids"] = input_ids
    if attention_mask is not None:
        model_kwargs["attention_mask"] = attention_mask
    model_kwargs.setdefault("use_cache", False)
    taken = _Taken(inner)
    taken.asked = True
    handle = _head_module(inner).register_forward_pre_hook(taken.take)
    try:
        output = model(**model_kwargs)
    finally:
        handle.remove()
    hidden_states = taken.hidden_states(output.logits)

    length = input_ids.shape[-1]
    count = length - 1 if logits_to_keep is None else logits_to_keep
    if not 0 < count < length:
        raise ValueError(f"logits_to_keep: expected 1 to {length - 1}, got {count}")
    targets = _last("labels", input_ids if labels is None else labels, length, count)
    mask = None if loss_mask is None else _last("loss_mask", loss_mask, length, count).bool()
    if labels is not None:
        scored = targets != _IGNORED
        mask = scored if mask is None else mask & scored
        targets = targets.where(scored, 0)
    head = head_of(inner)
    device = head.weight.device  # with a device_map the body may end elsewhere
    return linear_log_probs(
        hidden_states[:, -count - 1 : -1].to(device),
        head.weight,
        targets.to(device),
        bias=head.bias,
        temperature=temperature,
        support=support,
        vocab_size=vocab_size,
        loss_mask=None if mask is None else mask.to(device),
        softcap=head.softcap,
        logit_scale=head.logit_scale,
        return_entropy=return_entropy,
        return_collision=return_collision,
        return_lse=return_lse,
        return_top1=return_top1,
        return_mean_logit=return_mean_logit,
        retain_bytes=retain_bytes,
        workspace_bytes=workspace_bytes,
        logits_dtype=logits_dtype or taken.autocast_dtype,
        backend=backend,
    )


def use_logpi(
    model: Any,
    *,
    training_only: bool = False,
    logits_dtype: torch.dtype | None = None,
    retain_bytes: int = 0,
    workspace_bytes: int | None = None,
    backend: str = AUTO,
) -> AbstractContextManager[None]:
    """While it is entered, `model(.., labels=labels)` computes its loss without logits.

        trainer = Trainer(model, args, train_dataset=dataset)
        with use_logpi(model):
            trainer.train()

    The loss is the model's own: next tokens, -100 ignored, divided by `num_items_in_batch` where
    the Trainer gives it, auxiliary losses added. `outputs.logits` has no positions then (one, in
    the first call). Calls without labels, `generate` among them, are what they were; so is a
    Trainer with label smoothing or a `compute_loss_func`, which reads the logits itself.

    The model's `loss_function` is replaced, and two hooks are set: all three are undone on exit,
    also after an exception. Enter it before `torch.compile`.

    Args:
        model: a causal language model of transformers, or one wrapped by PEFT or DDP; in a
            Trainer, what was handed to it.
        training_only: leave calls in evaluation mode as they were: for a `compute_metrics` that
            reads the logits.
        logits_dtype, retain_bytes, workspace_bytes, backend: as in `linear_log_probs`.

    Raises:
        TypeError: on entry, a head that `head_of` does not take.
        RuntimeError: on entry, a model whose loss is not `ForCausalLMLoss` of its logits, or one
            already entered; at the first call, one whose logits are not those of its head.

    Memory: that of `linear_log_probs` in place of three to four times `[B, T, V]`.
    """
    options = {
        "logits_dtype": logits_dtype,
        "retain_bytes": retain_bytes,
        "workspace_bytes": workspace_bytes,
        "backend": backend,
    }
    return _WithoutLogits(_causal_lm(model), training_only, options)


class _WithoutLogits(AbstractContextManager[None]):
    def __init__(self, model: Any, training_only: bool, options: dict[str, Any]) -> None:
        self._model, self._training_only, self._options = model, training_only, options
        self._taken = _Taken(model)
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        from transformers.loss.loss_utils import ForCausalLMLoss

        model, name = self._model, type(self._model).__name__
        forward = inspect.unwrap(type(model).forward)
        if model.loss_function is not ForCausalLMLoss:
            raise RuntimeError(
                f"use_logpi: expected a {name} whose loss_function is ForCausalLMLoss, found "
                f"{model.loss_function!r}"
            )
        if "loss_function" not in forward.__code__.co_names:
            raise RuntimeError(
                f"use_logpi: {name} computes its loss without its loss_function, so its logits "
                "cannot be left out; score tokens with logpi.integrations.transformers.log_probs"
            )
        head = _head_module(model)
        self._found = model.__dict__.get("_loss_function")
        self._stock = model.loss_function
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            head.register_forward_pre_hook(self._taken.take),
        ]
        model.loss_function = self._loss

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        del self._model._loss_function
        if self._found is not None:
            self._model._loss_function = self._found

    def _begin(self, module: nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        self._taken.begin(labels is not None and (module.training or not self._training_only))

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = _IGNORED,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """In the place, and with the arguments, of transformers' ForCausalLMLoss."""
        if not self._taken.asked:
            return self._stock(  # type: ignore[no-any-return]
                logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
            )
        hidden_states = self._taken.hidden_states(logits)
        head = _facts(self._model, self._taken.module)
        if shift_labels is None:  # the last position has nothing to predict
            shift_labels = F.pad(labels[..., 1:], (0, 1), value=ignore_index)
        targets = shift_labels.reshape(-1).to(head.weight.device)
        scored = targets != ignore_index
        out = linear_log_probs(
            hidden_states.flatten(0, -2).to(head.weight.device),
            head.weight,
            targets.where(scored, 0),
            bias=head.bias,
            loss_mask=scored,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
            **self._options,
        )
        count = scored.sum() if num_items_in_batch is None else num_items_in_batch
        return -out.log_probs.sum() / (count.to(scored.device) if isinstance(count, Tensor) else count)


class _Taken(threading.local):  # DataParallel runs replicas in threads
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
            head = _facts(self.model, self.module)
            _check(name, head, rows[..., -1:, :], logits, self.autocast_dtype)
            _CHECKED.add(self.model)
        return rows


_CHECKED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose logits were those of head_of


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
        same = bool(error <= tolerance * expected.abs().max())
    if not same:
        raise RuntimeError(
            f"{name}: its logits are not those of head_of(model) (softcap {head.softcap}, "
            f"logit_scale {head.logit_scale}): it does to them what logpi does not know"
        )


def _causal_lm(model: Any) -> Any:
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


def _head_module(model: Any) -> Any:
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise TypeError(
            f"model: expected output embeddings that are a torch.nn.Linear, got "
            f"{type(module).__name__} in {type(model).__name__}"
        )
    return module


def _facts(model: Any, module: Any) -> Head:
    """`module` is the model's head, or its replica on another device."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in _SOFTCAPS]
    softcap = next((value for value in found if value is not None), None)
    found = [getattr(config, name, None) for name in _FACTORS]
    scale = next((value for value in found if value is not None), None)
    scaling = getattr(config, "logits_scaling", None)  # Granite divides by it, HyperCLOVA X not
    if scale is None and scaling is not None:
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
    bias = None if module.bias is None else _whole(module.bias)
    return Head(_whole(module.weight), bias, softcap, 1.0 if scale is None else float(scale))


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        checks.whole("weight of the head", tensor)
        return tensor
    from torch.distributed.tensor import Partial

    # Each rank has tokens of its own, or (tensor parallelism) all have the same: the mean serves.
    placements = [Partial("avg")] * tensor.device_mesh.ndim  # type: ignore[attr-defined]
    return tensor.full_tensor(grad_placements=placements)  # type: ignore[no-any-return]


def _last(name: str, tensor: Tensor, length: int, count: int) -> Tensor:
    """The last `count` columns of what is aligned with the input at its end."""
    if tensor.dim() != 2 or tensor.shape[1] not in (length, count):
        raise ValueError(
            f"{name}: expected shape (B, {length}) or (B, {count}), got {tuple(tensor.shape)}"
        )
    return tensor[:, -count:]
