"""What a run measures, a method a stage: recall, extraction and its ablations, labels, examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import lm
from corpus import Corpus, EventType, Sentence
from labels import annotate, choice_scores
from recall import LateInteraction, Recall, recall_at
from system import Extractor, no_recall, recall_by_name
from torch import Tensor

from logpi.rewards.events import Event, event_scores

TOPS = (1, 2, 5, 10, 20, 50, 100)


class Measure:
    """The trained models of one seed on its held-out sentences. Results are plain numbers."""

    def __init__(self, corpus: Corpus, encoder: LateInteraction, model: Any, tokenizer: Any,
                 args: Any, seed: int) -> None:  # fmt: skip
        self.corpus, self.args, self.seed = corpus, args, seed
        self.model, self.tokenizer = model, tokenizer
        self.sentences = corpus.test(args.test, seed=seed)
        self.maxsim = _Cached(encoder.recall)
        self.by_name = _Cached(recall_by_name(model, tokenizer))

    def _ask(self, prompts: Sequence[str]) -> list[str]:
        return lm.generate(self.model, self.tokenizer, prompts)

    def _extractor(self, types: Sequence[EventType] | None = None, **changed: Any) -> Extractor:
        told = {"recall": self.maxsim, "top_k": self.args.top_k, "num_parts": self.args.parts}
        return Extractor(self._ask, types or self.corpus.types, **(told | changed))

    def recall(self) -> dict[str, dict[str, dict[int, float]]]:
        """By method, then of which sentences' types."""
        types = self.corpus.types
        unseen = [_only(one, lambda e: e.type not in self._seen()) for one in self.sentences]
        methods: dict[str, Recall] = {
            "MaxSim": self.maxsim, "candidate_log_probs": self.by_name,
            "both": self._both, "random": no_recall,
        }  # fmt: skip
        found = {}
        for name, method in methods.items():
            told = method([one.text for one in self.sentences], types)
            found[name] = {"all types": recall_at(told, self.sentences, types, TOPS),
                           "zero-shot types": recall_at(told, unseen, types, TOPS)}  # fmt: skip
        return found

    def _both(self, texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
        return (self.maxsim(texts, types) + self.by_name(texts, types)).log_softmax(-1)

    def _seen(self) -> set[str]:
        return {one.name for one in self.corpus.seen_types}

    def extraction(self) -> dict[str, Any]:
        """The strategies, other choices, and what training had none of."""
        variants: dict[str, dict[str, Any]] = {
            "level": {}, "average": {"strategy": "average"}, "random": {"strategy": "random"},
            "level, plain union": {"merge": "union"},
            "level, recall by name": {"recall": self.by_name},
            "level, both recalls": {"recall": self._both},
        }  # fmt: skip
        found: dict[str, Any] = {}
        for name, changed in variants.items():
            events = self._extractor(**changed)([one.text for one in self.sentences])
            found[name] = _scores(events, self.sentences)
            if name == "level":
                found["held out"] = self._held_out(events)
        return found

    def ablations(self) -> dict[str, Any]:
        """Without partition; without recall, as many types drawn, or all of them in such prompts,
        on fewer sentences."""
        size = max(1, self.args.top_k // self.args.parts)
        every = -(-len(self.corpus.types) // size)
        few = self.sentences[: self.args.test_all]
        variants: dict[str, tuple[dict[str, Any], Sequence[Sentence]]] = {
            "no partition": ({"num_parts": 1}, self.sentences),
            "no recall: a draw": ({"recall": no_recall}, self.sentences),
            "level, fewer sentences": ({}, few),
            "no recall: all types": ({"recall": no_recall, "top_k": None, "num_parts": every}, few),
        }  # fmt: skip
        return {name: _scores(self._extractor(**changed)([one.text for one in some]), some)
                for name, (changed, some) in variants.items()}  # fmt: skip

    def _held_out(self, events: Sequence[Sequence[Event]]) -> dict[str, Any]:
        """F1 of sentences with nothing unseen, and of those with each kind of it alone."""
        found = {}
        for kind in ((), ("verb",), ("frame",), ("type",)):
            rows = [i for i, one in enumerate(self.sentences) if one.unseen == set(kind)]
            found[" ".join(kind) or "nothing"] = _scores(
                [events[i] for i in rows], [self.sentences[i] for i in rows]
            )
        return found

    def by_types(self) -> dict[str, dict[str, float]]:
        """Trigger classification F1 by the size of the inventory, by variant."""
        variants: dict[str, dict[str, Any]] = {
            "level": {},
            "no partition": {"num_parts": 1},
            "no recall: a draw": {"recall": no_recall},
        }
        found: dict[str, dict[str, float]] = {name: {} for name in variants}
        for count in self.args.by_types:
            corpus = Corpus(seed=self.seed, num_types=min(count, self.args.types))
            sentences = corpus.test(self.args.test_by_types, seed=self.seed + 1)
            for name, changed in variants.items():
                extractor = self._extractor(corpus.types, **changed)
                events = extractor.detect([one.text for one in sentences])
                found[name][str(count)] = _scores(events, sentences)["tc"]["f1"]
        return found

    def labels(self) -> dict[str, Any]:
        sentences = self.corpus.test(self.args.labels, seed=self.seed + 2)
        return annotate(self.corpus, sentences, self.maxsim, self._extractor(),
                        choice_scores(self.model, self.tokenizer), seed=self.seed)  # fmt: skip

    def examples(self) -> list[dict[str, Any]]:
        """Some sentences from recall to events, right ones and wrong ones."""
        extractor = self._extractor()
        texts = [one.text for one in self.sentences[:12]]
        told = self.maxsim(texts, self.corpus.types)
        found = extractor(texts)
        examples = []
        for row, (one, events) in enumerate(zip(self.sentences[:12], found, strict=True)):
            parts = extractor.parts(told[row], row)
            prompts = [lm.detection_prompt(one.text, names) for names in parts]
            examples.append({
                "text": one.text, "gold": _plain(one.events), "found": _plain(events),
                "parts": [{"names": n, "answer": a} for n, a in
                          zip(parts, self._ask(prompts), strict=True)],
                "tc": _scores([events], [one])["tc"]["f1"],
            })  # fmt: skip
        return examples


class _Cached:
    """A recall that is asked once about each text and inventory."""

    def __init__(self, recall: Recall) -> None:
        self.recall, self.known = recall, dict[Any, Tensor]()

    def __call__(self, texts: Sequence[str], types: Sequence[EventType]) -> Tensor:
        key = (tuple(texts), tuple(one.name for one in types))
        if key not in self.known:
            self.known[key] = self.recall(texts, types)
        return self.known[key]


def _scores(events: Sequence[Sequence[Event]], sentences: Sequence[Sentence]) -> dict[str, Any]:
    found = event_scores(events, [list(one.events) for one in sentences])
    kept = {metric: getattr(found, metric) for metric in ("ti", "tc", "ai", "ac")}
    return {"sentences": len(sentences), **{
        metric: {key: getattr(score, key) for key in ("precision", "recall", "f1")}
        for metric, score in kept.items()}}  # fmt: skip


def _only(one: Sentence, wanted: Any) -> Sentence:
    return dataclasses.replace(one, events=tuple(event for event in one.events if wanted(event)))


def _plain(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [{"trigger": e.trigger, "type": e.type,
             "arguments": {str(a.role): a.span for a in e.arguments}} for e in events]  # fmt: skip
