"""Did a model that searches in its own memory keep the form, and is its answer right?

SSRL: self-search reinforcement learning (arXiv:2508.10874); docs/rewards/self_search.md.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from logpi.rewards import contract
from logpi.rewards.contract import Details, Reward

TAGS = ("think", "search", "information", "answer")
MAX_THINKS = 8
FULL_THINKS = 2  # from so many on, the number of thoughts costs nothing

PROMPT = """\
Answer the question. Work in blocks, each between its tags, with nothing outside them:

<think> what you know, what is missing, what to do next </think>
<search> one query, on one line </search>
<information> what a search engine would answer to it, from your own memory </information>
<answer> the answer alone, in a few words </answer>

Begin with a think block. Whenever something is missing, write a search block and, right behind \
it, an information block; then think again. Repeat as often as needed. End with one answer block.

Question: {question}"""


def messages(question: str) -> list[dict[str, str]]:
    """A chat that asks the question and says what a completion has to look like."""
    return [{"role": "user", "content": PROMPT.replace("{question}", question)}]


@dataclass(frozen=True)
class SelfSearch(Reward):
    """(1 - format_weight) outcome + format_weight form, both in [0, 1].

    Attributes:
        format_weight: 0.1 in the paper.
        outcome: "em", exact match after SQuAD's normalisation, as the paper trains; "f1", of words.
        target: the column with the right answers: a text, or a list of texts, a completion.

    Parts: `format`, `em`, `f1`, `searches`. Metrics: the mean of each.
    """

    format_weight: float = 0.1
    outcome: str = "em"
    target: str = "answer"

    def __post_init__(self) -> None:
        contract.check_number("format_weight", self.format_weight, 0, 1)
        contract.check_choice("outcome", self.outcome, "em", "f1")

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        column = contract.column(columns, self.target, len(texts))
        targets = [_targets(f"{self.target}[{i}]", value) for i, value in enumerate(column)]
        answers = [final_answer(text) for text in texts]
        parts = {
            "format": [format_score(text) for text in texts],
            "em": [exact_match(a, t) for a, t in zip(answers, targets, strict=True)],
            "f1": [f1_score(a, t) for a, t in zip(answers, targets, strict=True)],
            "searches": [float(text.count("<search>")) for text in texts],
        }
        w = self.format_weight
        rewards = [
            (1 - w) * outcome + w * form
            for outcome, form in zip(parts[self.outcome], parts["format"], strict=True)
        ]
        return Details(rewards, parts, {name: contract.mean(part) for name, part in parts.items()})


def _targets(name: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else None
    if found is None and isinstance(value, Sequence):
        found = list(value)
    elif found is None and hasattr(value, "tolist"):  # an array of a data set
        found = value.tolist()
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{name}: expected a text or a list of texts, got {value!r:.80}")
    return found


# ---- outcome ------------------------------------------------------------------------------------


def final_answer(text: str) -> str | None:
    """What the last complete <answer> .. </answer> holds; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """SQuAD's: lower case, no ASCII punctuation, no articles, single spaces.

    A text of nothing else ("The", "?") keeps what it has: two such are not equal by being empty.
    """
    lower = text.lower()
    plain = lower.translate(_PUNCTUATION)
    return " ".join((_ARTICLES.sub(" ", plain).split()) or plain.split() or lower.split())


@lru_cache(maxsize=4096)  # every completion of a prompt has the same
def _target(text: str) -> tuple[str, Counter[str]]:
    plain = normalized(text)
    return plain, Counter(plain.split())


def exact_match(answer: str | None, targets: Sequence[str]) -> float:
    """1.0 if the answer is one of the targets after normalisation."""
    found = normalized(answer) if answer else ""
    return float(bool(found) and any(found == _target(target)[0] for target in targets))


def f1_score(answer: str | None, targets: Sequence[str]) -> float:
    """The harmonic mean of the precision and the recall of words, of the best target."""
    words = Counter(normalized(answer).split()) if answer else Counter[str]()
    best = 0.0
    for target in targets if words else ():
        wanted = _target(target)[1]
        common = (words & wanted).total()
        if common:
            best = max(best, 2 * common / (words.total() + wanted.total()))
    return best


# ---- form ---------------------------------------------------------------------------------------


def format_score(text: str) -> float:
    """In [0, 1]: 0 for a broken form, else how many thoughts there are, and how they fit searches.

    The form: think first, answer last and once, each search followed by its information, nothing
    but white space between blocks, no empty block, no query of two lines, no placeholder of the
    prompt left in place, no other tag. With T thoughts and S searches the score is

        min(T / 2, 1) min(T, S + 1) / max(T, S + 1)         0 for T > 8
    """
    found = blocks(text)
    if found is None:
        return 0.0
    names = [name for name, _ in found]
    thinks, searches = names.count("think"), names.count("search")
    in_form = (
        names[:1] == ["think"]
        and names.count("answer") == 1
        and names[-1] == "answer"
        and searches == names.count("information")
        and all(names[i + 1] == "information" for i, name in enumerate(names) if name == "search")
        and all(_filled(name, body) for name, body in found)
    )
    if not in_form or thinks > MAX_THINKS:
        return 0.0
    wanted = searches + 1
    return min(thinks / FULL_THINKS, 1.0) * min(thinks, wanted) / max(thinks, wanted)


_TAG = re.compile(r"<(/?)([A-Za-z][\w-]*)>")
_PLACEHOLDERS = {
    "think": "your thoughts",
    "search": "your query",
    "information": "your information",
    "answer": "your answer",
}


def blocks(text: str) -> list[tuple[str, str]] | None:
    """(tag, body) of each block in order; None if it is not a sequence of blocks and nothing else.

    `1 < 2 and 3 > 2` holds no tag: a tag is a word between angle brackets.
    """
    found: list[tuple[str, str]] = []
    opened, start = "", 0
    for tag in _TAG.finditer(text):
        closes, name = bool(tag[1]), tag[2]
        between = text[start : tag.start()]
        if name not in TAGS or closes != bool(opened) or (closes and name != opened):
            return None
        if closes:
            found.append((name, between))
        elif between.strip():
            return None
        opened, start = "" if closes else name, tag.end()
    return None if opened or text[start:].strip() else found


def _filled(name: str, body: str) -> bool:
    one_line = name != "search" or "\n" not in body
    return bool(body.strip()) and one_line and _PLACEHOLDERS[name] not in body.lower()
