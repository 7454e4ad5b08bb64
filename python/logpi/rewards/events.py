"""Are the events that a model extracted those of the text?

Precision, recall and F1 of triggers and arguments, as event extraction is scored: LLM-PEE
(arXiv:2503.02628), TextEE (arXiv:2311.09562); docs/rewards/events.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from logpi.rewards import contract
from logpi.rewards.contract import Details, Reward
from logpi.rewards.partial_json import MAX_CHARACTERS, answer_of, complete_values

Span = str | tuple[int, int]  # as it is written, or [start, end) in the source
METRICS = ("ti", "tc", "ai", "ac", "ai_plus", "ac_plus")


class Argument(NamedTuple):
    """Who or what takes part in an event, and as what."""

    span: Span
    role: str | None = None


class Event(NamedTuple):
    """What happened: the span that says so, its type, and who takes part."""

    trigger: Span | None = None
    type: str | None = None
    arguments: tuple[Argument, ...] = ()


class Score(NamedTuple):
    """Precision, recall and F1 in [0, 1], and the counts they are made of."""

    precision: float
    recall: float
    f1: float
    matched: int
    predicted: int
    gold: int


class EventScores(NamedTuple):
    """Of the sets of

    ti       (trigger)                         trigger identification
    tc       (trigger, type)                   trigger classification
    ai       (argument, type)                  argument identification
    ac       (argument, type, role)            argument classification
    ai_plus  (argument, type, trigger)         the same, attached to their trigger: AI+ and AC+
    ac_plus  (argument, type, trigger, role)
    """

    ti: Score
    tc: Score
    ai: Score
    ac: Score
    ai_plus: Score
    ac_plus: Score


@dataclass(frozen=True)
class EventExtraction(Reward):
    """The weighted mean of a completion's F1 scores, in [0, 1].

        sum_m weight_m F1_m / sum_m weight_m          0 without JSON, if it is needed

    Attributes:
        ti_weight, tc_weight, ai_weight, ac_weight, ai_plus_weight, ac_plus_weight: of each F1;
            see `EventScores`. At least one is above 0.
        empty_score: what precision, recall and F1 are where neither the completion nor the target
            has an element.
        needs_json: a completion without a complete JSON array or object scores 0, also where there
            is nothing to find: "[]" says that there are no events, silence does not.
        ignore_case: spans, types and roles compare without it.
        target: the column with the right events: JSON, or what `parse_events` reads, as objects.
        source: the column with the texts, or the lists of tokens, that offsets count in: spans
            then compare by what they cover. None: offsets compare to offsets, texts to texts.

    Parts: the six F1 scores by the names of `EventScores`, `events` (how many there are) and
    `parsed` (1 with JSON). Metrics: the six F1 scores of the batch, micro-averaged, and the mean
    of `parsed`.
    """

    ti_weight: float = 0.25
    tc_weight: float = 0.25
    ai_weight: float = 0.25
    ac_weight: float = 0.25
    ai_plus_weight: float = 0.0
    ac_plus_weight: float = 0.0
    empty_score: float = 1.0
    needs_json: bool = True
    ignore_case: bool = True
    target: str = "events"
    source: str | None = None

    def __post_init__(self) -> None:
        for name in METRICS:
            contract.check_number(f"{name}_weight", getattr(self, f"{name}_weight"), 0)
        if not any(self._weights()):
            raise ValueError("weights: expected one above 0, got none")
        contract.check_number("empty_score", self.empty_score, 0, 1)

    def _weights(self) -> list[float]:
        return [getattr(self, f"{name}_weight") for name in METRICS]

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        golds = contract.column(columns, self.target, len(texts))
        found = [parse_events(text) for text in texts]
        sources = None
        if self.source is not None:
            sources = contract.column(columns, self.source, len(texts))
        events = [one or [] for one in found]
        counts = _counts(events, golds, self.target, sources, self.ignore_case)
        scores = [[_score(c, self.empty_score) for c in of_one] for of_one in counts]
        parsed = [float(one is not None) for one in found]
        weights, total = self._weights(), sum(self._weights())
        rewards = [
            sum(w * s.f1 for w, s in zip(weights, of_one, strict=True)) / total
            if there or not self.needs_json
            else 0.0
            for of_one, there in zip(scores, parsed, strict=True)
        ]
        parts = {name: [of_one[i].f1 for of_one in scores] for i, name in enumerate(METRICS)}
        parts |= {"events": [float(len(one)) for one in events], "parsed": parsed}
        micro = _micro(counts, self.empty_score)._asdict()
        metrics = {name: score.f1 for name, score in micro.items()}
        return Details(rewards, parts, metrics | {"parsed": contract.mean(parsed)})


def event_scores(
    predictions: Sequence[Any],
    golds: Sequence[Any],
    *,
    sources: Sequence[Any] | None = None,
    ignore_case: bool = True,
    empty_score: float = 1.0,
) -> EventScores:
    """Micro-averaged scores of a corpus: elements are counted a document, and counts added up.

    Args:
        predictions: one a document: a model's answer, or events (`Event`, or objects such as
            `parse_events` reads). What cannot be read predicts nothing.
        golds: the same; what cannot be read raises.
        sources: texts, or lists of tokens, that offsets count in; as `EventExtraction.source`.
        ignore_case, empty_score: as in `EventExtraction`.

    Raises:
        ValueError: sizes that differ, or a gold event that cannot be read, by its place.
    """
    contract.check_number("empty_score", empty_score, 0, 1)
    if len(predictions) != len(golds):
        raise ValueError(f"golds: expected {len(predictions)}, one a prediction, got {len(golds)}")
    if sources is not None and len(sources) != len(golds):
        raise ValueError(f"sources: expected {len(golds)}, one a document, got {len(sources)}")
    found = [
        parse_events(one) or [] if isinstance(one, str) else list(_events(one))
        for one in predictions
    ]
    return _micro(_counts(found, golds, "golds", sources, ignore_case), empty_score)


# ---- reading ------------------------------------------------------------------------------------


def parse_events(text: str) -> list[Event] | None:
    """The events in a model's answer, in order; None where it holds no JSON.

    Of the answer (behind the thoughts, in the last code fence that holds JSON, its first 65,536
    characters) every complete object with a trigger or a type is an event, wherever it is inside
    lists and other objects: an answer that was cut off has those that were closed.

        {"trigger": span, "type": "..", "arguments": [{"span": span, "role": ".."}, ..]}

    A span is a text, [start, end] offsets (the end is past it), or an object with a "text" or
    with "start" and "end". "event_type" is read as "type", "args" as "arguments"; an argument's
    "text", "argument" or "entity" as its "span"; and {"role": span or [span, ..], ..} as
    arguments. What is of another kind (a number for a type) is taken as not there.
    """
    values = complete_values(answer_of(text)[:MAX_CHARACTERS])
    return list(_events(values)) if values else None


def _events(value: Any) -> Iterator[Event]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Event):
            yield value
        elif isinstance(value, Mapping):
            event = _event(value)
            if event is None:
                waiting.extend(reversed(list(value.values())))
            else:
                yield event
        elif isinstance(value, (list, tuple)):
            waiting.extend(reversed(value))


def _event(found: Mapping[str, Any]) -> Event | None:
    trigger, kind = _span(found.get("trigger")), _name(_first(found, "type", "event_type"))
    if trigger is None and kind is None:
        return None
    return Event(trigger, kind, tuple(_arguments(_first(found, "arguments", "args"))))


def _arguments(found: Any) -> Iterator[Argument]:
    if isinstance(found, Mapping):  # by role
        for role, spans in found.items():
            one = _span(spans)
            several = spans if one is None and isinstance(spans, (list, tuple)) else ()
            for span in (one, *map(_span, several)):
                if span is not None:
                    yield Argument(span, _name(role))
    elif isinstance(found, (list, tuple)):
        for one in found:
            if isinstance(one, Argument):
                yield one
            elif isinstance(one, Mapping):
                span = _span(_first(one, "span", "text", "argument", "entity")) or _span(one)
                if span is not None:
                    yield Argument(span, _name(one.get("role")))


def _span(value: Any) -> Span | None:
    if isinstance(value, Mapping):
        return _name(value.get("text")) or _offsets(value.get("start"), value.get("end"))
    if isinstance(value, (list, tuple)):
        return _offsets(*value) if len(value) == 2 else None
    return _name(value)


def _offsets(start: Any, end: Any) -> tuple[int, int] | None:
    whole = type(start) is int and type(end) is int  # no bool
    return (start, end) if whole and 0 <= start < end else None


def _name(value: Any) -> str | None:
    return (" ".join(value.split()) or None) if isinstance(value, str) else None


def _first(found: Mapping[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _gold(name: str, value: Any) -> list[Event]:
    """The right events; what a model may leave out, or get wrong, raises here."""
    if hasattr(value, "tolist"):  # an array of a data set
        value = value.tolist()
    if isinstance(value, str):
        found = parse_events(value)
        if found is None:
            raise ValueError(f"{name}: expected events as JSON, got {value!r:.80}")
        return found
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise ValueError(f"{name}: expected JSON or a list of events, got {value!r:.80}")
    events = [one if isinstance(one, Event) else _gold_event(one) for one in value]
    for one, event in zip(value, events, strict=True):
        if event is None:
            raise ValueError(f"{name}: expected events with a trigger or a type, got {one!r:.80}")
    return [event for event in events if event is not None]


def _gold_event(one: Any) -> Event | None:
    return _event(one) if isinstance(one, Mapping) else None


# ---- counting -----------------------------------------------------------------------------------


class Count(NamedTuple):
    matched: int
    predicted: int
    gold: int


def _counts(
    found: Sequence[list[Event]],
    golds: Sequence[Any],
    name: str,
    sources: Sequence[Any] | None,
    ignore_case: bool,
) -> list[list[Count]]:
    counts = []
    for i, (events, gold) in enumerate(zip(found, golds, strict=True)):
        source = None if sources is None else sources[i]
        ours = _elements(events, source, ignore_case)
        theirs = _elements(_gold(f"{name}[{i}]", gold), source, ignore_case)
        pairs = zip(ours, theirs, strict=True)
        counts.append([Count(len(a & b), len(a), len(b)) for a, b in pairs])
    return counts


def _elements(events: Sequence[Event], source: Any, ignore_case: bool) -> list[set[Any]]:
    """The sets of `EventScores`, in its order. What is not there is in no element."""
    sets: list[set[Any]] = [set() for _ in METRICS]
    ti, tc, ai, ac, ai_plus, ac_plus = sets

    def plain(span: Span | None) -> Span | None:
        if isinstance(span, tuple) and source is not None:
            span = _covered(source, *span)
        if isinstance(span, tuple) or span is None:
            return span
        span = " ".join(span.split())
        return span.casefold() if ignore_case else span

    for event in events:
        trigger, kind = plain(event.trigger), plain(event.type)
        if trigger is not None:
            ti.add(trigger)
            if kind is not None:
                tc.add((trigger, kind))
        for argument in event.arguments if kind is not None else ():
            span, role = plain(argument.span), plain(argument.role)
            ai.add((span, kind))
            ai_plus.add((span, kind, trigger))
            if role is not None:
                ac.add((span, kind, role))
                ac_plus.add((span, kind, trigger, role))
    return sets


def _covered(source: Any, start: int, end: int) -> str | tuple[int, int]:
    """What [start, end) covers; the offsets themselves where they are outside."""
    if end > len(source):
        return start, end
    covered = source[start:end]
    return covered if isinstance(covered, str) else " ".join(map(str, covered))


def _score(count: Count, empty_score: float) -> Score:
    matched, predicted, gold = count
    if not predicted and not gold:
        return Score(empty_score, empty_score, empty_score, *count)
    precision = matched / predicted if predicted else 0.0
    recall = matched / gold if gold else 0.0
    return Score(precision, recall, 2 * matched / (predicted + gold), *count)


def _micro(counts: Sequence[list[Count]], empty_score: float) -> EventScores:
    totals = (
        Count(*(sum(of_one[i][k] for of_one in counts) for k in range(3)))
        for i in range(len(METRICS))
    )
    return EventScores._make(_score(total, empty_score) for total in totals)
