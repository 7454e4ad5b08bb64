"""TRL's GRPO trainer with the loss of each method, every one of them a call of logpi."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpo
import model as models
import torch
from datasets import Dataset
from tasks import Task, prompt
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

import logpi
from logpi.integrations.trl import use_logpi
from logpi.objectives import ClipCov, KLCov, PPOClip

METHODS = ("grpo", "clip-cov", "kl-cov", "flowrl")


@dataclass(frozen=True)
class MethodSettings:
    """What the methods are told beyond GRPO's settings. README.md says why these numbers."""

    mini_batches: int  # of one generation; each is an update
    iterations: int  # over one generation
    clip_cov_fraction: float  # of the tokens of a mini-batch
    clip_cov_lower: float  # of the covariances that Clip-Cov draws from
    clip_cov_upper: float
    kl_cov_fraction: float
    kl_cov_coef: float
    reward_scale: float  # FlowRL's beta


class MethodTrainer(GRPOTrainer):
    """Generation, rewards and advantages are TRL's; the loss is `method`'s.

    Args:
        method: one of METHODS.
        told: the method's settings.
        reference: the policy that FlowRL tilts; not trained.
    """

    def __init__(
        self, method: str, told: MethodSettings, reference: PreTrainedModel, **options: Any
    ) -> None:
        self.method, self.told = method, told
        self.reference = reference.eval().requires_grad_(False)
        super().__init__(**options)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"].bool()
        prompt_mask = inputs["prompt_mask"].bool()
        hidden = self._hidden_states(model, inputs)
        scored = self._scored(model, hidden, inputs, return_entropy=True)
        log_probs = scored.log_probs
        # In a generation's first update the policy is the one that wrote: exactly, and not but
        # for the last bits of a second forward, whose signs KL-Cov would take for a direction.
        first = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        old = log_probs.detach() if first else inputs["old_per_token_logps"]
        advantages = inputs["advantages"]
        if self.method == "flowrl":
            with torch.no_grad():
                reference = self._hidden_states(self.reference, inputs)
                ref = self._scored(self.reference, reference, inputs).log_probs
            log_z = model.log_partition(hidden[:, : prompt_mask.shape[1]], prompt_mask)
            scale = self.told.reward_scale
            loss, metrics = logpi.flow_balance_loss(
                log_probs, ref, old, advantages, log_z, mask, reward_scale=scale
            )
        else:
            objective, selection = self._objective(log_probs, old, advantages, mask)
            loss, metrics = logpi.policy_loss(
                log_probs, old, advantages, mask, objective=objective, selection=selection
            )
        kept = self._metrics["train"]
        kept["entropy"].append((scored.entropy.detach().sum() / mask.sum()).item())
        for name, value in metrics.floats().items():
            kept[f"{self.method}/{name}"].append(value)
        return loss

    def _objective(
        self, log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Any, Tensor | None]:
        """The method's objective and the tokens it treats otherwise."""
        told, each = self.told, advantages[:, None].expand_as(log_probs)
        if self.method == "clip-cov":
            objective = ClipCov()
            selection = logpi.clip_cov_mask(
                log_probs, each, mask,
                fraction=told.clip_cov_fraction,
                lower=told.clip_cov_lower, upper=told.clip_cov_upper,
                exclude=objective.clipped(log_probs, old, advantages),
                seed=self.args.seed, step=self._step,
            )  # fmt: skip
            return objective, selection
        if self.method == "kl-cov":
            selection = logpi.kl_cov_mask(log_probs, each, mask, fraction=told.kl_cov_fraction)
            return KLCov(told.kl_cov_coef), selection
        return PPOClip(), None

    @staticmethod
    def _hidden_states(model: Any, inputs: dict[str, Any]) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        hidden: Tensor = model.model(ids, attention_mask=attended, use_cache=False)[0]
        return hidden

    def _scored(
        self, model: Any, hidden: Tensor, inputs: dict[str, Any], **options: Any
    ) -> logpi.TokenLogProbs:
        completion = inputs["completion_ids"]
        return logpi.linear_log_probs(
            hidden[:, -completion.shape[1] - 1 : -1],
            model.lm_head.weight,
            completion,
            loss_mask=inputs["completion_mask"].bool(),
            temperature=self.temperature,
            **options,
        )


def train(
    method: str,
    warm: Path,
    folder: Path,
    task: Task,
    settings: grpo.GRPOSettings,
    told: MethodSettings,
    *,
    on_step: Callable[[dict[str, Any]], None] = lambda log: None,
) -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    """Trains the warm model; `settings.steps` counts generations, each of several updates.

    Returns the model, its tokenizer, and one dict a generation: reward, entropy, loss, metrics.
    """
    model, tokenizer = models.load(warm)
    if method == "flowrl":  # a part of the model, so that TRL's optimizer has it too
        torch.manual_seed(settings.seed)
        model.log_partition = logpi.LogPartition(model.config.hidden_size)
    updates = told.mini_batches * told.iterations
    trainer = MethodTrainer(
        method,
        told,
        models.load(warm)[0],
        model=model,
        reward_funcs=grpo.reward(task, task.splits.rl),
        args=grpo.config(
            folder,
            settings,
            max_steps=settings.steps * updates,
            per_device_train_batch_size=(
                settings.prompts_per_step * settings.num_generations // told.mini_batches
            ),
            steps_per_generation=told.mini_batches,
            num_iterations=told.iterations,
            logging_steps=updates,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": prompt(e), "index": i} for i, e in enumerate(task.splits.rl)]
        ),
        processing_class=tokenizer,
        callbacks=[_Report(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    with use_logpi():  # for the log-probs that TRL takes right after a generation
        trainer.train()
    return model, tokenizer, [log for log in trainer.state.log_history if "reward" in log]


class _Report(TrainerCallback):
    def __init__(self, on_step: Callable[[dict[str, Any]], None]) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if "reward" in state.log_history[-1]:  # not the summary at the end
            self.on_step(state.log_history[-1])
