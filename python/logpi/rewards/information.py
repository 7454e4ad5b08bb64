"""The <information> of a self-search: which tokens it is, and how a real index takes its place."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from logpi.rewards import contract

OPENING, CLOSING = "<information>", "</information>"

# ---- which tokens -------------------------------------------------------------------------------


def information_mask(pieces: Sequence[str], *, tags: bool = True) -> list[bool]:
    """A loss mask: False on the tokens of every information block, of any number of lines.

    Args:
        pieces: the text of each token decoded by itself, `[tokenizer.decode([id]) for id in ids]`,
            so that the mask belongs to the very tokens that were drawn; nothing is tokenised again.
            Half a character decodes to something else, which moves no tag.
        tags: whether the tags belong to the block; with False they are trained on.

    A token that holds as much as one character of a block is part of it. A block that never closes
    goes to the end.
    """
    ends = list(accumulate(map(len, pieces), initial=0))
    return information_mask_at("".join(pieces), list(pairwise(ends)), tags=tags)


def information_mask_at(
    text: str, offsets: Sequence[tuple[int, int]], *, tags: bool = True
) -> list[bool]:
    """The same from a text and the characters of each token, as fast tokenizers report them."""
    spans = list(_spans(text, tags))
    mask, at = [], 0
    for i, (start, end) in enumerate(offsets):
        if not 0 <= start <= end <= len(text) or (i and start < offsets[i - 1][0]):
            raise ValueError(
                f"offsets[{i}]: expected (start, end) within {len(text)} characters, in order, "
                f"got {(start, end)}"
            )
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        inside = at < len(spans) and spans[at][0] < end and start < spans[at][1]
        empty = at < len(spans) and start == end and spans[at][0] < start < spans[at][1]
        mask.append(not (inside or empty))
    return mask


def information_mask_by_ids(
    token_ids: Sequence[int],
    opening: Sequence[int],
    closing: Sequence[int],
    *,
    tags: bool = True,
) -> list[bool]:
    """The same where the tags are tokens of their own, which is exact by construction.

    Args:
        token_ids: of one completion.
        opening, closing: the ids that stand for <information> and </information>.
        tags: as for `information_mask`.
    """
    if not opening or not closing:
        raise ValueError(f"opening, closing: expected token ids, got {opening!r}, {closing!r}")
    ids, opening, closing = list(token_ids), list(opening), list(closing)
    mask = [True] * len(ids)
    start = _find(ids, opening, 0)
    while start is not None:
        body = start + len(opening)
        close = _find(ids, closing, body)
        body_end = len(ids) if close is None else close
        end = len(ids) if close is None else close + len(closing)
        for i in range(start, end) if tags else range(body, body_end):
            mask[i] = False
        start = _find(ids, opening, end)
    return mask


def _find(ids: list[int], wanted: list[int], start: int) -> int | None:
    size = len(wanted)
    return next((i for i in range(start, len(ids) - size + 1) if ids[i : i + size] == wanted), None)


def _spans(text: str, tags: bool) -> Iterator[tuple[int, int]]:
    start = text.find(OPENING)
    while start >= 0:
        close = text.find(CLOSING, start)
        body_end, end = (close, close + len(CLOSING)) if close >= 0 else (len(text), len(text))
        yield (start, end) if tags else (start + len(OPENING), body_end)
        start = text.find(OPENING, end)


# ---- from memory to a real index ----------------------------------------------------------------


@dataclass(frozen=True)
class LocalIndex:
    """BM25 over passages in memory, by bm25s (logpi[rewards]); deterministic."""

    passages: Sequence[str]
    _retriever: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.passages, str) or not self.passages:
            raise ValueError(f"passages: expected a list of texts, got {self.passages!r:.80}")
        import bm25s

        retriever = bm25s.BM25()
        tokens = bm25s.tokenize(list(self.passages), show_progress=False, return_ids=False)
        # A corpus without a word has no vocabulary; this one no query holds.
        retriever.index([*tokens, ["\0"]], show_progress=False)
        object.__setattr__(self, "_retriever", retriever)

    def __call__(self, query: str, top_k: int) -> list[str]:
        """At most `top_k` passages that share a word with the query, best first."""
        import bm25s

        (words,) = bm25s.tokenize([query[:4096]], show_progress=False, return_ids=False)
        if not words:
            return []
        scores = self._retriever.get_scores(words)[: len(self.passages)]
        order = heapq.nsmallest(top_k, range(len(scores)), key=lambda i: (-scores[i], i))
        return [self.passages[i] for i in order if scores[i] > 0]


class Grounded(NamedTuple):
    """A text with passages in it.

    Attributes:
        text: what stands there now.
        asked: for each search in order, whether the index was asked.
    """

    text: str
    asked: list[bool]


@dataclass(frozen=True)
class RealSearch:
    """Puts passages of a real index where the model wrote its own: from simulation to reality.

    Attributes:
        search: `(query, top_k) -> passages`; a `LocalIndex`, or a client of any engine.
        top_k: passages a query; 3 in the paper.
    """

    search: Callable[[str, int], Sequence[str]]
    top_k: int = 3

    def __post_init__(self) -> None:
        if not callable(self.search):
            raise TypeError(f"search: expected a function, got {type(self.search).__name__}")
        contract.check_count("top_k", self.top_k)

    def information(self, query: str) -> str:
        """The block that answers a query, to be appended to a generation that stopped behind one.

        Passages are on a line each, and hold no tag: none can end its block.
        """
        found = list(self.search(query, self.top_k))[: self.top_k]
        lines = (_ANY_TAG.sub(" ", " ".join(passage.split())) for passage in found)
        return f"{OPENING}\n" + "\n".join(lines) + f"\n{CLOSING}"

    def ground(self, text: str, ask: Sequence[bool] | None = None) -> Grounded:
        """Replaces the information behind each search, or behind those that `ask` says.

        What came after was written with the old one in view: to train on it, generate it anew.
        """
        found = list(_SEARCH.finditer(text))
        if ask is not None and len(ask) != len(found):
            raise ValueError(f"ask: expected one value a search, {len(found)}, got {len(ask)}")
        asked = [True] * len(found) if ask is None else [bool(one) for one in ask]
        pieces, last = [], 0
        for match, wanted in zip(found, asked, strict=True):
            if wanted:
                pieces += [text[last : match.end(1)], self.information(match[2].strip())]
                last = match.end()
        return Grounded("".join([*pieces, text[last:]]), asked)


_ANY_TAG = re.compile(r"</?(?:think|search|information|answer)>")
_SEARCH = re.compile(
    r"(<search>((?:(?!<search>|</search>)[^\n])*)</search>\s*)"
    r"<information>(?:(?!</?information>).)*</information>",
    re.DOTALL,
)


def entropy_guided(query_entropies: Iterable[Sequence[float]]) -> list[bool]:
    """When to ask the real index: at the first search, and whenever the model grew less certain.

    Args:
        query_entropies: of each search in order, the entropies of its query's tokens (nats or bits,
            as long as all are), as `token_log_probs(.., return_entropy=True)` gives them.

    Returns:
        For each search, whether the mean entropy of its query rose above that of the one before. A
        query without a token counts as 0; NaN asks, too: nothing is known.
    """
    asked: list[bool] = []
    before = 0.0
    for entropies in query_entropies:
        now = contract.mean([float(one) for one in entropies])
        asked.append(not asked or not now <= before)
        before = now
    return asked


def query_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the characters of each query that is followed by its information, in the
    order of `RealSearch.ground`: which tokens' entropies `entropy_guided` is to be given."""
    return [match.span(2) for match in _SEARCH.finditer(text)]
