"""What a model answers, once and many times, by the equivalence that also counts the votes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tasks import Entry, prompt, with_hedges, with_slips

from logpi.rewards import MajorityVote
from logpi.rewards.answers import extract_answer

_QUESTIONS = 100  # generated for at a time

Extract = Callable[[str], str | None]


def committed(text: str) -> str | None:
    """The only number of a completion; a hedge ("12 or 15") is no answer, and has no vote."""
    numbers = re.findall(r"-?\d+", text)
    return numbers[0] if len(numbers) == 1 else None


def whole(text: str) -> str | None:
    """All of a completion; an empty one is no answer."""
    return text.strip() or None


# What a hedge does in the vote: nothing, or count for its last number.
EXTRACTS: dict[str, Extract] = {"abstain": committed, "vote": extract_answer}


@dataclass(frozen=True)
class Kind:
    """Of questions: what is wrong with some answers of the warm-up, and how a model's is read."""

    flawed: Callable[..., list[Entry]]
    extracts: dict[str, Extract]
    pieces: str | None = None  # of a question that are tokens of their own; None: digits


KINDS = {
    # every letter of the last word is a token: it is to be read letter by letter
    "spell_backward": Kind(with_slips, dict.fromkeys(EXTRACTS, whole), r"[a-zA-Z](?=[a-zA-Z]* ?$)"),
    "chain_sum": Kind(with_hedges, EXTRACTS),
}


def greedy(
    model: Any, tokenizer: Any, entries: Sequence[Entry], *, extract: Extract, max_new_tokens: int
) -> float:
    """The fraction of entries whose most likely completion is right."""
    texts = _completions(model, tokenizer, entries, max_new_tokens, do_sample=False)
    return _measured(texts, entries, 1, extract)["accuracy"]


def sampled(
    model: Any,
    tokenizer: Any,
    entries: Sequence[Entry],
    *,
    extract: Extract,
    votes: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, float]:
    """`votes` completions of each entry at temperature 1; the callers' random state is kept.

    Returns:
        pass@1: the fraction of them that is right.
        maj@n: the fraction of entries whose most frequent answer is right.
        pass@n: the fraction of entries with a right one among them.
        majority_ratio: the share of the votes that the most frequent answer has.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        texts = _completions(
            model, tokenizer, entries, max_new_tokens,
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=votes,
        )  # fmt: skip
    found = _measured(texts, entries, votes, extract)
    names = {"pass@1": "accuracy", "maj@n": "label_accuracy"}
    names |= {name: name for name in ("pass@n", "majority_ratio")}
    return {name: found[theirs] for name, theirs in names.items()}


@torch.no_grad()
def _completions(
    model: Any, tokenizer: Any, entries: Sequence[Entry], max_new_tokens: int, **how: Any
) -> list[str]:
    was_training = model.training
    model.eval()
    texts: list[str] = []
    for start in range(0, len(entries), _QUESTIONS):
        asked = [prompt(entry) for entry in entries[start : start + _QUESTIONS]]
        inputs = tokenizer(asked, return_tensors="pt", padding=True)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            **how,
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    model.train(was_training)
    return texts


def _measured(
    texts: list[str], entries: Sequence[Entry], each: int, extract: Extract
) -> dict[str, float]:
    labels = [entry["answer"] for entry in entries for _ in range(each)]
    return MajorityVote(group_size=each, extract=extract).details(texts, answer=labels).metrics
