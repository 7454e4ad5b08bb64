"""candidate_log_probs against each candidate by itself, through transformers' own models."""

from __future__ import annotations

import copy
import itertools
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, V, draw_ids, model_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks import candidates as benchmark

from logpi.integrations.transformers import candidate_log_probs, log_probs
from logpi.testing import allocations, assert_within_budget, bits

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|accelerate)\b.*"),
]

PROMPT = draw_ids(1, 17)[0].tolist()
WITH_A_WINDOW = {  # shorter than the prompt, in some layers or in all
    "gemma2": {},
    "gemma3_text": {"num_hidden_layers": 7},
    "cohere2": {"num_hidden_layers": 5},
    "mixtral": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")


def _drawn(count: int, seed: int = 0, longest: int = 5) -> list[list[int]]:
    """Of all lengths, sharing prefixes; some are prefixes of others, some are equal."""
    draw = random.Random(seed)
    return [
        [draw.choice((3, 4, 5, draw.randrange(V))) for _ in range(draw.randint(1, longest))]
        for _ in range(count)
    ]


def _agrees(model: Any, candidates: list[list[int]], name: str, **options: Any) -> None:
    wide = copy.deepcopy(model).double()
    ours = candidate_log_probs(model, PROMPT, candidates, **options).log_probs
    theirs = benchmark.one_by_one(model, PROMPT, candidates)
    truth = benchmark.one_by_one(wide, PROMPT, candidates)
    assert truth.std() > 0.1
    assert_within_budget(ours, theirs.float(), truth, name=name)


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "falcon_h1"])
@pytest.mark.parametrize("batch_tokens", [7, 512])
def test_values_are_those_of_each_candidate_alone(family: str, batch_tokens: int) -> None:
    _agrees(model_of(family), _drawn(40), family, batch_tokens=batch_tokens)


