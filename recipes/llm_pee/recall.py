"""Which types may a sentence hold? Late interaction with their descriptions tells."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from corpus import EventType, Sentence
from torch import Tensor, nn
from torch.nn import functional as F

Recall = Callable[[Sequence[str], Sequence[EventType]], Tensor]  # -> log-confidences [B, N]


def maxsim(
    queries: Tensor,  # [B, Tq, D]
    query_mask: Tensor,  # [B, Tq], True: a token
    documents: Tensor,  # [N, Td, D]
    document_mask: Tensor,  # [N, Td]; no row is empty
) -> Tensor:  # [B, N]
    """The score of ColBERT (arXiv:2004.12832): Σ_i max_j q_i · d_j, over the tokens of both.

    One j after the other: what is held is `[B Tq, N]`, and the maximum is of whole rows.
    """
    flat = queries.reshape(-1, queries.shape[-1])
    absent = torch.zeros(document_mask.shape).masked_fill(~document_mask, -torch.inf)
    best = torch.full((len(flat), len(documents)), -torch.inf)
    for j in range(documents.shape[1]):
        best = torch.maximum(best, torch.addmm(absent[:, j], flat, documents[:, j].T))
    best = best.view(*query_mask.shape, -1)
    return best.masked_fill(~query_mask.unsqueeze(-1), 0.0).sum(1)


class LateInteraction(nn.Module):
    """Vectors of length 1 for the tokens of a text: embeddings and one bidirectional layer."""

    def __init__(self, tokenizer: Any, *, hidden_size: int = 64, size: int = 48) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.embedding = nn.Embedding(len(tokenizer), hidden_size)
        self.positions = nn.Embedding(128, hidden_size)
        nn.init.normal_(self.positions.weight, std=0.02)  # at first a word is a word anywhere
        self.body = nn.TransformerEncoderLayer(hidden_size, 4, 2 * hidden_size, dropout=0.0,
                                               batch_first=True, norm_first=True)  # fmt: skip
        self.project = nn.Linear(hidden_size, size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` and the mask `[B, T]` of what is a token."""
        told = self.tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
        ids, mask = told["input_ids"], told["attention_mask"].bool()
        places = torch.arange(ids.shape[1]).clamp(max=self.positions.num_embeddings - 1)
        hidden = self.embedding(ids) + self.positions(places)
        hidden = self.body(hidden, src_key_padding_mask=~mask)
        return F.normalize(self.project(hidden), dim=-1), mask

    def scores(self, texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
        """`[B, N]` of MaxSim, scaled so that their softmax is the confidence."""
        found = maxsim(*self(texts), *self([one.description for one in types]))
        return self.log_scale.exp() * found

    @torch.no_grad()
    def recall(self, texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
        """Log-confidences `[B, N]`."""
        descriptions = self([one.description for one in types])
        parts = [
            maxsim(*self(texts[begin : begin + 64]), *descriptions)
            for begin in range(0, len(texts), 64)
        ]
        return (self.log_scale.exp() * torch.cat(parts)).log_softmax(-1)


def train(
    encoder: LateInteraction,
    sentences: Sequence[Sentence],
    types: Sequence[EventType],
    *,
    steps: int,
    batch_size: int = 32,
    num_negatives: int = 64,
    learning_rate: float = 1e-2,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, float]:
    """Maximises the mean log-confidence of the types in a sentence, against drawn ones.

    Returns:
        The "seconds" and the "cpu" seconds it took.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    draw = random.Random(f"{seed}/recall")
    by_name = {one.name: one for one in types}
    useful = [one for one in sentences if one.events]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for step in range(steps):
        some = draw.sample(useful, min(batch_size, len(useful)))
        golds = [{event.type for event in one.events} for one in some]
        drawn = draw.sample(sorted(by_name), min(num_negatives, len(by_name)))
        names = sorted(set.union(*golds, drawn))
        target = torch.tensor([[name in gold for name in names] for gold in golds])
        target = target / target.sum(-1, keepdim=True)
        scores = encoder.scores([one.text for one in some], [by_name[name] for name in names])
        loss = -(target * scores.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    encoder.eval()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def recall_at(confidences: Tensor, sentences: Sequence[Sentence], types: Sequence[EventType],
              tops: Sequence[int]) -> dict[int, float]:  # fmt: skip
    """The share of a sentence's types among its `k` most confident, over all types it has."""
    index = {one.name: i for i, one in enumerate(types)}
    order = confidences.argsort(-1, descending=True)
    ranks = [
        (order[row] == index[event.type]).nonzero().item()
        for row, one in enumerate(sentences)
        for event in one.events
    ]
    return {k: sum(rank < k for rank in ranks) / max(len(ranks), 1) for k in tops}
