"""The rewards as TRL's trainer calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from logpi.rewards import EventExtraction, MajorityVote, SelfSearch

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(trl|transformers|accelerate)\b.*"),
]


def test_grpo_trains_on_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    save_tiny(tmp_path / "tiny")
    vote = MajorityVote(num_votes=4, extract=lambda text: text[:1], symbolic_seconds=0)
    trainer = GRPOTrainer(
        model=str(tmp_path / "tiny"),
        reward_funcs=[vote, SelfSearch(), EventExtraction()],
        args=GRPOConfig(
            output_dir=str(tmp_path / "log"),
            max_steps=1,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=4,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "events": "[]"} for i in range(4)]
        ),
        processing_class=PreTrainedTokenizerFast.from_pretrained(tmp_path / "tiny"),
    )
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "reward" in log]
    # The mean of what a group agrees on is its share of the votes.
    assert log["rewards/majority_vote/mean"] == pytest.approx(log["majority_vote/majority_ratio"])
    assert log["majority_vote/majority_ratio"] >= 1 / 4
    assert 0 <= log["majority_vote/label_accuracy"] <= 1
    assert log["rewards/self_search/mean"] == 0
    assert log["rewards/event_extraction/mean"] == 0  # no JSON
    assert log["event_extraction/tc"] == 1  # but nothing was to be found
