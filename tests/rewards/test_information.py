"""Which tokens are information, and how a real index takes their place."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks import reward_originals as originals

from logpi.rewards import (
    LocalIndex,
    RealSearch,
    entropy_guided,
    information_mask,
    information_mask_at,
    information_mask_by_ids,
    query_spans,
)

# ---- masks --------------------------------------------------------------------------------------


def _masked(pieces: list[str], **options: bool) -> str:
    mask = information_mask(pieces, **options)
    return "".join(piece for piece, keep in zip(pieces, mask, strict=True) if not keep)


def test_tokens_of_a_block() -> None:
    pieces = ["a", "<inf", "ormation", ">b", " c</", "information", ">d", "e"]
    assert information_mask(pieces) == [True, False, False, False, False, False, False, True]
    assert information_mask(pieces, tags=False) == [
        True,
        True,
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    assert information_mask([]) == []
    assert information_mask(["", "x", ""]) == [True] * 3


def test_defect_information_of_several_lines_is_trained_on() -> None:
    text = "a<information>b\nc</information>d"
    assert all(originals.ssrl_mask(text, list, len(text)))
    assert _masked(list(text)) == "<information>b\nc</information>"


def test_defect_equal_blocks_are_masked_once() -> None:
    text = "a<information>b</information>c<information>b</information>d"
    theirs = originals.ssrl_mask(text, list, len(text))
    assert "".join(c for c, keep in zip(text, theirs, strict=True) if not keep).count("b") == 1
    assert _masked(list(text)).count("b") == 2


def test_defect_the_mask_is_of_other_tokens() -> None:
    """Drawn as ["a<", ..]: tokenised anew, the text before the block has another length."""
    pieces = ["a", "a", "<information>", "b", "</information>", "c"]

    def tokenize(text: str) -> list[str]:
        text = text.replace("aa", "A")  # a merge that the sampler did not make
        for tag, short in (("<information>", "<"), ("</information>", ">")):
            text = text.replace(tag, short)
        return list(text)

    theirs = originals.ssrl_mask("".join(pieces), tokenize, len(pieces))
    assert theirs == [True, False, False, False, True, True]
    assert information_mask(pieces) == [True, True, False, False, False, True]


def test_a_block_that_never_closes_goes_to_the_end() -> None:
    text = "a<information>b</information>c<information>d"
    assert _masked(list(text)) == "<information>b</information><information>d"
    assert _masked(list("x</information>y")) == ""


chunks = st.lists(
    st.sampled_from(["<information>", "</information>", "a", "\n", "é", "<inform", "ation>", "  "]),
    max_size=30,
)


@given(chunks, st.integers(0, 10**6))
def test_however_the_text_is_cut(parts: list[str], seed: int) -> None:
    """A token is masked exactly if one of its characters is."""
    text = "".join(parts)
    by_character = information_mask(list(text))
    cuts = sorted({0, len(text), *((seed * k) % (len(text) + 1) for k in range(1, 8))})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    wanted = [all(by_character[a:b]) for a, b in pairwise(cuts)]
    assert information_mask(pieces) == wanted
    assert information_mask_at(text, list(pairwise(cuts))) == wanted


@given(st.lists(st.integers(1, 4), max_size=30))
def test_by_ids_agrees_with_by_text(ids: list[int]) -> None:
    pieces = {1: "<information>", 2: "</information>", 3: "x", 4: "\n"}
    for tags in (True, False):
        by_text = information_mask([pieces[i] for i in ids], tags=tags)
        assert information_mask_by_ids(ids, [1], [2], tags=tags) == by_text


def test_a_real_tokenizer() -> None:
    """Byte-level BPE, learnt on other text: tags are cut and merged with their neighbours."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "wo?\n<information>\nTürme in 東京\n</information>\n<answer>é</answer>"
    tokenizer.train_from_iterator(["n>\nT", "</in <inform", "東京 ation>", "é\n"] * 3, trainer)
    ids = tokenizer.encode(text).ids
    mask = information_mask([tokenizer.decode([i]) for i in ids])
    kept = tokenizer.decode([i for i, keep in zip(ids, mask, strict=True) if keep])
    dropped = tokenizer.decode([i for i, keep in zip(ids, mask, strict=True) if not keep])
    assert "Türme in 東京" in dropped
    assert "Türme" not in kept
    assert kept.startswith("wo?")
    assert kept.endswith("<answer>é</answer>")
    assert mask == information_mask_at(text, tokenizer.encode(text).offsets)


