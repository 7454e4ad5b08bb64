"""Facts about countries from the package countryinfo: passages, questions, and how to answer them.

A passage states one fact, so that a question of two hops needs two of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from countryinfo import all_countries

RELATIONS = ("capital", "currency", "language", "region", "code")
KEYS = ("capital", "code")  # a country is found by them, where no other has the same

MADE_UP = 20  # worlds in which other countries have the values

# How a demonstration gets to its answer: the searches it makes, at the most.
STRATEGIES = {"from memory": 0, "one search": 1, "all searches": 2}


@dataclass(frozen=True)
class Country:
    name: str
    population: int
    values: dict[str, str]  # by relation


@dataclass(frozen=True)
class Question:
    """What is asked, of which country, by way of which steps.

    Attributes:
        text: as the model reads it.
        answer: its one right answer.
        country: the name of the country it is about.
        steps: (query, passage) of each search that leads to the answer, in order: one or two.
    """

    text: str
    answer: str
    country: str
    steps: tuple[tuple[str, str], ...]

    @property
    def hops(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Facts:
    """Everything there is to know and to ask; no country is in two lists of questions.

    Attributes:
        countries: those of which every relation is known.
        passages: every fact, as the corpus of an engine.
        documents: (query, what is told): the same as a model meets them.
        weights: how often each document is met, not normalised.
        warmup, rl, heldout: questions about different countries.
        made_up: questions about the countries of `warmup`, their values exchanged at random.
    """

    countries: list[Country]
    passages: list[str]
    documents: list[tuple[str, str]]
    weights: list[float]
    warmup: list[Question]
    rl: list[Question]
    heldout: list[Question]
    made_up: list[Question]


def load(
    *, seed: int, warmup_fraction: float, rl_fraction: float, popularity: float, limit: int | None
) -> Facts:
    """
    Args:
        seed: which countries are asked about where.
        warmup_fraction, rl_fraction: of the countries; the rest is held out.
        popularity: a document is met population ** popularity times, up to a factor.
        limit: so many countries, the most populous; None: all.
    """
    known = countries()[:limit]
    keys = _keys(known)
    passages, documents, weights = [], [], []
    for country in known:
        for query, passage in _statements(country, keys[country.name]).values():
            passages.append(passage)
            documents.append(_searched(query, passage))
            weights.append(country.population**popularity)
    order = random.Random(seed).sample(known, len(known))
    first = round(warmup_fraction * len(order))
    second = first + round(rl_fraction * len(order))
    parts = order[:first], order[first:second], order[second:]
    asked = ([q for c in part for q in _asked(c, keys[c.name])] for part in parts)
    invented = _exchanged(parts[0], MADE_UP, seed=seed)
    made_up = [q for country in invented for q in _asked(country, KEYS)]
    return Facts(known, passages, documents, weights, *asked, made_up)


def countries() -> list[Country]:
    """Every country of the package with all the relations, the most populous first."""
    found: dict[str, Country] = {}
    for entry in all_countries():
        about = entry.info()
        values = {
            "capital": about.get("capital"),
            "currency": _first(about.get("currencies")),
            "language": _first(about.get("languages")),
            "region": about.get("subregion"),
            "code": about.get("ISO", {}).get("alpha3"),
        }
        population = about.get("population")
        known = all(isinstance(value, str) and value.strip() for value in values.values())
        if population and known:  # Burma and Myanmar have one code
            found.setdefault(values["code"], Country(about["name"], population, values))
    return sorted(found.values(), key=lambda c: (-c.population, c.name))


def _first(values: Sequence[str] | None) -> str | None:
    return values[0] if values else None


def _exchanged(known: Sequence[Country], times: int, *, seed: int) -> list[Country]:
    """The countries so many times, each time with every relation's values dealt out anew."""
    draw = random.Random(seed)
    found = []
    for _ in range(times):
        dealt = {r: draw.sample([c.values[r] for c in known], len(known)) for r in RELATIONS}
        found += [
            Country(c.name, c.population, {r: dealt[r][i] for r in RELATIONS})
            for i, c in enumerate(known)
        ]
    return found


def _keys(known: Sequence[Country]) -> dict[str, list[str]]:
    """By country, the relations whose value no other country has."""
    counts = {key: Counter(country.values[key] for country in known) for key in KEYS}
    return {c.name: [key for key in KEYS if counts[key][c.values[key]] == 1] for c in known}


def _statements(country: Country, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(query, passage) of everything there is to say about a country: what each relation is, and,
    under "by capital" and the like, which country it is."""
    name, values = country.name, country.values
    found = {r: (f"{r} of {name}", f"The {r} of {name} is {values[r]} .") for r in RELATIONS}
    for key in keys:
        by = f"country with the {key} {values[key]}"
        found[f"by {key}"] = by, f"The {by} is {name} ."
    return found


def _asked(country: Country, keys: Sequence[str]) -> list[Question]:
    """Every question about a country, of one hop and of two."""
    name, values = country.name, country.values
    told = _statements(country, keys)
    found = [
        Question(f"What is the {r} of {name} ?", values[r], name, (told[r],)) for r in RELATIONS
    ]
    for key in keys:
        first = told[f"by {key}"]
        found.append(Question(f"Which is the {first[0]} ?", name, name, (first,)))
        found += [
            Question(f"What is the {r} of the {first[0]} ?", values[r], name, (first, told[r]))
            for r in RELATIONS
            if r != key
        ]
    return found


def _searched(query: str, passage: str) -> tuple[str, str]:
    return f"<search> {query} </search>", f"<information> {passage} </information>"


# ---- demonstrations -----------------------------------------------------------------------------


def demonstrations(
    questions: Sequence[Question], mix: dict[str, float], *, seed: int
) -> list[tuple[Question, str]]:
    """Each question with a completion that answers it rightly, by a strategy drawn from `mix`."""
    draw = random.Random(seed)
    drawn = draw.choices(list(mix), list(mix.values()), k=len(questions))
    return [(q, completion(q, STRATEGIES[s])) for q, s in zip(questions, drawn, strict=True)]


def completion(question: Question, searches: int) -> str:
    """Thoughts, at most so many searches with what they bring, the answer.

    What is not looked up is remembered: the text says so and goes on.
    """
    made = question.steps[:searches]
    blocks = []
    for query, passage in made:
        needed = query.partition(" with the " if query.startswith("country") else " of ")[0]
        blocks.append(f"<think> I need the {needed} . </think>")
        blocks += _searched(query, passage)
    thought = "I have found it ." if len(made) == question.hops else "I remember it ."
    blocks += [f"<think> {thought} </think>", f"<answer> {question.answer} </answer>"]
    return " ".join(blocks)


def sample(questions: Sequence[Question], hops: int, count: int, *, seed: int) -> list[Question]:
    """`count` of the questions with so many hops, or all of them."""
    found = [q for q in questions if q.hops == hops]
    return random.Random(seed).sample(found, min(count, len(found)))
