"""log_probs against the logits of transformers' own models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, V, draw_ids, from_logits, model_of, with_gradients
from torch import Tensor, nn

from logpi.integrations import transformers as integration
from logpi.integrations.transformers import head_of, log_probs
from logpi.testing import assert_all_within_budget

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")


# ---- log_probs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_logits(family: str, tied: bool) -> None:
    model, ids = model_of(family, tie_word_embeddings=tied), draw_ids()
    wide = copy.deepcopy(model).double()
    out = log_probs(model, ids, temperature=0.7, return_entropy=True)
    ours = with_gradients(model, {"log_probs": out.log_probs, "entropy": out.entropy})
    theirs = with_gradients(model, from_logits(model, ids, 0.7))
    truth = with_gradients(wide, from_logits(wide, ids, 0.7))
    assert ours["log_probs"].shape == (3, 10)
    assert ours["log_probs"].std() > 0.1  # nothing flat, where every head agrees
    assert_all_within_budget(ours, theirs, truth, name=family)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "cohere2"])
def test_a_bf16_model_is_as_near_as_its_own_logits(family: str) -> None:
    model, ids = model_of(family, tie_word_embeddings=False).bfloat16(), draw_ids()
    wide = copy.deepcopy(model).double()
    out = log_probs(model, ids, return_entropy=True)
    ours = with_gradients(model, {"log_probs": out.log_probs, "entropy": out.entropy})
    theirs = with_gradients(model, from_logits(model, ids))
    truth = with_gradients(wide, from_logits(wide, ids))
    assert_all_within_budget(ours, theirs, truth, name=family)


def test_a_float32_head_of_a_bf16model_of() -> None:
    model, ids = model_of().bfloat16(), draw_ids()
    hidden = model.base_model(ids).last_hidden_state[:, :-1].double()
    truth = (hidden @ model.lm_head.weight.double().T).log_softmax(-1)
    truth = truth.gather(-1, ids[:, 1:, None])[..., 0]
    plain = log_probs(model, ids).log_probs
    wide = log_probs(model, ids, logits_dtype=torch.float32).log_probs
    assert (wide - truth).abs().max() < 1e-5 < 1e-3 < (plain - truth).abs().max()


def test_under_autocast_the_products_are_the_models() -> None:
    model, ids = model_of(), draw_ids()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = from_logits(model, ids)["log_probs"]
        ours = log_probs(model, ids).log_probs
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    forward = model.forward  # as accelerate wraps it: autocast is off again when it returns
    model.forward = torch.autocast("cpu", torch.bfloat16)(forward)
    torch.testing.assert_close(log_probs(model, ids).log_probs, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_token(side: str) -> None:
    model, ids = model_of(), draw_ids(1, 8)
    padding = torch.zeros(1, 3, dtype=torch.long)
    parts = (padding, ids) if side == "left" else (ids, padding)
    padded = torch.cat(parts, 1)
    attention_mask = (padded != 0).long()
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    # a token has a log-prob if it and the one before it are real
    loss_mask = attention_mask.bool() & attention_mask.roll(1, 1).bool()
    loss_mask[:, 0] = False
    out = log_probs(
        model, padded, attention_mask, loss_mask=loss_mask, position_ids=positions
    ).log_probs
    alone = log_probs(model, ids).log_probs
    torch.testing.assert_close(out[loss_mask[:, 1:]], alone[0], rtol=1e-5, atol=1e-6)
    assert (out[~loss_mask[:, 1:]] == 0).all()


def test_completions_only_are_the_last_columns() -> None:
    model, ids = model_of(), draw_ids()
    whole = log_probs(model, ids, return_entropy=True)
    mask = torch.rand(3, 4) > 0.4
    out = log_probs(model, ids, logits_to_keep=4, loss_mask=mask, return_entropy=True)
    for ours, all_of_them in zip(out[:2], whole[:2], strict=True):
        assert ours.shape == (3, 4)
        torch.testing.assert_close(ours, all_of_them[:, -4:] * mask, rtol=1e-5, atol=1e-6)


def test_labels_take_the_place_of_the_ids_and_minus_100_is_left_out() -> None:
    model, ids = model_of(), draw_ids()
    labels = draw_ids(seed=1)
    labels[:, 4:6] = -100
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    wanted = log_p.gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    wanted = wanted.masked_fill(labels[:, 1:] == -100, 0)
    for given in (labels, labels[:, 1:]):
        out = log_probs(model, ids, labels=given).log_probs
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)


def test_every_field_and_a_support_are_handed_on() -> None:
    model, ids = model_of(), draw_ids()
    fields = ("entropy", "collision", "lse", "top1", "mean_logit")
    out = log_probs(model, ids, support=slice(3, 90), **{f"return_{x}": True for x in fields})
    logits = model(ids).logits[:, :-1, 3:90]
    p = logits.softmax(-1)
    torch.testing.assert_close(out.lse, logits.logsumexp(-1))
    torch.testing.assert_close(out.mean_logit, logits.mean(-1))
    torch.testing.assert_close(out.collision, (p * p).sum(-1))
    torch.testing.assert_close(out.entropy, torch.special.entr(p).sum(-1))
    assert torch.equal(out.top1, logits.argmax(-1) + 3 == ids[:, 1:])


def test_inputs_embeds_go_to_the_model_and_get_a_gradient() -> None:
    model, ids = model_of(), draw_ids()
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    out = log_probs(model, ids, inputs_embeds=embeds).log_probs
    torch.testing.assert_close(out, log_probs(model, ids).log_probs)
    out.sum().backward()
    assert embeds.grad.abs().max() > 0


def test_wrapped_models_are_scored_through_their_wrapper() -> None:
    class Adapted(nn.Module):  # as PEFT wraps: the adapters are inside
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.calls = model, 0

        def get_base_model(self) -> Any:
            return self.model

        def forward(self, **inputs: Any) -> Any:
            self.calls += 1
            return self.model(**inputs)

    model, ids = model_of(), draw_ids()
    wrapped = Adapted(model)
    assert torch.equal(log_probs(wrapped, ids).log_probs, log_probs(model, ids).log_probs)
    assert wrapped.calls == 1
    assert head_of(wrapped).weight is model.lm_head.weight


def test_a_failing_forward_leaves_no_hook() -> None:
    model, ids = model_of(), draw_ids()
    with pytest.raises(AttributeError):
        log_probs(model, ids, attention_mask="no mask")  # type: ignore[arg-type]
    assert not model.lm_head._forward_pre_hooks
    assert model(ids).logits.shape == (3, 11, V)


# ---- the head -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "softcap", "logit_scale"),
    [
        ("llama", None, 1.0),
        ("gemma2", 3.0, 1.0),
        ("cohere", None, 0.25),
        ("granite", None, 0.25),
        ("hyperclovax", None, 4.0),
        ("falcon_h1", None, 0.3),
    ],
)
def test_the_facts_of_a_head(family: str, softcap: float | None, logit_scale: float) -> None:
    model = model_of(family)
    head = head_of(model)
    assert head[2:] == (softcap, logit_scale)
    assert head.weight is model.get_output_embeddings().weight


def test_logits_that_are_not_the_heads_are_noticed() -> None:
    model, ids = model_of("gemma2"), draw_ids()
    model.config.final_logit_softcapping = None
    model.config.logits_soft_cap = 30.0  # another model's name for it: this one does not cap
    with pytest.raises(RuntimeError, match=r"Gemma2ForCausalLM: .* softcap 30.0 and logit_scale"):
        log_probs(model, ids)
    del model.config.logits_soft_cap
    log_probs(model, ids)


def test_a_banned_token_is_noticed() -> None:
    from transformers import LlamaForCausalLM

    class Banning(LlamaForCausalLM):
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.logits = output.logits.index_fill(-1, torch.tensor([5]), -torch.inf)
            return output

    with pytest.raises(RuntimeError, match="it does to them what logpi does not know"):
        log_probs(Banning(model_of().config), draw_ids())


def test_a_head_that_is_more_than_a_product_is_refused() -> None:
    class Adapter(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = model_of()
    model.lm_head = Adapter(32, V, bias=False)
    with pytest.raises(TypeError, match=r"torch.nn.Linear, got Adapter in LlamaForCausalLM"):
        head_of(model)


def test_what_is_no_causal_model_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    encoder_decoder = T5ForConditionalGeneration(T5Config(vocab_size=V, **sizes))
    with pytest.raises(TypeError, match="expected a causal model, got T5For"):
        log_probs(encoder_decoder, draw_ids())
    with pytest.raises(TypeError, match="expected one of transformers, got Linear"):
        head_of(nn.Linear(2, 2))


def test_a_zero_3_weight_is_refused() -> None:
    model = model_of()
    model.lm_head.weight.ds_id = 0
    with pytest.raises(TypeError, match=r"weight of the head: .* a ZeRO-3 parameter"):
        log_probs(model, draw_ids())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_to_keep": 11}, "logits_to_keep: expected 1 to 10, got 11"),
        ({"logits_to_keep": 0}, "logits_to_keep: expected 1 to 10, got 0"),
        ({"loss_mask": torch.ones(3, 5)}, r"loss_mask: expected shape \(B, 11\) or \(B, 10\)"),
        ({"labels": torch.ones(3, 12).long()}, "labels: expected shape"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_probs(model_of(), draw_ids(), **options)


def test_importing_the_integration_does_not_import_transformers() -> None:
    assert "transformers" not in vars(integration)