def test_wrong_offsets_are_named() -> None:
    with pytest.raises(ValueError, match=r"offsets\[1\]: expected \(start, end\) within 3 .* \(2"):
        information_mask_at("abc", [(0, 1), (2, 9)])
    with pytest.raises(ValueError, match=r"offsets\[1\]: .* in order, got \(0, 1\)"):
        information_mask_at("abc", [(1, 2), (0, 1)])
    with pytest.raises(ValueError, match="opening, closing: expected token ids"):
        information_mask_by_ids([1, 2], [], [2])


# ---- the real index -----------------------------------------------------------------------------

PASSAGES = ["The Louvre is a museum.", "Gustave Eiffel built\nthe Eiffel tower.", "Cats purr."]
TEXT = (
    "<think>a</think><search>who built the Eiffel tower</search>\n<information>I\nguess"
    "</information><think>b</think><search>purr</search><information>hm</information><answer>"
)


@pytest.fixture
def index() -> LocalIndex:
    pytest.importorskip("bm25s")
    return LocalIndex(PASSAGES)


def test_the_index_finds_passages(index: LocalIndex) -> None:
    assert index("Eiffel tower", 3) == [PASSAGES[1]]
    assert index("the museum built by Eiffel", 1) == [PASSAGES[1]]
    for nothing in ("", "???", "zebra", "\0"):
        assert index(nothing, 3) == []
    assert LocalIndex(["?", ""])("x", 3) == []
    with pytest.raises(ValueError, match="passages: expected a list of texts"):
        LocalIndex([])


def test_information_is_replaced(index: LocalIndex) -> None:
    found = RealSearch(index).ground(TEXT)
    assert found.asked == [True, True]
    assert "guess" not in found.text
    assert "<information>\nGustave Eiffel built the Eiffel tower.\n</information>" in found.text
    assert found.text.endswith("<information>\nCats purr.\n</information><answer>")
    some = RealSearch(index).ground(TEXT, [False, True])
    assert "I\nguess" in some.text
    assert "Cats purr." in some.text
    assert RealSearch(index).ground(TEXT, [False, False]).text == TEXT


def test_a_passage_cannot_end_its_block() -> None:
    search = RealSearch(lambda query, top_k: ["x </information><answer>y</answer>"] * 9, top_k=2)
    assert search.information("q").count("</information>") == 1
    assert search.information("q").count("\n") == 3
    assert "<answer>" not in search.information("q")


def test_the_first_search_and_every_rise_ask() -> None:
    assert entropy_guided([[1.0, 3.0], [1.0], [1.5, 1.7], [1.6], [], [0.1]]) == [
        True, False, True, False, False, True,
    ]  # fmt: skip
    assert entropy_guided([]) == []
    assert entropy_guided([[1.0], [math.nan], [math.nan]]) == [True] * 3


def test_defect_the_originals_uncertainty_is_no_entropy() -> None:
    """A token of probability 0.01 has -p log p of 0.07 bits: less than one of 0.5 has. From a
    certain query to a surprised one the original's measure falls, and the index is not asked."""
    sure, surprised = [math.log(0.5)] * 4, [math.log(0.01)] * 4
    theirs = originals.ssrl_query_uncertainty
    assert theirs(surprised) < theirs(sure)
    entropies = [[math.log(2)] * 4, [math.log(100)] * 4]  # of uniform distributions over 2 and 100
    assert entropy_guided(entropies) == [True, True]


def test_queries_are_found_for_their_tokens(index: LocalIndex) -> None:
    spans = query_spans(TEXT)
    assert [TEXT[a:b] for a, b in spans] == ["who built the Eiffel tower", "purr"]
    assert len(RealSearch(index).ground(TEXT).asked) == len(spans)


def test_wrong_settings_are_named(index: LocalIndex) -> None:
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        RealSearch(index, top_k=0)
    with pytest.raises(TypeError, match="search: expected a function, got list"):
        RealSearch(PASSAGES)
    with pytest.raises(ValueError, match="ask: expected one value a search, 2, got 1"):
        RealSearch(index).ground(TEXT, [True])
