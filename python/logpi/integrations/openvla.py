"""The action head of an OpenVLA or OpenVLA-OFT checkpoint: its rows of weight, and their codec.

Their model classes are not part of transformers: they come with a checkpoint (remote code). What is
read of a model is what all of its copies have: `language_model`, `vocab_size`, `norm_stats`,
`bin_centers` and the config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.integrations._model_head import causal_lm, facts, head_module
from logpi.ops.action_sampling.codec import ActionCodec

_PARTS = ("language_model", "vocab_size", "bin_centers")


class ActionHead(NamedTuple):
    """What `action_log_probs` needs of a policy beside its hidden states."""

    weight: Tensor  # [V, D], the model's own: gradient reaches it
    bias: Tensor | None  # [V]
    codec: ActionCodec


def load_action_head(
    model: Any,
    *,
    unnorm_key: str | None = None,
    normalization: str = "quantile",
    epsilon: float = 1e-8,
    statistics: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> ActionHead:
    """The head and the codec of an `OpenVLAForActionPrediction`, or of one that PEFT or DDP wraps.

        weight, bias, codec = load_action_head(model, unnorm_key="libero_spatial_no_noops")
        out = action_log_probs(actions_hidden_states, weight, token_ids, codec=codec, bias=bias)

    `actions_hidden_states` `[B, chunk_size * action_dim, D]` is the second thing that OpenVLA-OFT's
    `predict_action` returns.

    Args:
        model: on any device. Its head has `vocab_size` rows and `config.pad_to_multiple_of` more,
            32000 and 64; the action tokens are the last `config.n_action_bins` of the former.
        unnorm_key: whose statistics, such as "libero_spatial_no_noops"; None: the only ones.
        normalization: "quantile" (q01 and q99: OpenVLA; OpenVLA-OFT on LIBERO and Bridge) or
            "minmax" (OpenVLA-OFT on ALOHA and RoboTwin). The checkpoint does not say; OpenVLA-OFT
            guesses it from the command line.
        epsilon: added to high - low. OpenVLA itself adds 0.
        statistics: in place of `model.norm_stats`: a `dataset_statistics.json`, the folder that
            holds it, or its contents.

    Returns:
        `ActionHead(weight, bias, codec)`. The weight is whole: `action_log_probs` reads the codec's
        rows of it. Under FSDP2 it is gathered (a collective), as by `head_of`.

    Raises:
        TypeError: a model of another kind; a head that is more than a product.
        ValueError: rows, bins or statistics that do not fit; names what is missing and what is
            there.
    """
    model = causal_lm(model)
    name = type(model).__name__
    missing = [part for part in _PARTS if not hasattr(model, part)]
    if missing:
        raise TypeError(
            f"model: expected an OpenVLAForActionPrediction with {', '.join(_PARTS)}, got a {name} "
            f"without {', '.join(missing)}"
        )
    head = facts(model.language_model, head_module(model))
    if head.softcap is not None or head.logit_scale != 1:
        raise TypeError(
            f"model: expected a head that is a product, got one in {name} with softcap "
            f"{head.softcap} and logit_scale {head.logit_scale}"
        )
    padding = model.config.pad_to_multiple_of
    shape, rows = tuple(head.weight.shape), model.vocab_size + padding
    if len(shape) != 2 or shape[0] != rows:
        raise ValueError(
            f"model: expected a head of {rows} rows, vocab_size {model.vocab_size} and "
            f"pad_to_multiple_of {padding}, got a weight of shape {shape}"
        )
    if statistics is None:
        statistics = getattr(model, "norm_stats", None)
        if not statistics:
            raise ValueError(
                f"model: expected norm_stats, the statistics of its actions, got {statistics!r}; "
                "pass statistics=, the checkpoint's dataset_statistics.json"
            )
    if isinstance(statistics, Mapping):
        known = ", ".join(repr(key) for key in statistics)
        if unnorm_key not in statistics and (unnorm_key is not None or len(statistics) != 1):
            raise ValueError(f"unnorm_key: expected one of {known}, got {unnorm_key!r}")
    codec = ActionCodec.from_dataset_statistics(
        statistics,
        unnorm_key,
        normalization,
        num_bins=model.config.n_action_bins,
        vocab_size=model.vocab_size,
        epsilon=epsilon,
    )
    _check_bins(name, model.bin_centers, codec)
    return ActionHead(head.weight, head.bias, codec)


def _check_bins(name: str, bin_centers: Any, codec: ActionCodec) -> None:
    """That tokens mean what the model means by them: no robot is moved wrong in silence."""
    expected = torch.as_tensor(bin_centers, dtype=torch.float64)
    ids = torch.arange(codec.vocab_size - 1, codec.support.start, -1)
    found = codec.decode(ids, dtype=torch.float64)
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=0, atol=1e-12):
        ends = [f"{x[0]:.6f} to {x[-1]:.6f}" if len(x) else "none" for x in (expected, found)]
        raise ValueError(
            f"model: expected {len(found)} bin_centers, {ends[1]}, got {len(expected)} in {name}, "
            f"{ends[0]}"
        )
