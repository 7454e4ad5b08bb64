"""log_probs and use_logpi against the logits and losses of transformers' own models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logpi.integrations import transformers as integration
from logpi.integrations.transformers import head_of, log_probs, use_logpi
from logpi.testing import assert_all_within_budget

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

V = 97  # a prime: no vector ends with the row
SHARED = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
MOE: dict[str, Any] = {
    "num_local_experts": 4,
    "output_router_logits": True,
    "experts_implementation": "eager",  # torch's grouped product knows no float64
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},  # divides
    "hyperclovax": {"logits_scaling": 4.0},  # multiplies
    "falcon_h1": FALCON_H1 | {"lm_head_multiplier": 0.3},
    "mixtral": MOE,  # its loss has a part that is not the head's
    "phi": {},  # a bias
    "gpt2": {},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")


def _model(family: str = "llama", *, seed: int = 0, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **SHARED | FAMILIES[family] | options)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as they come, all tokens are about as likely
            parameter.normal_(0, 0.2 if parameter.dim() > 1 else 1.0)
    return model.eval()


def _ids(rows: int = 3, length: int = 11, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, V, (rows, length), generator=draw)


def _from_logits(model: Any, ids: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """log-probs and entropy of the next tokens, from the model's logits."""
    logits = model(ids).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = (logits / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return {"log_probs": log_p.gather(-1, ids[:, 1:, None])[..., 0], "entropy": entropy}


def _with_gradients(model: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs, and under random upstream gradients that of the head and that of the body.

    The body's is one vector: of its parts some nearly cancel, and there rounding is all there is.
    """
    draw = torch.Generator().manual_seed(1)
    noise = [torch.randn(x.shape, generator=draw).to(x) for x in outputs.values()]
    model.zero_grad()
    torch.autograd.backward([*outputs.values()], noise)
    head = model.get_output_embeddings().weight
    body = [p.grad.flatten() for p in model.parameters() if p.grad is not None and p is not head]
    grads = {"grad of head": head.grad.clone(), "grad of body": torch.cat(body)}
    return {k: x.detach() for k, x in outputs.items()} | grads


# ---- log_probs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_logits(family: str, tied: bool) -> None:
    model, ids = _model(family, tie_word_embeddings=tied), _ids()
    wide = copy.deepcopy(model).double()
    out = log_probs(model, ids, temperature=0.7, return_entropy=True)
    ours = _with_gradients(model, {"log_probs": out.log_probs, "entropy": out.entropy})
    theirs = _with_gradients(model, _from_logits(model, ids, 0.7))
    truth = _with_gradients(wide, _from_logits(wide, ids, 0.7))
    assert ours["log_probs"].shape == (3, 10)
    assert ours["log_probs"].std() > 0.1  # nothing flat, where every head agrees
    assert_all_within_budget(ours, theirs, truth, name=family)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "cohere2"])
def test_a_bf16_model_is_as_near_as_its_own_logits(family: str) -> None:
    model, ids = _model(family, tie_word_embeddings=False).bfloat16(), _ids()
    wide = copy.deepcopy(model).double()
    out = log_probs(model, ids, return_entropy=True)
    ours = _with_gradients(model, {"log_probs": out.log_probs, "entropy": out.entropy})
    theirs = _with_gradients(model, _from_logits(model, ids))
    truth = _with_gradients(wide, _from_logits(wide, ids))
    assert_all_within_budget(ours, theirs, truth, name=family)


def test_a_float32_head_of_a_bf16_model() -> None:
    model, ids = _model().bfloat16(), _ids()
    hidden = model.base_model(ids).last_hidden_state[:, :-1].double()
    truth = (hidden @ model.lm_head.weight.double().T).log_softmax(-1)
    truth = truth.gather(-1, ids[:, 1:, None])[..., 0]
    plain = log_probs(model, ids).log_probs
    wide = log_probs(model, ids, logits_dtype=torch.float32).log_probs
    assert (wide - truth).abs().max() < 1e-5 < 1e-3 < (plain - truth).abs().max()


def test_under_autocast_the_products_are_the_models() -> None:
    model, ids = _model(), _ids()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = _from_logits(model, ids)["log_probs"]
        ours = log_probs(model, ids).log_probs
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    forward = model.forward  # as accelerate wraps it: autocast is off again when it returns
    model.forward = torch.autocast("cpu", torch.bfloat16)(forward)
    torch.testing.assert_close(log_probs(model, ids).log_probs, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_token(side: str) -> None:
    model, ids = _model(), _ids(1, 8)
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
    model, ids = _model(), _ids()
    whole = log_probs(model, ids, return_entropy=True)
    mask = torch.rand(3, 4) > 0.4
    out = log_probs(model, ids, logits_to_keep=4, loss_mask=mask, return_entropy=True)
    for ours, all_of_them in zip(out[:2], whole[:2], strict=True):
        assert ours.shape == (3, 4)
        torch.testing.assert_close(ours, all_of_them[:, -4:] * mask, rtol=1e-5, atol=1e-6)


def test_labels_take_the_place_of_the_ids_and_minus_100_is_left_out() -> None:
    model, ids = _model(), _ids()
    labels = _ids(seed=1)
    labels[:, 4:6] = -100
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    wanted = log_p.gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    wanted = wanted.masked_fill(labels[:, 1:] == -100, 0)
    for given in (labels, labels[:, 1:]):
        out = log_probs(model, ids, labels=given).log_probs
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)


def test_every_field_and_a_support_are_handed_on() -> None:
    model, ids = _model(), _ids()
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
    model, ids = _model(), _ids()
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

    model, ids = _model(), _ids()
    wrapped = Adapted(model)
    assert torch.equal(log_probs(wrapped, ids).log_probs, log_probs(model, ids).log_probs)
    assert wrapped.calls == 1
    assert head_of(wrapped).weight is model.lm_head.weight


def test_a_failing_forward_leaves_no_hook() -> None:
    model, ids = _model(), _ids()
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
    model = _model(family)
    head = head_of(model)
    assert head[2:] == (softcap, logit_scale)
    assert head.weight is model.get_output_embeddings().weight


def test_logits_that_are_not_the_heads_are_noticed() -> None:
    model, ids = _model("gemma2"), _ids()
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
        log_probs(Banning(_model().config), _ids())


def test_a_head_that_is_more_than_a_product_is_refused() -> None:
    class Adapter(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = _model()
    model.lm_head = Adapter(32, V, bias=False)
    with pytest.raises(TypeError, match=r"torch.nn.Linear, got Adapter in LlamaForCausalLM"):
        head_of(model)


def test_what_is_no_causal_model_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    encoder_decoder = T5ForConditionalGeneration(T5Config(vocab_size=V, **sizes))
    with pytest.raises(TypeError, match="expected a causal model, got T5For"):
        log_probs(encoder_decoder, _ids())
    with pytest.raises(TypeError, match="expected one of transformers, got Linear"):
        head_of(nn.Linear(2, 2))


def test_a_zero_3_weight_is_refused() -> None:
    model = _model()
    model.lm_head.weight.ds_id = 0
    with pytest.raises(TypeError, match="DeepSpeed ZeRO-3"):
        log_probs(model, _ids())


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
        log_probs(_model(), _ids(), **options)


def test_importing_the_integration_does_not_import_transformers() -> None:
    assert "transformers" not in vars(integration)


# ---- use_logpi ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_loss_and_gradients_are_its_own(family: str) -> None:
    model, ids = _model(family), _ids()
    labels = ids.clone()
    labels[0, :5] = -100

    def run(patched: bool, model: Any = model, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        if patched:
            with use_logpi(model):
                output = model(input_ids=ids, labels=labels, **options)
        else:
            output = model(input_ids=ids, labels=labels, **options)
        return output, _with_gradients(model, {"loss": output.loss})

    wide = copy.deepcopy(model).double()
    for options in ({}, {"num_items_in_batch": 41}, {"num_items_in_batch": torch.tensor(41)}):
        output, ours = run(True, **options)
        theirs, truth = run(False, **options)[1], run(False, wide, **options)[1]
        assert_all_within_budget(ours, theirs, {k: x.double() for k, x in truth.items()})
    assert output.logits.shape == (3, 0, V)


def test_calls_without_labels_and_generation_are_what_they_were() -> None:
    model, ids = _model(), _ids()
    logits, text = model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    with use_logpi(model):
        model(input_ids=ids, labels=ids)
        assert torch.equal(model(ids).logits, logits)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), text)
        assert model.lm_head(torch.ones(1, 2, 32)).shape == (1, 2, V)


def test_training_only_leaves_evaluation_its_logits() -> None:
    model, ids = _model(), _ids()
    with use_logpi(model, training_only=True):
        evaluated = model(input_ids=ids, labels=ids)
        trained = model.train()(input_ids=ids, labels=ids)
    assert evaluated.logits.shape == (3, 11, V)
    assert trained.logits.shape[1] < 11
    torch.testing.assert_close(trained.loss, evaluated.loss)


def test_shifted_labels_are_scored_as_they_are() -> None:
    model, ids = _model(), _ids()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": shifted}
    with use_logpi(model):
        ours = model(**inputs).loss
    torch.testing.assert_close(ours, model(**inputs).loss)


def test_no_token_with_a_label_gives_what_transformers_gives() -> None:
    model, ids = _model(), _ids()
    inputs = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    with use_logpi(model):
        assert model(**inputs).loss.isnan()
        assert model(**inputs, num_items_in_batch=7).loss == 0
    assert model(**inputs).loss.isnan()


def test_it_undoes_itself_after_an_exception() -> None:
    model, ids = _model(), _ids()
    before = dict(vars(model))
    with pytest.raises(ZeroDivisionError), use_logpi(model):
        raise ZeroDivisionError
    assert vars(model) == before
    assert not model._forward_pre_hooks
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=ids, labels=ids).logits.shape == (3, 11, V)


def test_a_model_is_entered_once() -> None:
    model = _model()
    with use_logpi(model), pytest.raises(RuntimeError, match="expected a LlamaForCausalLM whose"):
        use_logpi(model).__enter__()
    with use_logpi(model):
        pass


def test_a_model_with_a_loss_of_its_own_is_refused() -> None:
    from transformers import LlamaForCausalLM

    class Own(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            return super().forward(input_ids)

    with pytest.raises(RuntimeError, match="Own computes its loss without its loss_function"):
        use_logpi(Own(_model().config)).__enter__()


def _train(folder: Path, patched: bool, family: str) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(3)
    rows = []
    for length in torch.randint(4, 12, (24,)).tolist():  # so that num_items_in_batch matters
        ids = torch.randint(3, V, (12,))
        ids[length:] = 0
        labels = ids.masked_fill(ids == 0, -100).tolist()
        rows.append(
            {
                "input_ids": ids.tolist(),
                "attention_mask": (ids != 0).long().tolist(),
                "labels": labels,
            }
        )
    model = _model(family)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:6]),
    )
    seen = []
    model.register_forward_hook(lambda _, __, output: seen.append(output.logits.shape[1]))
    if patched:
        with use_logpi(model):
            trainer.train()
    else:
        trainer.train()
    assert set(seen[1:]) == ({0} if patched else {12})
    return list(trainer.state.log_history)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mixtral"])
def test_a_trainer_trains_alike_with_and_without(family: str, tmp_path: Path) -> None:
    theirs = _train(tmp_path, False, family)
    ours = _train(tmp_path, True, family)
    for key in ("loss", "eval_loss", "grad_norm"):
        got, wanted = ([log[key] for log in run if key in log] for run in (ours, theirs))
        assert len(got) >= 2
        assert got == pytest.approx(wanted, rel=1e-4), key
    losses = [log["loss"] for log in theirs if "loss" in log]
    assert abs(losses[0] - losses[-1]) > 1e-3  # the model moved
