"""TTRL's training: TRL's GRPO, rewarded by the vote of the completions themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import grpo
import model as models
import torch
from datasets import Dataset
from tasks import Entry, prompt
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from logpi.integrations.trl import use_logpi
from logpi.rewards import MajorityVote
from logpi.rewards.contract import Details


@dataclass(frozen=True)
class TrueLabel(MajorityVote):
    """The supervised reward: 1.0 for the true answer. All else, metrics too, as in the vote."""

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        found = super()._details(texts, columns)
        return found._replace(rewards=found.parts["correct"])


REWARDS: dict[str, type[MajorityVote]] = {"majority": MajorityVote, "labels": TrueLabel}


class VotingTrainer(GRPOTrainer):
    """Every generation votes; the first `num_samples` of each prompt are trained on.

    The others get no reward after the vote, which TRL leaves out of a group's mean and deviation,
    and no pass through the model. Nor is anything learned from a prompt whose rewarded share of
    all votes is below `min_agreement`.
    """

    def __init__(self, num_samples: int, min_agreement: float, **options: Any) -> None:
        self.num_samples, self.min_agreement = num_samples, min_agreement
        super().__init__(**options)

    def _kept(self, count: int) -> Tensor:
        return torch.arange(count) % self.num_generations < self.num_samples

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args)
        share = rewards.view(-1, self.num_generations).mean(1)
        rewards[(share < self.min_agreement).repeat_interleave(self.num_generations)] = torch.nan
        rewards[~self._kept(len(rewards))] = torch.nan
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        kept = self._kept(len(inputs))
        batch = {name: value[kept] if value.dim() else value for name, value in batch.items()}
        batch["num_items_in_batch"] = batch["completion_mask"].sum()  # what the loss divides by
        return batch


def train(
    warm: Path,
    folder: Path,
    entries: Sequence[Entry],
    reward: MajorityVote,
    settings: grpo.GRPOSettings,
    *,
    num_samples: int,
    min_agreement: float = 0.0,
    evaluate: Callable[[PreTrainedModel, Any], dict[str, float]],
    on_step: Callable[[dict[str, Any]], None] = lambda log: None,
) -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    """Trains the warm model on the entries; continues from the newest whole checkpoint.

    Args:
        warm: what `model.save` wrote.
        folder: of the checkpoints.
        entries: the questions; what a reward does with their answers is the reward's.
        reward: of the completions, `settings.num_generations` of a prompt in a row.
        settings: GRPO's.
        num_samples: completions of each prompt that are trained on.
        min_agreement: the rewarded share of the votes below which a prompt teaches nothing.
        evaluate: of the model and the tokenizer, every `settings.eval_steps`; added to the log.

    Returns:
        The model, its tokenizer, and one dict a step: what TRL logs, the reward's metrics by their
        own names, `cpu_seconds` (evaluations left out), and what `evaluate` returned.
    """
    model, tokenizer = models.load(warm)
    trainer = VotingTrainer(
        num_samples,
        min_agreement,
        model=model,
        reward_funcs=reward,
        args=grpo.config(folder, settings),
        train_dataset=Dataset.from_list(
            [{"prompt": prompt(entry), reward.label: entry["answer"]} for entry in entries]
        ),
        processing_class=tokenizer,
        callbacks=[_Report(f"{reward.__name__}/", tokenizer, settings, evaluate, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    with use_logpi():
        trainer.train(resume_from_checkpoint=grpo.newest_checkpoint(folder))
    return model, tokenizer, [log for log in trainer.state.log_history if "reward" in log]


class _Report(TrainerCallback):
    def __init__(
        self,
        prefix: str,
        tokenizer: Any,
        settings: grpo.GRPOSettings,
        evaluate: Callable[[PreTrainedModel, Any], dict[str, float]],
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        self.prefix, self.tokenizer, self.settings = prefix, tokenizer, settings
        self.evaluate, self.on_step = evaluate, on_step

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = process_time()

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        log = state.log_history[-1]
        if "reward" not in log:  # the summary at the end
            return
        log["cpu_seconds"] = process_time() - self.began
        for name in [name for name in log if name.startswith(self.prefix)]:
            log[name.removeprefix(self.prefix)] = log.pop(name)
        step = log["step"]
        if step % self.settings.eval_steps == 0 or step == self.settings.steps:
            log |= self.evaluate(model, self.tokenizer)
        self.on_step(log)
