"""The GRPO phase: TRL's trainer, log-probs and entropies by logpi or by TRL itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model as models
from datasets import Dataset
from loss_head import LossHeadTimer
from tasks import Entry, Task, prompt
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from logpi.integrations.trl import use_logpi


@dataclass(frozen=True)
class GRPOSettings:
    """What the GRPO phase is told; the same for both implementations of the log-probs."""

    seed: int
    steps: int
    prompts_per_step: int
    num_generations: int
    learning_rate: float
    max_new_tokens: int
    eval_steps: int
    save_steps: int


def run_grpo(
    warm: Path,
    folder: Path,
    task: Task,
    settings: GRPOSettings,
    *,
    log_probs: str,
    backend: str,
    on_step: Callable[[dict[str, Any]], None] = lambda log: None,
) -> list[dict[str, Any]]:
    """`train` on the questions of a task, by its verifier; returns one dict a step."""

    def heldout(model: Any, tokenizer: Any) -> dict[str, float]:
        length = settings.max_new_tokens
        accuracy = models.greedy_accuracy(
            model, tokenizer, task, task.splits.heldout, max_new_tokens=length
        )
        return {"heldout_accuracy": accuracy}

    rows = [{"prompt": prompt(e), "index": i} for i, e in enumerate(task.splits.rl)]
    told = {"log_probs": log_probs, "backend": backend, "on_step": on_step}
    trainer = train(warm, folder, reward(task, task.splits.rl), rows, heldout, settings, **told)
    return steps(trainer)


def train(
    warm: Path,
    folder: Path,
    reward_func: Callable[..., list[float]],
    rows: list[dict[str, Any]],
    heldout: Callable[[Any, Any], dict[str, float]],
    settings: GRPOSettings,
    *,
    log_probs: str = "logpi",
    backend: str = "auto",
    on_step: Callable[[dict[str, Any]], None] = lambda log: None,
) -> GRPOTrainer:
    """Trains the warm model; continues from the newest whole checkpoint in `folder`, if any.

    Args:
        reward_func: as TRL calls it; the columns of `rows` come with the completions.
        heldout: of (model, tokenizer), what to log every `eval_steps` and at the end.
        on_step: is given each step's log, to which it may add.
    """
    model, tokenizer = models.load(warm)
    timer = LossHeadTimer()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_func,
        args=config(folder, settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_Progress(timer, lambda model: heldout(model, tokenizer), settings, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    head = use_logpi(backend=backend) if log_probs == "logpi" else nullcontext()
    with head, timer.installed():
        trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    return trainer


def steps(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    """One dict a step: step, reward, entropy, loss, seconds in the loss head, what is measured on
    held-out questions (where it is), and the rest of what TRL logs."""
    return [log for log in trainer.state.log_history if "reward" in log]


def newest_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: TRL writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    if not whole:
        return None
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))


def config(folder: Path, settings: GRPOSettings, **changed: Any) -> GRPOConfig:
    told: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": settings.seed,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.prompts_per_step * settings.num_generations,
        "num_generations": settings.num_generations,
        "max_completion_length": settings.max_new_tokens,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "beta": 0.0,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    return GRPOConfig(**(told | changed))


def reward(task: Task, entries: list[Entry]) -> Callable[..., list[float]]:
    """The verifier as TRL calls it; the data set's `index` says which entry was asked."""

    def score_answer(completions: list[str], index: list[int], **_: Any) -> list[float]:
        return [task.score(text, entries[i]) for text, i in zip(completions, index, strict=True)]

    return score_answer


class _Progress(TrainerCallback):
    """Adds to each step's log what TRL does not know; the log travels with the checkpoints."""

    def __init__(
        self,
        timer: LossHeadTimer,
        heldout: Callable[[Any], dict[str, float]],
        settings: GRPOSettings,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        self.timer, self.heldout = timer, heldout
        self.settings, self.on_step = settings, on_step

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        log = state.log_history[-1]
        if "reward" not in log:  # the summary at the end
            return
        log["loss_head_forward_seconds"] = self.timer.forward_seconds
        log["loss_head_backward_seconds"] = self.timer.backward_seconds
        log["loss_head_calls"] = self.timer.calls
        self.timer.reset()
        step, every = log["step"], self.settings.eval_steps
        if step % every == 0 or step == self.settings.steps:
            log |= self.heldout(model)
        self.on_step(log)
