"""use_logpi against the losses of transformers' own models and Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, V, draw_ids, model_of, with_gradients
from torch import Tensor

from logpi.integrations.transformers import log_probs, use_logpi
from logpi.testing import allocations, assert_all_within_budget

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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_loss_and_gradients_are_its_own(family: str) -> None:
    model, ids = model_of(family), draw_ids()
    labels = ids.clone()
    labels[0, :5] = -100

    def run(patched: bool, model: Any = model, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        if patched:
            with use_logpi(model):
                output = model(input_ids=ids, labels=labels, **options)
        else:
            output = model(input_ids=ids, labels=labels, **options)
        return output, with_gradients(model, {"loss": output.loss})

    wide = copy.deepcopy(model).double()
    for options in ({}, {"num_items_in_batch": 41}, {"num_items_in_batch": torch.tensor(41)}):
        output, ours = run(True, **options)
        theirs, truth = run(False, **options)[1], run(False, wide, **options)[1]
        assert_all_within_budget(ours, theirs, {k: x.double() for k, x in truth.items()})
    assert output.logits.shape == (3, 0, V)


@pytest.mark.parametrize("entry", ["log_probs", "use_logpi"])
def test_nothing_as_large_as_the_logits_is_allocated(entry: str) -> None:
    """4 x 64 tokens, V = 4096: logits of 4 MiB, a head of 0.5 MiB, tiles of a quarter."""
    model, ids = model_of(vocab_size=4096), draw_ids(4, 64)
    logits_bytes = ids.numel() * 4096 * 4

    def step(patched: bool) -> int:
        with allocations() as sizes:
            if not patched:
                model(input_ids=ids, labels=ids).loss.backward()
            elif entry == "use_logpi":
                with use_logpi(model, workspace_bytes=1 << 18):
                    model(input_ids=ids, labels=ids).loss.backward()
            else:
                log_probs(model, ids, workspace_bytes=1 << 18).log_probs.sum().backward()
        return max(sizes)

    step(True)  # the first call compares one token a sequence
    assert step(False) >= logits_bytes
    assert step(True) <= logits_bytes // 8


def test_calls_without_labels_and_generation_are_what_they_were() -> None:
    model, ids = model_of(), draw_ids()
    logits, text = model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    with use_logpi(model):
        model(input_ids=ids, labels=ids)
        assert torch.equal(model(ids).logits, logits)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), text)
        assert model.lm_head(torch.ones(1, 2, 32)).shape == (1, 2, V)


def test_training_only_leaves_evaluation_its_logits() -> None:
    model, ids = model_of(), draw_ids()
    with use_logpi(model, training_only=True):
        evaluated = model(input_ids=ids, labels=ids)
        trained = model.train()(input_ids=ids, labels=ids)
    assert evaluated.logits.shape == (3, 11, V)
    assert trained.logits.shape[1] < 11
    torch.testing.assert_close(trained.loss, evaluated.loss)


def test_shifted_labels_are_scored_as_they_are() -> None:
    model, ids = model_of(), draw_ids()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": shifted}
    with use_logpi(model):
        ours = model(**inputs).loss
    torch.testing.assert_close(ours, model(**inputs).loss)


def test_no_token_with_a_label_gives_what_transformers_gives() -> None:
    model, ids = model_of(), draw_ids()
    inputs = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    with use_logpi(model):
        assert model(**inputs).loss.isnan()
        assert model(**inputs, num_items_in_batch=7).loss == 0
    assert model(**inputs).loss.isnan()


def test_it_undoes_itself_after_an_exception() -> None:
    model, ids = model_of(), draw_ids()
    before = dict(vars(model))
    with pytest.raises(ZeroDivisionError), use_logpi(model):
        raise ZeroDivisionError
    assert vars(model) == before
    assert not model._forward_pre_hooks
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=ids, labels=ids).logits.shape == (3, 11, V)


def test_a_model_is_entered_once() -> None:
    model = model_of()
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
        use_logpi(Own(model_of().config)).__enter__()


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
    model = model_of(family)
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
