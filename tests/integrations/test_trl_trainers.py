"""TRL's own trainers, with use_logpi and without: the same losses."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import save_tiny

from logpi.integrations.trl import use_logpi

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(trl|transformers|accelerate)\b.*"),
]

HOOK = "_ChunkedLogProbFunction"


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`trl.trainer.utils`."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl")
    return importlib.import_module("trl.trainer.utils")


@pytest.fixture
def theirs_trains(utils: ModuleType) -> None:
    """Where TRL trains without us."""
    if importlib.import_module("trl").__version__.startswith("1.15."):
        pytest.skip("TRL 1.15 scores tokens on GPUs only")


def _train(folder: Path, log_folder: Path) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [text.count("1") + 0.1 * len(text) for text in completions]

    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(log_folder),
            max_steps=4,
            per_device_train_batch_size=8,
            num_generations=4,
            num_iterations=2,  # the second pass reads old log-probs: they come from the head too
            max_completion_length=6,
            learning_rate=1e-2,
            beta=0.04,
            entropy_coef=0.01,
            temperature=0.8,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "reward" in log]


def test_grpo_trains_through_our_head(utils: ModuleType, tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    before = getattr(utils, HOOK)
    with use_logpi() as head:
        log = _train(tmp_path / "tiny", tmp_path / "ours")
    assert getattr(utils, HOOK) is before
    # per step one gradient call; per generation (every 2 steps) old and reference log-probs
    assert head.calls == 4 + 2 * 2
    assert max(step["kl"] for step in log) > 1e-4  # the policy moved


@pytest.mark.usefixtures("theirs_trains")
def test_grpo_trains_alike_with_and_without(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    theirs = _train(tmp_path / "tiny", tmp_path / "theirs")
    with use_logpi():
        ours = _train(tmp_path / "tiny", tmp_path / "ours")
    assert [log["reward"] for log in ours] == [log["reward"] for log in theirs]
    for key in ("loss", "entropy", "kl", "grad_norm"):
        got, wanted = ([log[key] for log in run] for run in (ours, theirs))
        assert got == pytest.approx(wanted, rel=1e-3, abs=2e-5), key


QUESTIONS = [(f"{i}+{j}=", str(i + j), str(i - j)) for i in range(4) for j in range(2)]


def _trained_alike(name: str, options: dict[str, Any], folder: Path) -> tuple[int, list[Any]]:
    """(calls of our head, the logs with it and without it) of three steps of a trainer."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    rows: list[dict[str, Any]]
    if name == "SFT":
        rows = [{"prompt": q, "completion": good} for q, good, _ in QUESTIONS]
    elif name == "DPO":
        rows = [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in QUESTIONS]
    elif name == "KTO":
        rows = [{"prompt": q, "completion": good, "label": True} for q, good, _ in QUESTIONS]
        rows += [{"prompt": q, "completion": bad, "label": False} for q, _, bad in QUESTIONS]
    else:
        rows = [{"prompt": q} for q, _, _ in QUESTIONS]
        options = options | {
            "reward_funcs": lambda completions, **_: [
                float(text.count("1")) for text in completions
            ]
        }
    rewards = {k: options[k] for k in options if k == "reward_funcs"}
    args = getattr(trl, f"{name}Config")(
        output_dir=str(folder / "log"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **{k: x for k, x in options.items() if k not in rewards},
    )

    def train() -> list[dict[str, float]]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        data = Dataset.from_list(rows)
        trainer = getattr(trl, f"{name}Trainer")(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, **rewards
        )
        trainer.train()
        return [log for log in trainer.state.log_history if "loss" in log]

    theirs = train()
    with use_logpi() as head:
        ours = train()
    return head.calls, [ours, theirs]


@pytest.mark.usefixtures("theirs_trains")
@pytest.mark.parametrize(
    ("trainer", "options", "keys"),
    [
        ("SFT", {}, ("entropy", "mean_token_accuracy")),
        ("DPO", {}, ("rewards/chosen", "rewards/margins", "logps/chosen")),
        ("KTO", {}, ("rewards/chosen", "logps/rejected", "kl")),
        (
            "RLOO",
            {"num_generations": 2, "max_completion_length": 5, "beta": 0.05},
            ("entropy", "kl", "reward"),
        ),
    ],
)
def test_a_trainer_trains_alike_with_and_without(
    trainer: str, options: dict[str, Any], keys: tuple[str, ...], tmp_path: Path
) -> None:
    save_tiny(tmp_path)
    calls, (ours, theirs) = _trained_alike(trainer, options, tmp_path)
    assert calls >= 3
    assert len(ours) == len(theirs) == 3
    for key in ("loss", "grad_norm", *keys):
        got, wanted = ([log[key] for log in run if key in log] for run in (ours, theirs))
        assert got, key
        assert got == pytest.approx(wanted, rel=1e-3, abs=2e-5), key
    assert len({log["grad_norm"] for log in ours}) == 3  # the model moved
