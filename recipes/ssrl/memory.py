"""A tokenizer of words, and the warm-up that puts facts and a way to answer into a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from facts import Facts, Question, completion
from torch import Tensor

import logpi
from logpi.rewards.information import information_mask_by_ids
from logpi.rewards.self_search import TAGS


class Words:
    """One token a word, as white space divides them; every tag is one.

    Ids 0 and 1 pad and end. A word outside the vocabulary raises KeyError: all texts here are made
    of the same facts.
    """

    PAD, END = 0, 1
    pad_token_id, eos_token_id = PAD, END

    def __init__(self, texts: Iterable[str]) -> None:
        tags = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
        words = sorted({word for text in texts for word in text.split()} - {*tags})
        self.words = ["<pad>", "<end>", *tags, *words]
        self.ids = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[i] for i in ids if i > self.END)

    def information_mask(self, ids: Sequence[int]) -> list[bool]:
        """False on the information's tokens, its tags included."""
        opening, closing = [self.ids["<information>"]], [self.ids["</information>"]]
        return information_mask_by_ids(ids, opening, closing)


def vocabulary(facts: Facts, demonstrations: Sequence[tuple[Question, str]]) -> Words:
    asked = [q.text for q in facts.warmup + facts.rl + facts.heldout]
    shown = [text for _, text in demonstrations]
    return Words([*map(" ".join, facts.documents), *asked, *shown])


@dataclass(frozen=True)
class WarmUpSettings:
    warmup_steps: int
    documents_per_step: int
    demonstrations_per_step: int
    made_up_per_step: int
    warmup_learning_rate: float


def warm_up(
    model: torch.nn.Module,
    words: Words,
    facts: Facts,
    demonstrations: Sequence[tuple[Question, str]],
    told: WarmUpSettings,
    *,
    seed: int,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Maximises log p of what documents tell, by how often each is met, and of demonstrations.

    A demonstration's information is learnt with the rest, but for that of made-up countries: of
    those the model learns to ask, and to answer what it reads, not what it remembers.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=told.warmup_learning_rate, weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # ends near 0: what RL gains is not cooling
        optimizer, max_lr=told.warmup_learning_rate, total_steps=told.warmup_steps
    )
    draw = torch.Generator().manual_seed(seed)
    documents = [(words.encode(query), words.encode(text)) for query, text in facts.documents]
    weights = torch.tensor(facts.weights)
    shown = [(words.encode(q.text), words.encode(text)) for q, text in demonstrations]
    read = [(words.encode(q.text), words.encode(completion(q, q.hops))) for q in facts.made_up]
    model.train()
    for _ in range(told.warmup_steps):
        met = torch.multinomial(weights, told.documents_per_step, replacement=True, generator=draw)
        seen = torch.randint(len(shown), (told.demonstrations_per_step,), generator=draw)
        made_up = torch.randint(len(read), (told.made_up_per_step,), generator=draw)
        rows = sorted((shown[i] for i in seen), key=lambda row: len(row[1]))
        half = len(rows) // 2  # the short ones apart: less padding
        loss = _loss(words, model, [documents[i] for i in met])
        loss = loss + _loss(words, model, rows[:half], rows[half:])
        if told.made_up_per_step:
            loss = loss + _loss(words, model, [read[i] for i in made_up], masked=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(loss.item())


Row = tuple[list[int], list[int]]  # what is given, what follows


def _loss(
    words: Words, model: torch.nn.Module, *batches: Sequence[Row], masked: bool = False
) -> Tensor:
    """The mean of -log p over the tokens that follow, less information if `masked`, and the end."""
    found = [_sum(words, model, rows, masked) for rows in batches if rows]
    sums, counts = zip(*found, strict=True)
    return -torch.stack(sums).sum() / sum(counts)


def _sum(
    words: Words, model: torch.nn.Module, rows: Sequence[Row], masked: bool
) -> tuple[Tensor, int]:
    """The sum of log p, and of how many tokens."""
    length = max(len(given) + len(rest) for given, rest in rows) + 1
    ids = torch.full((len(rows), length), Words.PAD)
    wanted = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (given, rest) in enumerate(rows):
        end = len(given) + len(rest) + 1
        ids[row, :end] = torch.tensor([*given, *rest, Words.END])
        wanted[row, len(given) : end] = True
        if masked:
            wanted[row, len(given) : end - 1] = torch.tensor(words.information_mask(rest))
    hidden = model.model(ids, use_cache=False)[0]  # padding is last: no token sees it
    log_probs = logpi.linear_log_probs(
        hidden[:, :-1], model.lm_head.weight, ids[:, 1:], loss_mask=wanted[:, 1:]
    ).log_probs
    return log_probs.sum(), int(wanted.sum())
