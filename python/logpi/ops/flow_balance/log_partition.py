"""log Z of a prompt: a small head on the mean of its hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logpi.core import checks


class LogPartition(nn.Module):
    """log Z(prompt), which `flow_balance_loss` learns beside the policy.

        pooled = mean of hidden_states over the prompt's tokens, all of them
        log_z  = Linear(D, 1) after num_layers - 1 times [Linear(D, D), GELU, LayerNorm, Dropout]

    Args:
        hidden_size: D.
        num_layers: linear layers, the last one included.
        dropout: a probability; active in training mode only.

    The mean is over every prompt token. (The authors' code leaves out the last one: its slice ends
    a column early. Pass a mask without that token to have its numbers.) Gradient flows into
    `hidden_states`, as in their code; pass `hidden_states.detach()` to keep it from the model.
    """

    def __init__(self, hidden_size: int, num_layers: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        checks.at_least("hidden_size", hidden_size, 1)
        checks.at_least("num_layers", num_layers, 1)
        checks.not_negative("dropout", dropout)
        if dropout >= 1:
            raise ValueError(f"dropout: expected a number below 1, got {dropout}")
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(hidden_size, hidden_size), nn.GELU()]
            layers += [nn.LayerNorm(hidden_size), nn.Dropout(dropout)]
        self.hidden_size = hidden_size
        self.net = nn.Sequential(*layers, nn.Linear(hidden_size, 1))

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            hidden_states: `[B, T, D]` of the prompts, after the model's final norm.
            mask: `[B, T]` bool (or numbers: 0 is False), True at the prompt's tokens. What lies
                elsewhere is never used, NaN included; a prompt without a token has the mean 0.

        Returns:
            `[B]` float32 (float64 for a float64 head). The mean adds up in float32, or wider.
        """
        checks.dtype("hidden_states", hidden_states, *checks.FLOATS)
        if hidden_states.dim() != 3 or hidden_states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"hidden_states: expected shape [B, T, {self.hidden_size}], got "
                f"{tuple(hidden_states.shape)}"
            )
        checks.tensor("mask", mask)
        checks.shape("mask", mask, hidden_states.shape[:2])
        checks.device("mask", mask, hidden_states.device)
        inside = mask.bool()[..., None]
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        total = hidden_states.where(inside, 0.0).sum(1, dtype=wide)  # not times 0: NaN would stay
        pooled = total / inside.sum(1).clamp(min=1)
        log_z: Tensor = self.net(pooled.to(next(self.parameters()).dtype))[:, 0]
        return log_z.to(torch.promote_types(log_z.dtype, torch.float32))
