"""The LLM-PEE recipe in miniature: corpus, recall, partitions, merge, votes, a run that resumes."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.frameworks

FOLDER = Path(__file__).parents[2] / "recipes" / "llm_pee"
MODULES = ("corpus", "partition", "recall", "lm", "system", "annotation", "labels", "measure",
           "report", "run")  # fmt: skip
TINY = ["--types", "40", "--sentences", "60", "--recall-steps", "4", "--steps", "4",
        "--hidden-size", "16", "--layers", "1", "--top-k", "8", "--test", "10", "--test-all", "2",
        "--test-by-types", "4", "--by-types", "10", "40", "--labels", "8", "--threads", "1",
        "--batch-size", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    for needed in ("transformers", "tokenizers", "statsmodels", "jinja2", "matplotlib", "rich"):
        pytest.importorskip(needed)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def corpus(recipe: SimpleNamespace) -> Any:
    return recipe.corpus.Corpus(seed=3)


# ---- corpus -------------------------------------------------------------------------------------


def test_the_inventory(corpus: Any) -> None:
    names = [one.name for one in corpus.types]
    assert len(set(names)) == 1000
    assert len({one.description for one in corpus.types}) == 1000
    assert 850 < len(corpus.seen_types) < 950
    verbs = set(corpus.meanings)
    for one, (_, action) in zip(corpus.types, corpus.pairs, strict=True):
        # the description of a type gives none of its verbs away
        assert not set(corpus.actions[action].verbs) & set(one.description.split())
    assert sum(len(meanings) > 1 for meanings in corpus.meanings.values()) >= 10
    assert all(verb == verb.lower() for verb in verbs)


def test_sentences_say_what_happened(corpus: Any) -> None:
    for one in corpus.test(300, seed=1):
        words = one.text.split()
        triggers = [event.trigger for event in one.events]
        assert len(set(triggers)) == len(triggers)
        for event in one.events:
            assert words.count(event.trigger) == 1
            domain, action = event.type.split()
            assert action in corpus.meanings[event.trigger]
            for argument in event.arguments:
                assert f" {argument.span} " in f" {one.text} "
            nouns = [a.span.split()[-1] for a in event.arguments if a.role != "day"]
            assert {domain} == set.intersection(*(corpus._domains_of[noun] for noun in nouns))


def test_training_has_nothing_that_is_held_out(recipe: SimpleNamespace, corpus: Any) -> None:
    seen = {one.name for one in corpus.seen_types}
    used: set[tuple[str, str]] = set()
    for one in corpus.training(2000, seed=0):
        assert not one.unseen
        assert "sources said" not in one.text
        for event in one.events:
            assert event.type in seen
            used.add((event.type, event.trigger))
    marked = {"type": 0, "verb": 0, "frame": 0}
    for one in corpus.test(500, seed=0):
        for kind in one.unseen:
            marked[kind] += 1
        if any(event.type not in seen for event in one.events):
            assert "type" in one.unseen
        if one.unseen == {"verb"}:
            assert any((event.type, event.trigger) not in used for event in one.events)
    assert min(marked.values()) > 20


def test_a_smaller_inventory_keeps_what_is_held_out(recipe: SimpleNamespace, corpus: Any) -> None:
    small = recipe.corpus.Corpus(seed=3, num_types=50)
    assert small.types == corpus.types[:50]
    whole = {one.name for one in corpus.seen_types}
    assert all((one.name in whole) == (one in small.seen_types) for one in small.types)
    with pytest.raises(ValueError, match="num_types: expected 2 to 1000, got 1001"):
        recipe.corpus.Corpus(num_types=1001)


# ---- recall -------------------------------------------------------------------------------------


def test_maxsim_is_a_loop(recipe: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 5, 4, generator=generator)
    documents = torch.randn(6, 7, 4, generator=generator)
    query_mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    document_mask = torch.arange(7) < torch.tensor([[7], [1], [2], [3], [4], [6]])
    found = recipe.recall.maxsim(queries, query_mask, documents, document_mask)
    for b in range(3):
        for n in range(6):
            expected = sum(
                max((q @ d).item() for d, there in zip(documents[n], document_mask[n], strict=True)
                    if there)
                for q, there in zip(queries[b], query_mask[b], strict=True) if there
            )  # fmt: skip
            assert found[b, n].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_encoder_learns(recipe: SimpleNamespace) -> None:
    corpus = recipe.corpus.Corpus(num_types=40)
    tokenizer = recipe.lm.build_tokenizer(corpus.words())
    torch.manual_seed(0)
    encoder = recipe.recall.LateInteraction(tokenizer)
    heldout = corpus.training(100, seed=1)

    def recalled() -> float:
        told = encoder.recall([one.text for one in heldout], corpus.types)
        of_all = told.double().logsumexp(-1)  # 0, but for the roundings of what is summed
        assert of_all.abs().max() <= 2 * torch.finfo(told.dtype).eps * told.abs().max()
        return float(recipe.recall.recall_at(told, heldout, corpus.types, (5,))[5])

    before = recalled()
    recipe.recall.train(encoder, corpus.training(400, seed=0), corpus.seen_types, steps=40,
                        batch_size=24, num_negatives=30)  # fmt: skip
    assert before < 0.35
    assert recalled() > 0.7


def test_recall_at_counts_types(recipe: SimpleNamespace, corpus: Any) -> None:
    sentences = corpus.test(50, seed=2)
    index = {one.name: i for i, one in enumerate(corpus.types)}
    told = torch.rand(50, 1000, generator=torch.Generator().manual_seed(0))
    above = [int((told[row] > told[row, index[event.type]]).sum())
             for row, one in enumerate(sentences) for event in one.events]  # fmt: skip
    found = recipe.recall.recall_at(told, sentences, corpus.types, range(1, 1001))
    for k in range(1, 1001):
        assert found[k] == sum(better < k for better in above) / len(above)


def _tiny_model(recipe: SimpleNamespace, corpus: Any) -> tuple[Any, Any]:
    tokenizer = recipe.lm.build_tokenizer(corpus.words())
    torch.manual_seed(0)
    return recipe.lm.build_model(tokenizer, hidden_size=16, num_layers=1).eval(), tokenizer


def test_recall_by_name_is_the_probability_of_the_name(recipe: SimpleNamespace) -> None:
    corpus = recipe.corpus.Corpus(num_types=12)
    model, tokenizer = _tiny_model(recipe, corpus)
    texts = [one.text for one in corpus.test(3, seed=0)]
    told = recipe.system.recall_by_name(model.double(), tokenizer)(texts, corpus.types)
    for row, text in enumerate(texts):
        prompt = tokenizer(recipe.lm.naming_prompt(text))["input_ids"]
        sums = []
        for one in corpus.types:
            name = [*tokenizer(one.name)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + name])).logits[0, len(prompt) - 1 : -1]
            sums.append(logits.double().log_softmax(-1)[range(len(name)), name].sum())
        expected = torch.stack(sums).log_softmax(-1)
        torch.testing.assert_close(told[row], expected, rtol=0, atol=1e-12)


# ---- partitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "average", "level"])
@pytest.mark.parametrize(("size", "count"), [(20, 4), (7, 3), (3, 5), (1, 1)])
def test_each_type_is_in_one_part(
    recipe: SimpleNamespace, strategy: str, size: int, count: int
) -> None:
    draw = random.Random(size)
    confidences = [draw.random() ** 3 for _ in range(size)]
    parts = recipe.partition.STRATEGIES[strategy](confidences, count, 0)
    assert sorted(i for part in parts for i in part) == list(range(size))
    assert len(parts) == min(count, size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_level_is_sorted(recipe: SimpleNamespace) -> None:
    confidences = [0.1, 0.5, 0.05, 0.3, 0.04, 0.01]
    assert recipe.partition.level_parts(confidences, 3) == [[1, 3], [0, 2], [4, 5]]


def test_average_balances_the_mass(recipe: SimpleNamespace) -> None:
    confidences = [0.1, 0.4, 0.2, 0.3]
    assert recipe.partition.average_parts(confidences, 2) == [[1, 0], [3, 2]]
    draw = random.Random(0)
    spreads: dict[str, list[float]] = {"random": [], "average": [], "level": []}
    for seed in range(50):
        confidences = [draw.random() for _ in range(20)]
        for name, found in spreads.items():
            parts = recipe.partition.STRATEGIES[name](confidences, 4, seed)
            mass = [sum(confidences[i] for i in part) for part in parts]
            found.append(max(mass) - min(mass))
    assert max(spreads["average"]) < 0.5  # of about 10
    assert sum(spreads["average"]) < 0.2 * sum(spreads["random"])
    assert min(spreads["level"]) > max(spreads["average"])


def test_random_depends_on_the_seed_alone(recipe: SimpleNamespace) -> None:
    parts = recipe.partition.random_parts
    assert parts([0.1] * 20, 4, 1) == parts([0.2] * 20, 4, 1) != parts([0.1] * 20, 4, 2)
    with pytest.raises(ValueError, match="count: expected at least 1 part, got 0"):
        parts([0.1], 0)


# ---- the system ---------------------------------------------------------------------------------


def test_answers_survive_the_tokenizer(recipe: SimpleNamespace, corpus: Any) -> None:
    from logpi.rewards.events import parse_events

    tokenizer = recipe.lm.build_tokenizer(corpus.words())
    names = [one.name for one in corpus.types]
    for one in corpus.test(100, seed=0):
        answer = recipe.lm.detection_answer(one.events, names)
        ids = tokenizer(answer)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == answer
        assert parse_events(answer) == [event._replace(arguments=()) for event in one.events]
        ids = tokenizer(one.text + " " + corpus.types[0].description)["input_ids"]
        assert tokenizer.unk_token_id not in ids


def _oracle(recipe: SimpleNamespace, sentences: Sequence[Any]) -> Callable[..., list[str]]:
    """Answers every prompt as it should be answered."""
    events = {one.text: one.events for one in sentences}

    def ask(prompts: Sequence[str]) -> list[str]:
        answers = []
        for prompt in prompts:
            text = prompt.removeprefix("sentence : ")
            if text.endswith(" arguments :"):
                text, _, asked = text.partition(" event : ")
                begins = {f"{e.type} trigger : {e.trigger} roles :": e for e in events[text]}
                told = next(e for words, e in begins.items() if asked.startswith(words))
                answers.append(recipe.lm.argument_answer(told))
            else:
                text, _, asked = text.partition(" types : ")
                names = asked.removesuffix(" events :").split(" ; ")
                answers.append(recipe.lm.detection_answer(events[text], names))
        return answers

    return ask


@pytest.mark.parametrize("strategy", ["random", "average", "level"])
def test_nothing_is_lost_but_by_recall(recipe: SimpleNamespace, corpus: Any, strategy: str) -> None:
    from logpi.rewards.events import event_scores

    sentences = corpus.test(60, seed=4)
    texts = [one.text for one in sentences]
    told = torch.rand(60, 1000, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    golds = [list(one.events) for one in sentences]
    for top_k, num_parts in ((None, 50), (300, 7), (300, 1)):
        extractor = recipe.system.Extractor(
            _oracle(recipe, sentences), corpus.types, lambda *_: told, top_k=top_k,
            num_parts=num_parts, strategy=strategy)  # fmt: skip
        found = event_scores(extractor(texts), golds)
        recall = recipe.recall.recall_at(told, sentences, corpus.types, (top_k or 1000,))
        assert found.tc.recall == pytest.approx(recall[top_k or 1000])
        assert found.tc.precision == found.ac.precision == 1.0
    assert 0.2 < found.tc.recall < 0.4


def test_merge(recipe: SimpleNamespace, corpus: Any) -> None:
    first, second, third, other = (one.name for one in corpus.types[:4])

    def ask(prompts: Sequence[str]) -> list[str]:
        said = [f'{{"trigger": "sold", "type": "{name}"}}' for name in (first, second, third)]
        return ["[" + ", ".join([*said, f'{{"trigger": "bought", "type": "{first}"}}',
                                 f'{{"trigger": "it", "type": "{other}"}}']) + "]"
                for _ in prompts]  # fmt: skip

    # the third is not asked about; "it" and what is in no prompt are not kept, "bought" is not said
    told = torch.tensor([[0.2, 0.7, 0.01, 0.09]]).log()
    expected = {"confident": {("sold", second)}, "union": {("sold", first), ("sold", second)}}
    for merge, pairs in expected.items():
        extractor = recipe.system.Extractor(ask, corpus.types[:4], lambda *_: told, top_k=2,
                                            num_parts=2, merge=merge)  # fmt: skip
        found = extractor.detect(["they sold it ."])[0]
        assert {(event.trigger, event.type) for event in found} == pairs
    with pytest.raises(ValueError, match="merge: expected one of confident, union, got 'all'"):
        recipe.system.Extractor(ask, corpus.types, lambda *_: told, merge="all")


def test_arguments_have_roles_of_the_type_and_words_of_the_text(
    recipe: SimpleNamespace, corpus: Any
) -> None:
    from logpi.rewards.events import Argument, Event

    kind = next(one for one in corpus.types if one.name == "museum sell")
    answer = '{"seller": "curator", "goods": "the mona lisa", "thief": "guard", "place": "vault"}'
    extractor = recipe.system.Extractor(lambda prompts: [answer] * len(prompts), [kind], None)
    text = "the curator sold the mask at the vault by the guard ."
    found = extractor.add_arguments([text], [[Event("sold", kind.name)]])
    assert found[0][0].arguments == (Argument("curator", "seller"), Argument("vault", "place"))
    broken = recipe.system.Extractor(lambda prompts: ["no idea"] * len(prompts), [kind], None)
    assert broken.add_arguments([text], [[Event("sold", kind.name)]])[0][0].arguments == ()


# ---- votes --------------------------------------------------------------------------------------


def _says(*answers: str) -> Callable[..., str]:
    return lambda question, options, number: answers[min(number, len(answers)) - 1]


def test_the_vote(recipe: SimpleNamespace) -> None:
    vote = recipe.annotation.Vote
    found = vote([_says("a"), _says("b"), _says("a")])("?", ["a", "b"])
    assert found == ("a", 1, ("a", "b", "a"))
    # a tie: all are asked again, and the last round counts
    found = vote([_says("a", "b"), _says("b")])("?", ["a", "b", "c"])
    assert found == ("b", 2, ("a", "b"))
    assert vote([_says("a"), _says("b")], max_rounds=4)("?", ["a", "b"]) == (None, 4, ("a", "b"))


def test_the_second_round_is_between_the_tied(recipe: SimpleNamespace) -> None:
    asked: list[tuple[str, ...]] = []

    def first(question: str, options: Sequence[str], number: int) -> str:
        asked.append(tuple(options))
        return options[0]

    others = [_says("c", "a"), _says("a", "c"), _says("c", "a"), _says("b", "a")]
    found = recipe.annotation.Vote([first, *others])("?", ["a", "b", "c"])
    assert asked == [("a", "b", "c"), ("a", "c")]
    assert found.answer == "a"
    with pytest.raises(ValueError, match="answer: expected one of"):
        recipe.annotation.Vote([_says("d")])("?", ["a", "b"])
    with pytest.raises(ValueError, match="annotators: expected at least one"):
        recipe.annotation.Vote([])


def test_agreement(recipe: SimpleNamespace) -> None:
    verdicts = [recipe.annotation.Verdict(None, 1, tuple(row)) for row in
                ("aab", "bbb", "aaa", "abb", "bab")]  # fmt: skip
    found = recipe.annotation.agreement(verdicts)
    # by hand: the pairs of a row agree 1/3, 1, 1, 1/3, 1/3 of the time; 7 of 15 answers are "a"
    observed, chance = (1 / 3 + 1 + 1 + 1 / 3 + 1 / 3) / 5, (7 / 15) ** 2 + (8 / 15) ** 2
    assert found.fleiss == pytest.approx((observed - chance) / (1 - chance))
    assert found.unanimous == pytest.approx(0.4)
    # the first two agree in 3 of 5: both say "a" 3 and 3 times of 5
    chance = 0.6 * 0.6 + 0.4 * 0.4
    assert found.cohen[0, 1] == pytest.approx((0.6 - chance) / (1 - chance))
    same = [recipe.annotation.Verdict("a", 1, ("a", "a"))] * 3
    assert recipe.annotation.agreement(same) == (1.0, {(0, 1): 1.0}, 1.0)


def test_a_simulated_annotator_errs_as_told(recipe: SimpleNamespace) -> None:
    one = recipe.annotation.simulated(lambda q: "a", 0.8, bias="b", bias_share=0.5)
    answers = [one(i, ["a", "b", "c"], 1) for i in range(2000)]
    assert answers.count("a") / 2000 == pytest.approx(0.8, abs=0.03)
    assert answers.count("b") / 2000 == pytest.approx(0.2 * 0.75, abs=0.03)
    assert [one(i, ["a", "b", "c"], 1) for i in range(50)] == answers[:50]
    assert [one(i, ["a", "b", "c"], 2) for i in range(50)] != answers[:50]
    assert one(0, ["b", "c"], 1) in "bc"  # the right answer may be voted away


# ---- a run --------------------------------------------------------------------------------------


def test_training_goes_on_to_the_same_bits(recipe: SimpleNamespace, tmp_path: Path) -> None:
    corpus = recipe.corpus.Corpus(num_types=12)
    confidences = torch.rand(30, 12, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    samples = recipe.lm.Samples(corpus.training(30, seed=0), corpus.types, confidences, top_k=6,
                                num_parts=2)  # fmt: skip

    def train(name: str, stop_after: int) -> Any:
        model, tokenizer = _tiny_model(recipe, corpus)

        def on_step(step: int, loss: float) -> None:
            if step + 1 == stop_after:
                raise KeyboardInterrupt

        recipe.lm.train(model, tokenizer, samples, steps=5, batch_size=4, learning_rate=1e-2,
                        checkpoint=tmp_path / name, save_every=2, on_step=on_step)  # fmt: skip
        return model.state_dict()

    whole = train("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        train("cut", 4)  # the fourth step's checkpoint is not written: two are done again
    again = train("cut", 0)
    assert all(torch.equal(again[name], weights) for name, weights in whole.items())


def test_samples_ask_what_is_answered(recipe: SimpleNamespace) -> None:
    corpus = recipe.corpus.Corpus(num_types=30)
    sentences = corpus.training(80, seed=0)
    confidences = torch.rand(80, len(corpus.seen_types)).log_softmax(-1)
    samples = recipe.lm.Samples(sentences, corpus.seen_types, confidences, top_k=12, num_parts=3)
    oracle = _oracle(recipe, sentences)
    drawn = [sample for step in range(8) for sample in samples(step, 16)]
    assert drawn == [sample for step in range(8) for sample in samples(step, 16)]
    asked = [(p, a) for p, a in drawn if not p.endswith(" type :")]
    assert [a for _, a in asked] == oracle([p for p, _ in asked])
    sizes = {p.count(" ; ") + 1 for p, _ in asked if p.endswith(" events :")}
    assert {4, 12} <= sizes  # a part, and no partition
    golds = {one.text: {event.type for event in one.events} for one in sentences}
    named = [(p, a) for p, a in drawn if p.endswith(" type :")]
    assert named
    assert all(a in golds[p[len("sentence : ") : -len(" type :")]] for p, a in named)


def test_a_run(recipe: SimpleNamespace, tmp_path: Path) -> None:
    told = [*TINY, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    results = recipe.run.main(told)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Undefined" not in page
    found = results[0]["ablations"]["found"]
    assert found["no recall: all types"]["sentences"] == 2
    assert results[0]["recall"]["found"]["MaxSim"]["all types"]["100"] == 1.0  # of 40 types
    # what is done is read; what is not is done again, to the same numbers
    path = tmp_path / "seed0" / "ablations.json"
    path.unlink()
    before = (tmp_path / "seed0" / "model.pt").stat().st_mtime_ns
    again = recipe.run.main(told)
    assert again[0]["ablations"]["found"] == found
    assert json.loads(path.read_text())["found"] == found
    assert (tmp_path / "seed0" / "model.pt").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="other settings"):
        recipe.run.main([*told, "--steps", "5"])