@pytest.mark.parametrize("family", WITH_A_WINDOW)
def test_windows_are_those_of_the_sequence(family: str) -> None:
    model = model_of(family, sliding_window=8, **WITH_A_WINDOW[family])
    _agrees(model, _drawn(40), family, batch_tokens=7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_eager_attention(family: str) -> None:
    model = model_of(family)
    model.set_attn_implementation("eager")
    _agrees(model, _drawn(40), family, batch_tokens=7)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_a_bf16_model_is_as_near_as_each_candidate_alone(family: str) -> None:
    _agrees(model_of(family).bfloat16(), _drawn(60), family)


def test_a_float64_model_is_scored_in_float64() -> None:
    model = model_of().double()
    ours = candidate_log_probs(model, PROMPT, _drawn(40)).log_probs
    assert ours.dtype == torch.float64
    assert (ours - benchmark.one_by_one(model, PROMPT, _drawn(40))).abs().max() < 1e-12


def test_long_chains_are_cut_at_any_place() -> None:
    chain = draw_ids(1, 30, seed=3)[0].tolist()
    branches = [[*chain[:n], 7] for n in range(1, 30, 4)]
    for batch_tokens in (1, 4, 11):
        _agrees(model_of(), [chain, *branches, [9], chain], "chain", batch_tokens=batch_tokens)


def test_a_node_with_many_children_takes_several_rows() -> None:
    """All pairs of tokens: the prompt has 97 below it, each of these 97; their mass is 1."""
    pairs = [list(pair) for pair in itertools.product(range(V), repeat=2)]
    model = model_of().double()
    out = candidate_log_probs(model, PROMPT, pairs)
    assert abs(out.log_probs.logsumexp(0)) < 1e-12
    first = candidate_log_probs(model, PROMPT, [[token] for token in range(V)]).log_probs
    torch.testing.assert_close(out.log_probs.view(V, V).logsumexp(1), first, rtol=0, atol=1e-12)


def test_means_are_by_the_number_of_tokens_and_order_is_the_callers() -> None:
    candidates = [[5, 6, 7], [5], [5, 6], [8, 9], [5]]
    out = candidate_log_probs(model_of(), PROMPT, candidates)
    torch.testing.assert_close(out.mean_log_probs, out.log_probs / torch.tensor([3, 1, 2, 2, 1]))
    assert out.log_probs[1] == out.log_probs[4] > out.log_probs[2] > out.log_probs[0]
    back = candidate_log_probs(model_of(), PROMPT, candidates[::-1])
    assert torch.equal(back.log_probs.flip(0), out.log_probs)
    again = candidate_log_probs(model_of(), PROMPT, candidates)
    assert torch.equal(bits(again.log_probs), bits(out.log_probs))


def test_options_reach_the_head() -> None:
    model, candidate = model_of().double(), [5, 6, 7]
    ids = torch.tensor([[*PROMPT, *candidate]])
    options: dict[str, Any] = {"temperature": 0.7, "vocab_size": 90}
    wanted = log_probs(model, ids, logits_to_keep=3, **options).log_probs.sum()
    out = candidate_log_probs(model, torch.tensor(PROMPT), [torch.tensor(candidate)], **options)
    torch.testing.assert_close(out.log_probs[0], wanted, rtol=0, atol=1e-12)
    half = copy.deepcopy(model).bfloat16()
    plain = candidate_log_probs(half, PROMPT, _drawn(40)).log_probs
    wide = candidate_log_probs(half, PROMPT, _drawn(40), logits_dtype=torch.float32).log_probs
    truth = candidate_log_probs(half.double(), PROMPT, _drawn(40)).log_probs
    assert (wide - truth).abs().mean() < (plain - truth).abs().mean()


def test_no_logits_are_made() -> None:
    model = model_of(vocab_size=8_192)
    candidates = _drawn(200, longest=4)
    nodes = len({tuple(one[:n]) for one in candidates for n in range(1, len(one))})
    candidate_log_probs(model, PROMPT, candidates)
    with allocations() as sizes:
        candidate_log_probs(model, PROMPT, candidates, workspace_bytes=1 << 19)
    assert max(sizes) <= 1 << 19 < nodes * 8_192 * 4


# ---- texts --------------------------------------------------------------------------------------


def test_texts_are_tokenized_apart(tmp_path: Path) -> None:
    from tiny import save_tiny
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_tiny(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    texts = ["attack", "attend", "meet"]
    out = candidate_log_probs(model, "what is it=", texts, tokenizer=tokenizer)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    same = candidate_log_probs(model, tokenizer("what is it=")["input_ids"], ids)
    assert torch.equal(out.log_probs, same.log_probs)
    with pytest.raises(ValueError, match="tokenizer: expected one for the text of prompt, got No"):
        candidate_log_probs(model, "what", texts)


# ---- models that packing would change -----------------------------------------------------------


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_reads_it_otherwise_is_noticed(ignored: str) -> None:
    from transformers import LlamaForCausalLM

    class Deaf(LlamaForCausalLM):
        def forward(
            self, input_ids: Any, position_ids: Any = None, cache: Any = None, **inputs: Any
        ) -> Any:
            inputs |= {"position_ids": position_ids, "cache": cache}
            inputs[ignored] = None
            return super().forward(input_ids, **inputs)

    model = Deaf(model_of().config)
    model.load_state_dict(model_of().state_dict())
    with pytest.raises(RuntimeError, match=r"Deaf: its hidden states behind a mask .* differ by"):
        candidate_log_probs(model.eval(), PROMPT, _drawn(40))


def test_what_passes_while_short_is_checked_again_when_longer() -> None:
    """GPT-Neo's local layers count places in the sequence, which are no positions when packed."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": V, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    kinds = [[["global", "local"], 1]]
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, attention_types=kinds, window_size=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2 if parameter.dim() > 1 else 1.0)
    _agrees(model, [[3, 4, 5], [3, 6, 7]], "gpt_neo")
    with pytest.raises(RuntimeError, match="GPTNeoForCausalLM: its hidden states"):
        candidate_log_probs(model, PROMPT, _drawn(40))


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("falcon_h1", {}, TypeError, r"keys and values of each token, got Linear\w+ in Falcon"),
        ("bloom", {}, TypeError, "model: expected one with position_ids, got BloomForCausalLM"),
        ("gpt2", {"n_positions": 18}, ValueError, "at most 18 tokens with the prompt, .* got 21"),
        ("llama4_text", {"attention_chunk_size": 20, "num_local_experts": 2}, ValueError,
         "at most 20 tokens with the prompt, as Llama4ForCausalLM has chunked_attention.*, got 21"),
    ],
)  # fmt: skip
def test_a_model_that_packing_would_change_is_refused(
    family: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    if family in FAMILIES:
        model = model_of(family, **options)
    else:
        sizes = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}
        config = AutoConfig.for_model(family, **sizes | options)
        model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(error, match=message):
        candidate_log_probs(model, PROMPT, [[3, 4, 5, 6, 7]])


def test_another_attention_and_training_mode_are_refused() -> None:
    model = model_of()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"expected attention 'sdpa' or 'eager', .* got 'flex_"):
        candidate_log_probs(model, PROMPT, [[3]])
    with pytest.raises(ValueError, match="expected LlamaForCausalLM in evaluation mode"):
        candidate_log_probs(model_of().train(), PROMPT, [[3]])


@pytest.mark.parametrize(
    ("prompt", "candidates", "error", "message"),
    [
        ([], [[3]], ValueError, "prompt: expected at least one token, got none"),
        ([3], [], ValueError, "candidates: expected at least one, got none"),
        ([3], [[3], []], ValueError, r"candidates\[1\]: expected at least one token, got none"),
        ([3], [[3, V]], ValueError, rf"candidates\[0\]: expected ids in \[0, {V}\), got {V}"),
        ([-1], [[3]], ValueError, rf"prompt: expected ids in \[0, {V}\), got -1"),
        ([3], [[0.5]], TypeError, r"candidates\[0\]: expected ids as ints, got float"),
        ([3], "attack", TypeError, "candidates: expected a list of texts or of ids, got str"),
    ],
)
def test_wrong_arguments_are_named(
    prompt: Any, candidates: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        candidate_log_probs(model_of(), prompt, candidates)
    with pytest.raises(ValueError, match="batch_tokens: expected at least 1, got 0"):
        candidate_log_probs(model_of(), [3], [[3]], batch_tokens=0)


def test_a_call_leaves_nothing_behind() -> None:
    model = model_of()
    out = candidate_log_probs(model, PROMPT, _drawn(40))
    assert not out.log_probs.requires_grad
    assert not model.lm_head._forward_pre_hooks
    assert model(torch.tensor([PROMPT])).logits.shape == (1, len(PROMPT), V)


# ---- speed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_3465_candidates_are_20_times_faster_than_one_by_one() -> None:
    """The figures are in docs/integrations.md; here a small model, and a sample by itself."""
    model, vocab_size = benchmark.model_of("small"), benchmark.SHAPES["small"]["vocab_size"]
    prompt = draw_ids(1, 192)[0].tolist()
    listed = benchmark.names(benchmark.NAMES, vocab_size)
    some = random.Random(0).sample(range(len(listed)), 40)
    sample = [listed[i] for i in some]
    best = benchmark.seconds_a_name(
        {
            "alone": (len(some), lambda: benchmark.one_by_one(model, prompt, sample)),
            "ours": (len(listed), lambda: candidate_log_probs(model, prompt, listed)),
        },
        rounds=2,
    )
    assert best["alone"] > 20 * best["ours"], best
    truth = benchmark.one_by_one(copy.deepcopy(model).double(), prompt, sample)
    ours = candidate_log_probs(model, prompt, listed).log_probs[some]
    theirs = benchmark.one_by_one(model, prompt, sample)
    assert_within_budget(ours, theirs, truth, name="3,465 names")
