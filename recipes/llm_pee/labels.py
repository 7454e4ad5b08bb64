"""Distant supervision, and what annotators make of it: triggers, and their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from annotation import NONE_OF_THE_ABOVE, Annotator, Verdict, Vote, agreement, by_scores, simulated
from corpus import Corpus, Sentence
from lm import detection_answer, detection_prompt
from recall import Recall
from system import Extractor

from logpi.integrations.transformers import candidate_log_probs
from logpi.rewards.events import Event, event_scores

EVENT, NO_EVENT = "event", "no event"
Scores = Callable[[Any, Sequence[str]], Sequence[float]]


class Word(NamedTuple):
    """A word of a sentence that the lexicon has as a verb."""

    text: str
    word: str


class Stage(NamedTuple):
    """What a round of questions gave."""

    questions: list[Word]
    verdicts: list[Verdict]
    truth: list[str]

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Accuracies of each annotator and of the vote, and how much they agree."""
        total = max(len(self.verdicts), 1)
        alone = {name: sum(v.first[i] == t for v, t in zip(self.verdicts, self.truth, strict=True))
                 / total for i, name in enumerate(names)}  # fmt: skip
        right = sum(v.answer == t for v, t in zip(self.verdicts, self.truth, strict=True))
        voted = sum(v.answer is not None for v in self.verdicts)
        found = agreement(self.verdicts)
        cohen = {f"{names[a]}, {names[b]}": k for (a, b), k in found.cohen.items()}
        return {"questions": len(self.verdicts), "alone": alone, "vote": right / max(voted, 1),
                "undecided": len(self.verdicts) - voted,
                "again": sum(v.rounds > 1 for v in self.verdicts), "fleiss": found.fleiss,
                "cohen": cohen, "unanimous": found.unanimous}  # fmt: skip


def annotate(
    corpus: Corpus,
    sentences: Sequence[Sentence],
    recall: Recall,
    extractor: Extractor,
    name_scores: Scores,
    *,
    num_choices: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Labels `sentences` without looking at their events, and then compares.

    Three annotators are simulated and know the truth up to their errors; the fourth is the trained
    language model, which does not.
    """
    gold = {(one.text, event.trigger): str(event.type) for one in sentences for event in one.events}
    texts = [one.text for one in sentences]
    words = [Word(text, word) for text in texts for word in text.split() if word in corpus.meanings]

    def is_event(q: Word) -> str:
        return EVENT if q in gold else NO_EVENT

    found = {(text, event.trigger) for text, events in
             zip(texts, extractor.detect(texts), strict=True) for event in events}  # fmt: skip
    makers: dict[str, tuple[float, str, float]] = {
        # accuracy of each kind of question, and what it says too often
        "careful": (0.92, "", 0.0), "eager": (0.85, EVENT, 0.9), "hasty": (0.75, "", 0.0)
    }  # fmt: skip
    names = [*makers, "model"]
    people: list[Annotator[Word]] = [
        simulated(is_event, accuracy, bias=bias, bias_share=share, seed=f"{seed}/{name}/trigger")
        for name, (accuracy, bias, share) in makers.items()
    ]
    people.append(lambda q, options, number: EVENT if tuple(q) in found else NO_EVENT)
    triggers = _ask(Vote(people), words, [[EVENT, NO_EVENT]] * len(words), is_event)

    kept = [q for q, v in zip(words, triggers.verdicts, strict=True) if v.answer == EVENT]
    confidences = recall(texts, corpus.types)
    rows = {text: row for row, text in enumerate(texts)}
    choices = [_choices(corpus, q, confidences[rows[q.text]], num_choices) for q in kept]
    offered = dict(zip(kept, choices, strict=True))

    def meaning(q: Word) -> str:
        right = gold.get(tuple(q), NONE_OF_THE_ABOVE)
        return right if right in offered[q] else NONE_OF_THE_ABOVE

    people = [simulated(meaning, accuracy, seed=f"{seed}/{name}/type")
              for name, (accuracy, _, _) in makers.items()]  # fmt: skip
    people.append(by_scores(name_scores, seed=f"{seed}/model/type"))
    types = _ask(Vote(people), kept, choices, meaning)

    labels = {
        "distant": {q: _choices(corpus, q, confidences[rows[q.text]], 1)[0] for q in words},
        "trigger vote": {q: offered[q][0] for q in kept},
        "and type vote": {q: v.answer for q, v in zip(kept, types.verdicts, strict=True)
                          if v.answer not in (None, NONE_OF_THE_ABOVE)},
    }  # fmt: skip
    scores = {}
    for stage, told in labels.items():
        events: dict[str, list[Event]] = {text: [] for text in texts}
        for q, name in told.items():
            events[q.text].append(Event(q.word, name))
        score = event_scores([events[t] for t in texts], [list(one.events) for one in sentences])
        scores[stage] = {"labels": len(told), **{
            f"{metric}_{key}": getattr(getattr(score, metric), key)
            for metric in ("ti", "tc") for key in ("precision", "recall", "f1")}}  # fmt: skip
    return {"sentences": len(sentences), "annotators": names, "triggers": triggers.summary(names),
            "types": types.summary(names), "labels": scores,
            "none_is_right": sum(t == NONE_OF_THE_ABOVE for t in types.truth)}  # fmt: skip


def _ask(vote: Vote[Word], questions: list[Word], options: Sequence[Sequence[str]],
         truth: Callable[[Word], str]) -> Stage:  # fmt: skip
    verdicts = [vote(q, some) for q, some in zip(questions, options, strict=True)]
    return Stage(questions, verdicts, [truth(q) for q in questions])


def _choices(corpus: Corpus, q: Word, confidences: Any, count: int) -> list[str]:
    """The types the verb may stand for that recall is surest of, and none of the above."""
    may = [i for i, (_, action) in enumerate(corpus.pairs) if action in corpus.meanings[q.word]]
    may.sort(key=lambda i: -float(confidences[i]))
    return [*(corpus.types[i].name for i in may[:count]), NONE_OF_THE_ABOVE]


def choice_scores(model: Any, tokenizer: Any) -> Scores:
    """What the language model thinks of each choice: log p of the whole answer that says it."""

    def scores(q: Word, options: Sequence[str]) -> list[float]:
        names = [option for option in options if option != NONE_OF_THE_ABOVE]
        answers = [
            detection_answer([Event(q.word, option)], [option]) if option in names else "[]"
            for option in options
        ]
        ids = [[*one, tokenizer.eos_token_id] for one in tokenizer(answers)["input_ids"]]
        prompt = tokenizer(detection_prompt(q.text, names))["input_ids"]
        return [float(x) for x in candidate_log_probs(model, prompt, ids).log_probs]

    return scores
