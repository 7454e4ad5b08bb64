"""Log-probs of a transformers model without its logits.

`log_probs` scores tokens with any `AutoModelForCausalLM`, `candidate_log_probs` thousands of
candidates behind one prompt. `use_logpi` makes a model's own loss do
without logits for the length of a `with` block: a plain `transformers.Trainer` then trains through
logpi. Both stand where the model calls its head: they take the hidden states it was given, and
leave it none, so that no model's forward is copied here.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logpi.core.backends import AUTO
from logpi.core.support import Support
from logpi.integrations._candidates import CandidateLogProbs, candidate_log_probs
from logpi.integrations._model_head import (
    Head,
    HeadInput,
    causal_lm,
    facts,
    head_module,
    head_of,
    run_to_head,
)
from logpi.ops.linear_log_probs import linear_log_probs
from logpi.ops.token_log_probs import TokenLogProbs, token_log_probs

_IGNORED = -100  # the label of a token that carries no loss
__all__ = [
    "CandidateLogProbs",
    "Head",
    "candidate_log_probs",
    "compute_loss_func",
    "head_of",
    "log_probs",
    "use_logpi",
]


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
    inner = causal_lm(model)
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

    if "inputs_embeds" not in model_kwargs:
        model_kwargs["input_ids"] = input_ids
    if attention_mask is not None:
        model_kwargs["attention_mask"] = attention_mask
    model_kwargs.setdefault("use_cache", False)
    output, hidden_states, autocast_dtype = run_to_head(model, **model_kwargs)
    head = head_of(inner)
    device = head.weight.device  # with a device_map the body may end elsewhere
    out = linear_log_probs(
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
        logits_dtype=logits_dtype or autocast_dtype,
        backend=backend,
    )
    if hasattr(inner, "unshard"):  # FSDP2 waits for a gradient of the model's own output
        nothing = output.logits[..., :0, :].sum().to(device)
        entropy = None if out.entropy is None else out.entropy + nothing
        out = out._replace(log_probs=out.log_probs + nothing, entropy=entropy)
    return out


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
    return _WithoutLogits(causal_lm(model), training_only, options)


def compute_loss_func(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The stock next-token loss, for `Trainer(compute_loss_func=compute_loss_func)`.

    A Trainer calls it after a forward without labels, whose logits are made by then: it saves their
    float32 copies, not themselves. `use_logpi` saves both; where it cannot be entered (a model with
    a loss of its own), this serves.

    Args:
        outputs: with `logits [B, T, V]` of any float dtype. Gradient flows.
        labels: `[B, T]`, shifted here; -100 is left out.
        num_items_in_batch: what the sum is divided by; None: the labels that count.

    Returns:
        0-d float32; NaN where no label counts and nobody said what to divide by, as stock.

    Memory: one gradient like the logits.
    """
    logits, targets = outputs["logits"][:, :-1], labels[:, 1:].to(outputs["logits"].device)
    mask = targets != _IGNORED
    scored = token_log_probs(logits, targets.where(mask, 0), loss_mask=mask)
    return -scored.log_probs.sum() / (
        mask.sum() if num_items_in_batch is None else num_items_in_batch
    )


class _WithoutLogits(AbstractContextManager[None]):
    def __init__(self, model: Any, training_only: bool, options: dict[str, Any]) -> None:
        self._model, self._training_only, self._options = model, training_only, options
        self._input = HeadInput(model)
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
        head = head_module(model)
        self._found = model.__dict__.get("_loss_function")
        self._stock: Any = model.loss_function
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            head.register_forward_pre_hook(self._input.take),
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
        self._input.begin(labels is not None and (module.training or not self._training_only))

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
        if not self._input.asked:
            args = labels, vocab_size, num_items_in_batch, ignore_index, shift_labels
            loss: Tensor = self._stock(logits, *args, **kwargs)
            return loss
        hidden_states = self._input.hidden_states(logits)
        head = facts(self._model, self._input.module)
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
        if isinstance(count, Tensor):
            count = count.to(scored.device)
        return -out.log_probs.sum() / count


def _last(name: str, tensor: Tensor, length: int, count: int) -> Tensor:
    """The last `count` columns of what is aligned with the input at its end."""
    if tensor.dim() != 2 or tensor.shape[1] not in (length, count):
        raise ValueError(
            f"{name}: expected shape (B, {length}) or (B, {count}), got {tuple(tensor.shape)}"
        )
    return tensor[:, -count:]
