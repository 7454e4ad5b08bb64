"""Answers with searches in them: the information from the model's memory, or from an index.

Every row of a batch advances by one token at a time. A token is drawn by the model or, where an
index has answered, dictated; so rows that ask and rows that do not share one loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from memory import Words
from torch import Tensor

import logpi
from logpi.rewards.information import RealSearch, entropy_guided

INFORMATION = ("memory", "index", "guided")  # where it comes from; guided: by the query's entropy


class Rollouts(NamedTuple):
    """B completions of at most T tokens."""

    prompts: Tensor  # [B, P] int64, padded on the left
    token_ids: Tensor  # [B, T] int64, padded on the right
    log_probs: Tensor  # [B, T] as sampled
    entropy: Tensor  # [B, T] nats
    attended: Tensor  # [B, T] bool: not padding
    drawn: Tensor  # [B, T] bool: by the model, not dictated
    texts: list[str]
    searches: list[int]  # queries that were closed
    asked: list[int]  # those that the index answered

    def select(self, rows: Tensor) -> Rollouts:
        chosen = [x[rows] for x in self[:6]]
        return Rollouts(*chosen, *([x[i] for i in rows.tolist()] for x in self[6:]))


@dataclass
class _Row:
    """What one completion is about to write."""

    dictated: deque[int] = field(default_factory=deque)
    query: list[int] | None = None  # of the open search
    entropies: list[list[float]] = field(default_factory=list)  # of each query's tokens
    asked: int = 0
    ended: bool = False


class _Reader:
    """Follows the tokens of a completion; dictates what the index says behind a query."""

    def __init__(self, words: Words, information: str, engine: RealSearch | None) -> None:
        if information not in INFORMATION:
            raise ValueError(f"information: expected one of {INFORMATION}, got {information!r}")
        if (engine is None) != (information == "memory"):
            raise ValueError(f"engine: expected one unless information is memory, got {engine!r}")
        self.words, self.information, self.engine = words, information, engine
        self.opening, self.closing = words.ids["<search>"], words.ids["</search>"]

    def read(self, row: _Row, token: int, entropy: float) -> None:
        row.ended = token == Words.END
        if token == self.opening:
            row.query = []
            row.entropies.append([])
        elif token == self.closing and row.query is not None:
            self._answer(row)
            row.query = None
        elif row.query is not None:
            row.query.append(token)
            row.entropies[-1].append(entropy)

    def _answer(self, row: _Row) -> None:
        if self.engine is None:
            return
        if self.information == "guided" and not entropy_guided(row.entropies)[-1]:
            return
        assert row.query is not None
        row.asked += 1
        found = self.engine.information(self.words.decode(row.query))
        row.dictated.extend(self.words.encode(found))


@torch.no_grad()
def roll_out(
    model: Any,
    words: Words,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    information: str = "memory",
    engine: RealSearch | None = None,
    greedy: bool = False,
    seed: int = 0,
    step: int = 0,
) -> Rollouts:
    """A completion of each question at temperature 1, or the greedy one.

    Args:
        information: "memory": the model writes it; "index": `engine` answers every query; "guided":
            it answers the first, and those whose mean entropy rose above that of the one before.
        seed, step: a draw is a function of them, of the row and of the token's place.
    """
    reader = _Reader(words, information, engine)
    prompts = _left_padded([words.encode(question) for question in questions])
    size = len(questions)
    shape = size, max_new_tokens
    ids = torch.full(shape, Words.PAD)
    log_probs, entropy = torch.zeros(shape), torch.zeros(shape)
    attended, drawn = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
    rows = [_Row() for _ in range(size)]
    was_training = model.training
    model.eval()
    cache, given = None, prompts
    for t in range(max_new_tokens):
        attention = torch.cat([prompts != Words.PAD, attended[:, :t]], 1)
        out = model.model(given, attention_mask=attention, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        sample = logpi.sample_tokens(
            out.last_hidden_state[:, -1] @ model.lm_head.weight.T,
            seed=seed,
            step=step * max_new_tokens + t,
            greedy=greedy,
            return_entropy=True,
        )
        tokens = sample.token_ids.tolist()
        uncertain = sample.entropy.tolist()
        for i, row in enumerate(rows):
            if row.ended:
                continue
            attended[i, t] = True
            drawn[i, t] = not row.dictated
            if row.dictated:
                tokens[i] = row.dictated.popleft()
            else:
                log_probs[i, t], entropy[i, t] = sample.log_probs[i], uncertain[i]
            ids[i, t] = tokens[i]
            reader.read(row, tokens[i], uncertain[i])
        if all(row.ended for row in rows):
            break
        given = ids[:, t : t + 1]
    model.train(was_training)
    end = t + 1  # nobody wrote more
    texts = [words.decode(line) for line in ids.tolist()]
    searches = [len(row.entropies) - (row.query is not None) for row in rows]
    asked = [row.asked for row in rows]
    tensors = (x[:, :end] for x in (ids, log_probs, entropy, attended, drawn))
    return Rollouts(prompts, *tensors, texts, searches, asked)


def _left_padded(rows: Sequence[list[int]]) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[Words.PAD] * (length - len(row)) + row for row in rows])
