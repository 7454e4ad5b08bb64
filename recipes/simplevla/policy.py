"""A vision-language-action model without the vision: state prefix, backbone, 256 action tokens."""

from __future__ import annotations

from typing import Any

import torch
from simulator import ACTION_DIM
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import logpi

NUM_BINS, VOCAB_SIZE, PADDED_ROWS = 256, 512, 64
# The action space of the environment is [-1, 1] in every dimension.
CODEC = logpi.ActionCodec(
    num_bins=NUM_BINS, vocab_size=VOCAB_SIZE, low=(-1.0,) * ACTION_DIM, high=(1.0,) * ACTION_DIM
)
_TABLE = (1.34, 0.75, 0.42)  # metres; where the gripper starts, at the block's height


class StatePrefix(nn.Module):
    """Tokens of the gripper, the block and the way to the goal in the backbone's space.

    Each is projected by a perceptron of its own, as a VLA projects its image patches.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
            )
            for width in (6, 12, 3)
        )
        self.register_buffer("table", torch.tensor(_TABLE), persistent=False)

    def forward(self, states: Tensor) -> Tensor:  # [N, STATE_DIM] -> [N, 3, D]
        position, block, to_block, _, rotation, velocity, spin, own_velocity, _, goal = (
            states.split([3, 3, 3, 2, 3, 3, 3, 3, 2, 3], -1)
        )
        # Lengths of 10 cm and motions of 2 cm a step become numbers of about one.
        parts = (
            torch.cat([10 * (position - self.table), 50 * own_velocity], -1),
            torch.cat([10 * to_block, rotation, 50 * velocity, spin], -1),
            10 * (goal - block),
        )
        projected = [f(part) for f, part in zip(self.projections, parts, strict=True)]
        return torch.stack(projected, -2)


class Policy(nn.Module):
    """A chunk of actions in one forward, as OpenVLA-OFT decodes it.

    Prefix and placeholders, one for each token of the chunk, go through the backbone once, each
    seeing all the others. The hidden state at a placeholder gives the distribution of its token:
    given the state, the tokens of a chunk are independent.
    """

    def __init__(self, *, hidden_size: int, num_layers: int, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.num_tokens = chunk_size * ACTION_DIM
        self.backbone = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB_SIZE + PADDED_ROWS,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                max_position_embeddings=64,
                pad_token_id=VOCAB_SIZE,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.backbone.model.embed_tokens = None  # no token is ever read, only written
        self.prefix = StatePrefix(hidden_size)
        self.placeholders = nn.Parameter(torch.randn(self.num_tokens, hidden_size))

    @property
    def head(self) -> Tensor:  # [VOCAB_SIZE + PADDED_ROWS, D]
        weight: Tensor = self.backbone.lm_head.weight
        return weight

    def hidden_states(self, states: Tensor) -> Tensor:  # [N, STATE_DIM] -> [N, num_tokens, D]
        placeholders = self.placeholders.expand(len(states), -1, -1)
        embeds = torch.cat([self.prefix(states), placeholders], 1)
        # A mask of four dimensions is taken as it is: none is hidden, the attention is not causal.
        everything = embeds.new_zeros(1, 1, embeds.shape[1], embeds.shape[1])
        hidden: Tensor = self.backbone.model(
            inputs_embeds=embeds,
            attention_mask=everything.expand(len(states), -1, -1, -1),
            use_cache=False,
        )[0]
        return hidden[:, -self.num_tokens :]

    def log_probs(
        self, states: Tensor, token_ids: Tensor, *, temperature: float, loss_mask: Tensor
    ) -> logpi.TokenLogProbs:
        """Of the tokens `[N, num_tokens]` of chunks, with the entropy."""
        return logpi.action_log_probs(
            self.hidden_states(states),
            self.head,
            token_ids,
            codec=CODEC,
            temperature=temperature,
            loss_mask=loss_mask,
            return_entropy=True,
        )

    @torch.no_grad()
    def act(self, states: Tensor, **drawn: Any) -> Any:
        """A chunk for each state: token ids and log-probs `[N, num_tokens]`, actions of the
        environment `[N, chunk_size, ACTION_DIM]`. `drawn` is what says how
        (`logpi.sample_action_tokens`)."""
        return logpi.sample_action_tokens(
            self.hidden_states(states), self.head, codec=CODEC, **drawn
        )
