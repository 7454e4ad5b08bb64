"""What a model answers when it is asked many times: accuracy, and how many ways it knows."""

from __future__ import annotations

from typing import Any

import model as models
import torch
from countdown import canonical
from tasks import Entry, Task
from torch import Tensor

import logpi


@torch.no_grad()
def sampled(
    model: Any,
    tokenizer: Any,
    task: Task,
    entries: list[Entry],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, float]:
    """`samples` answers a question at temperature 1.

    Returns:
        sampled_accuracy: the fraction of correct answers.
        solved: the fraction of questions with a correct answer among them (pass@samples).
        distinct: different correct solutions a question, by `countdown.canonical`.
        sampled_entropy: nats a token, exact at every sampled prefix.
    """
    model.eval()
    torch.manual_seed(seed)
    correct, solved, distinct, entropy, tokens = 0, 0, 0, 0.0, 0
    for start in range(0, len(entries), 32):
        asked = entries[start : start + 32]
        ids, attended = models.complete(
            model, tokenizer, asked, max_new_tokens=max_new_tokens, samples=samples
        )
        length = attended.shape[1]
        sum_, count = _entropy(model, tokenizer, ids, attended, length, samples)
        entropy, tokens = entropy + sum_, tokens + count
        texts = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        for at, entry in enumerate(asked):
            answers = [text.strip() for text in texts[at * samples : (at + 1) * samples]]
            verdicts = {text: task.score(text, entry) == 1.0 for text in set(answers)}
            right = [text for text in answers if verdicts[text]]
            correct += len(right)
            solved += bool(right)
            distinct += len({canonical(text) or text for text in right})
    return {
        "sampled_accuracy": correct / (len(entries) * samples),
        "solved": solved / len(entries),
        "distinct": distinct / len(entries),
        "sampled_entropy": entropy / tokens,
    }


def _entropy(
    model: Any, tokenizer: Any, ids: Tensor, attended: Tensor, length: int, samples: int
) -> tuple[float, int]:
    """The sum over the completions' tokens, the end token's included, and their number."""
    ended = (ids[:, length:] == tokenizer.eos_token_id).int()
    mask = ended.cumsum(1) - ended == 0
    attention = torch.cat([attended.repeat_interleave(samples, 0), mask.int()], 1)
    hidden = model.model(ids, attention_mask=attention, use_cache=False)[0]
    scored = logpi.linear_log_probs(
        hidden[:, length - 1 : -1],
        model.lm_head.weight,
        ids[:, length:],
        loss_mask=mask,
        return_entropy=True,
    )
    assert scored.entropy is not None
    return scored.entropy.sum().item(), int(mask.sum())
