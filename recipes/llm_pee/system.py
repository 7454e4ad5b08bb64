"""The extraction of LLM-PEE (arXiv:2503.02628), over any causal LM: recall the types, deal them to
prompts, ask, merge, and ask again for the arguments of each event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from corpus import EventType
from lm import argument_prompt, detection_prompt, naming_prompt
from partition import STRATEGIES
from recall import Recall
from torch import Tensor

from logpi.integrations.transformers import candidate_log_probs
from logpi.rewards.events import Argument, Event, parse_events

Ask = Callable[[Sequence[str]], list[str]]  # prompts -> answers
_NEVER = -math.inf


@dataclass(frozen=True)
class Extractor:
    """Finds the events of sentences.

    Attributes:
        ask: answers prompts; the language model.
        types: the inventory.
        recall: log-confidences `[B, N]` of the types.
        top_k: how many recalled types are asked about; None: all, which is no recall.
        num_parts: prompts a sentence; 1 is no partition.
        strategy: how types are dealt to them, a key of `partition.STRATEGIES`.
        merge: "confident" keeps of one trigger the type that recall is surest of, "union" all.
    """

    ask: Ask
    types: Sequence[EventType]
    recall: Recall
    top_k: int | None = 20
    num_parts: int = 4
    strategy: str = "level"
    merge: str = "confident"

    def __post_init__(self) -> None:
        for name, value, known in (("strategy", self.strategy, tuple(STRATEGIES)),
                                   ("merge", self.merge, ("confident", "union"))):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")

    def detect(self, texts: Sequence[str]) -> list[list[Event]]:
        """Triggers and types, one list a text."""
        confidences = self.recall(texts, self.types)
        prompts: list[str] = []
        asked: list[tuple[int, set[str]]] = []
        for row, text in enumerate(texts):
            for names in self.parts(confidences[row], row):
                prompts.append(detection_prompt(text, names))
                asked.append((row, set(names)))
        found: list[list[Event]] = [[] for _ in texts]
        for (row, names), answer in zip(asked, self.ask(prompts), strict=True):
            found[row] += [e for e in parse_events(answer) or () if e.trigger and e.type in names]
        places = {one.name: i for i, one in enumerate(self.types)}
        return [
            self._merged(text, events, {n: confidences[row, i].item() for n, i in places.items()})
            for row, (text, events) in enumerate(zip(texts, found, strict=True))
        ]

    def parts(self, confidences: Tensor, seed: int = 0) -> list[list[str]]:
        """The names of the types in each prompt of a sentence."""
        top = confidences.topk(min(self.top_k or len(self.types), len(self.types)))
        dealt = STRATEGIES[self.strategy](top.values.exp().tolist(), self.num_parts, seed)
        order = top.indices.tolist()
        return [[self.types[order[i]].name for i in part] for part in dealt]

    def _merged(
        self, text: str, events: Sequence[Event], confidence: dict[str, float]
    ) -> list[Event]:
        """The union of what the prompts found, of triggers that the text has."""
        words = set(text.split())
        kept: dict[tuple[Any, ...], Event] = {}
        for event in events:
            if not set(str(event.trigger).split()) <= words:
                continue
            key = (event.trigger,) if self.merge == "confident" else (event.trigger, event.type)
            other = kept.get(key)
            if other is None or confidence[str(event.type)] > confidence[str(other.type)]:
                kept[key] = event
        return list(kept.values())

    def add_arguments(
        self, texts: Sequence[str], events: Sequence[Sequence[Event]]
    ) -> list[list[Event]]:
        """The second stage: one prompt an event, with the roles of its type."""
        roles = {one.name: one.roles for one in self.types}
        prompts = [
            argument_prompt(text, event, roles[str(event.type)])
            for text, some in zip(texts, events, strict=True)
            for event in some
        ]
        answers = iter(self.ask(prompts))
        whole: list[list[Event]] = []
        for text, some in zip(texts, events, strict=True):
            whole.append([_with_arguments(e, text, roles[str(e.type)], next(answers))
                          for e in some])  # fmt: skip
        return whole

    def __call__(self, texts: Sequence[str]) -> list[list[Event]]:
        return self.add_arguments(texts, self.detect(texts))


def _with_arguments(event: Event, text: str, roles: Sequence[str], answer: str) -> Event:
    """Of the answer what has a role of the type and words of the text."""
    read = parse_events(f'[{{"type":"-","arguments":{answer}}}]') or []
    kept: list[Argument] = []
    for one in read[:1]:
        kept = [a for a in one.arguments if a.role in roles and f" {a.span} " in f" {text} "]
    return event._replace(arguments=tuple(kept))


def recall_by_name(model: Any, tokenizer: Any) -> Recall:
    """A recall without an encoder: how likely the language model finds each type's name.

    One call a sentence scores all names behind the shared prompt; the end token closes a name, so
    that no name counts the mass of those that begin with it.
    """

    def recall(texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
        names = tokenizer([one.name for one in types])["input_ids"]
        names = [[*ids, tokenizer.eos_token_id] for ids in names]
        rows = []
        for text in texts:
            prompt = tokenizer(naming_prompt(text))["input_ids"]
            rows.append(candidate_log_probs(model, prompt, names).log_probs)
        return torch.stack(rows).log_softmax(-1)

    return recall


def no_recall(texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
    """Every type alike: a top-k of it is a draw, the same for a text each time."""
    generator = torch.Generator().manual_seed(len(types))
    return torch.rand(len(texts), len(types), generator=generator).mul(1e-6).log_softmax(-1)
