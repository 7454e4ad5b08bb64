"""A synthetic corpus: 1000 event types, sentences with their events, and what training has not.

A type is a domain and an action ("football dismiss"). Verbs stand for several actions, told apart
by what is acted on; nouns stand in several domains, told apart by the nouns beside them.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from logpi.rewards.events import Argument, Event

KINDS = ("person", "thing", "plan", "place")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ADJECTIVES = ("old", "young", "famous", "local", "large", "foreign", "former", "small")
FRAMES = (  # A: who acts, V: the verb, O: what is acted on; the place and the day may be left out
    "{A} {V} {O}[ at {P}][ on {D}]",
    "{O} was {V} by {A}[ at {P}][ on {D}]",
    "[on {D} ]{A} {V} {O}[ near {P}]",
    "[at {P} ]{A} {V} {O}[ on {D}]",
)
UNSEEN_FRAMES = (
    "it was {A} that {V} {O}[ at {P}][ on {D}]",
    "[near {P} ]{O} , sources said , was {V} by {A}[ on {D}]",
    "{A} , as expected , {V} {O}[ on {D}][ at {P}]",
)
NO_EVENT = (  # {V}: a verb that is no trigger here
    "the {V} {T} lay at {P}",
    "{A} stood beside the {V} {T}",
    "{A} waited at {P}",
    "{T} belonged to {A}",
)
JOINTS = (" , while ", " and ", " after ", " ; ")


class Domain(NamedTuple):
    gloss: str
    nouns: dict[str, tuple[str, ...]]  # by kind


class Action(NamedTuple):
    object: str  # a kind
    gist: str
    agent_role: str
    object_role: str
    verbs: tuple[str, ...]


class EventType(NamedTuple):
    """`description` is what recall reads: it holds none of the verbs and two of the nouns."""

    name: str
    description: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """`unseen` says what training had none of: its "type", "verb" (in that domain) or "frame"."""

    text: str
    events: tuple[Event, ...]
    unseen: frozenset[str] = frozenset()


class Corpus:
    """The inventory, and sentences drawn from it.

    Of the types, `unseen_fraction` is kept from training, and of the pairs of a verb and a domain
    as many again, but never all verbs of a type.
    """

    def __init__(
        self, *, seed: int = 0, num_types: int = 1000, unseen_fraction: float = 0.1
    ) -> None:
        self.domains, self.actions = _lexicon()
        draw = random.Random(f"{seed}/types")
        pairs = [(d, a) for d in self.domains for a in self.actions]
        if not 2 <= num_types <= len(pairs):
            raise ValueError(f"num_types: expected 2 to {len(pairs)}, got {num_types}")
        draw.shuffle(pairs)
        self.pairs = pairs[:num_types]
        self.types = [self._type(d, a) for d, a in self.pairs]
        draw.shuffle(pairs)
        self._unseen_types = {pair for pair in pairs if draw.random() < unseen_fraction}
        self._unseen_verbs = {
            (domain, action, draw.choice(self.actions[action].verbs))
            for domain, action in pairs
            if draw.random() < unseen_fraction * len(self.actions[action].verbs)
        }
        self._domains_of: dict[str, set[str]] = {}
        for name, domain in self.domains.items():
            for noun in (noun for nouns in domain.nouns.values() for noun in nouns):
                self._domains_of.setdefault(noun, set()).add(name)
        self.meanings: dict[str, list[str]] = {}  # of a verb: actions
        for action, told in self.actions.items():
            for verb in told.verbs:
                self.meanings.setdefault(verb, []).append(action)

    def _type(self, domain: str, action: str) -> EventType:
        told, where = self.actions[action], self.domains[domain]
        nouns = [where.nouns[kind][0] for kind in ("person", "place")]
        return EventType(
            f"{domain} {action}",
            f"{domain} , {where.gloss} : {told.gist} ; {' , '.join(nouns)}",
            (told.agent_role, told.object_role, "place", "day"),
        )

    @property
    def seen_types(self) -> list[EventType]:
        return [
            t for t, p in zip(self.types, self.pairs, strict=True) if p not in self._unseen_types
        ]

    def words(self) -> list[str]:
        """Every word of the lexicon and the frames."""
        texts = [t.description + " " + t.name + " " + " ".join(t.roles) for t in self.types]
        texts += [*FRAMES, *UNSEEN_FRAMES, *NO_EVENT, *JOINTS, *DAYS, *ADJECTIVES, *self.meanings]
        texts += self._domains_of
        return sorted({w for text in texts for w in text.replace("[", " ").replace("]", " ").split()
                       if "{" not in w})  # fmt: skip

    def training(self, count: int, *, seed: int) -> list[Sentence]:
        """Sentences of seen types, verbs and frames."""
        draw = random.Random(f"{seed}/training")
        pairs = [pair for pair in self.pairs if pair not in self._unseen_types]
        return [self._sentence(draw, pairs, training=True) for _ in range(count)]

    def test(self, count: int, *, seed: int) -> list[Sentence]:
        """Sentences of any type and verb, every third clause in an unseen frame."""
        draw = random.Random(f"{seed}/test")
        return [self._sentence(draw, self.pairs, training=False) for _ in range(count)]

    def _sentence(
        self, draw: random.Random, pairs: Sequence[tuple[str, str]], *, training: bool
    ) -> Sentence:
        """One to three clauses; one in five has no event."""
        count = draw.choice((1, 2, 2, 3))
        kinds = [draw.random() < 0.8 for _ in range(count)]
        clauses, events, unseen = [], [], set()
        taken: set[str] = set()  # no word is a trigger twice, or once a trigger and once not
        domain = draw.choice(pairs)[0]
        for is_event in kinds:
            here = [pair for pair in pairs if pair[0] == domain] if draw.random() < 0.5 else pairs
            domain, action = draw.choice(here or pairs)
            if not is_event:
                clauses.append(self._no_event(draw, domain, taken))
                continue
            verbs = [verb for verb in self.actions[action].verbs if verb not in taken]
            if training:
                verbs = [v for v in verbs if (domain, action, v) not in self._unseen_verbs]
            if not verbs:
                continue
            verb = draw.choice(verbs)
            taken.add(verb)
            new_frame = not training and draw.random() < 1 / 3
            frame = draw.choice(UNSEEN_FRAMES if new_frame else FRAMES)
            clause, arguments = self._clause(draw, frame, domain, action, verb)
            clauses.append(clause)
            events.append(Event(verb, f"{domain} {action}", arguments))
            if (domain, action) in self._unseen_types:
                unseen.add("type")
            elif (domain, action, verb) in self._unseen_verbs:
                unseen.add("verb")
            if new_frame:
                unseen.add("frame")
        if not clauses:
            return self._sentence(draw, pairs, training=training)
        text = clauses[0]
        for clause in clauses[1:]:
            text += draw.choice(JOINTS) + clause
        return Sentence(text + " .", tuple(events), frozenset(unseen))

    def _clause(
        self, draw: random.Random, frame: str, domain: str, action: str, verb: str
    ) -> tuple[str, tuple[Argument, ...]]:
        told, nouns = self.actions[action], self.domains[domain].nouns
        text = _optional(draw, frame)
        while True:  # until the nouns leave one domain
            found = {"A": draw.choice(nouns["person"]), "O": draw.choice(nouns[told.object])}
            if "{P}" in text:
                found["P"] = draw.choice(nouns["place"])
            left = set.intersection(*(self._domains_of[noun] for noun in found.values()))
            if len(left) == 1 and len(set(found.values())) == len(found):
                break
            if draw.random() < 0.1 and "{P}" not in text:  # two nouns may not be enough
                text += " at {P}"
        for key, noun in found.items():
            if draw.random() < 0.3:
                found[key] = f"{draw.choice(ADJECTIVES)} {noun}"
        roles = {"A": told.agent_role, "O": told.object_role, "P": "place", "D": "day"}
        if "{D}" in text:
            found["D"] = draw.choice(DAYS)
        for key, words in found.items():
            text = text.replace("{" + key + "}", words if key == "D" else f"the {words}")
        arguments = tuple(Argument(words, roles[key]) for key, words in found.items())
        return text.replace("{V}", verb), arguments

    def _no_event(self, draw: random.Random, domain: str, taken: set[str]) -> str:
        text, nouns = draw.choice(NO_EVENT), self.domains[domain].nouns
        verb = draw.choice([verb for verb in self.meanings if verb not in taken])
        if "{V}" in text:
            taken.add(verb)
        things = draw.choice(nouns["thing"])
        return text.format(V=verb, T=things if "{V}" in text else f"the {things}",
                           A=f"the {draw.choice(nouns['person'])}",
                           P=f"the {draw.choice(nouns['place'])}")  # fmt: skip


def _optional(draw: random.Random, frame: str) -> str:
    """Keeps or leaves out what stands in brackets."""
    parts = frame.split("[")
    kept = parts[0]
    for part in parts[1:]:
        inside, _, after = part.partition("]")
        kept += (inside if draw.random() < 0.5 else "") + after
    return kept


def _lexicon() -> tuple[dict[str, Domain], dict[str, Action]]:
    told = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text())
    domains, actions = {}, {}
    for name, line in told["domains"].items():
        gloss, *nouns = (part.strip() for part in line.split("|"))
        by_kind = zip(KINDS, nouns, strict=True)
        domains[name] = Domain(gloss.replace(",", " ,"), {k: tuple(n.split()) for k, n in by_kind})
    for name, line in told["actions"].items():
        kind, gist, agent, acted_on, verbs = (part.strip() for part in line.split("|"))
        actions[name] = Action(kind, gist, agent, acted_on, tuple(verbs.split()))
    return domains, actions
